"""A study's SQLite file, as the process that writes it opens it: with a write-ahead log where that is safe.

Every report is a transaction, for which a rollback journal, SQLite's own choice, waits for the disk three or four
times. A log is waited for when it is carried over into the file, which is done at every trial's end.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from optuna.storages import RDBStorage

from widthwise.search.storage import sqlite_url

# On others, as NFS, processes of two machines cannot share a log (https://sqlite.org/wal.html).
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}

# Is there where this machine serves NFS: its own disks may be other machines' then.
_SERVER = Path("/proc/fs/nfs/exports")


@contextmanager
def written(path: Path) -> Iterator[tuple[RDBStorage, Callable[[], None]]]:
    """Open the file to write it; yields Optuna's storage, and what makes a loss of power leave all that is written.

    Without that such a loss may take the last transactions, and never more; the death of a process takes none. On
    leaving, the file is as any other of SQLite's, unless another process is reading it.

    Raises:
        sqlalchemy.exc.DatabaseError: it is no database, or Optuna's errors where it is another's.
    """
    if not is_local(path):
        # One that was killed elsewhere may have left its log.
        _end_log(path)
        yield RDBStorage(sqlite_url(path)), lambda: None
        return
    storage = RDBStorage(sqlite_url(path), {"creator": lambda: _connected(path)})

    def secure() -> None:
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    try:
        yield storage, secure
    finally:
        storage.engine.dispose()
        _end_log(path)


def is_local(path: Path) -> bool:
    """Return whether a path is known to lie on a disk of this machine alone."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    except OSError:
        return False
    return file_system(path.resolve(), mounts) in _LOCAL and not _SERVER.exists()


def file_system(path: Path, mounts: str) -> str:
    """Return what kind of file system an absolute path lies on, by Linux's table of those mounted."""
    # A later one covers an earlier one.
    kinds = {_unescaped(place): kind for _, place, kind, *_ in map(str.split, mounts.splitlines())}
    return next(kinds[str(at)] for at in (path, *path.parents) if str(at) in kinds)


def _connected(path: Path) -> sqlite3.Connection:
    connection = _connection(path)
    [mode] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode == "wal":
        connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _end_log(path: Path) -> None:
    """Carry the log over into the file, if there is one, and remove it, unless another process is reading."""
    with suppress(sqlite3.Error), closing(_connection(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


def _connection(path: Path) -> sqlite3.Connection:
    # Never a new file: the folder may have been moved away.
    uri = f"file:{quote(str(path.resolve()))}?mode=rw"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def _unescaped(place: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)
