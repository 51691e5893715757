"""Files that are whole or absent: atomic writes, and JSON that is read with errors in one line."""

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from widthwise.proxies.storage import Place, RemotePath
from widthwise.proxies.validation import ConfigError


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well; a reader sees the old or the new.

    Raises:
        OSError: the folder is missing or cannot be written to, or the disk is full; the old file stays.
    """
    path = Path(path)
    # In the same folder, because a rename is atomic only within one file system.
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with unfinished.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        # A folder that is missing, or is a file, has nothing to remove.
        with suppress(OSError):
            unfinished.unlink()
        raise


def is_full(error: BaseException) -> bool:
    """Return whether an error is the operating system's, or SQLite's, of a disk, or a share of it, that is full."""
    return _is_of_system(error, {errno.ENOSPC, errno.EDQUOT}, {sqlite3.SQLITE_FULL})


def is_unwritable(error: BaseException, folder: Path | None = None) -> bool:
    """Return whether an error is the operating system's, or SQLite's, of a disk that fails or may not be written.

    With `folder` one that names a file which is not in there is another's.
    """
    named = getattr(system_error(error), "filename", None)
    if folder and isinstance(named, str) and not Path(named).resolve().is_relative_to(folder.resolve()):
        return False
    system = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
    return _is_of_system(
        error, system, {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
    )


def _is_of_system(error: BaseException, system: Collection[int], sqlite: Collection[int]) -> bool:
    """Return whether an error has one of the system's numbers, or of SQLite's primary codes."""
    cause = system_error(error)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in sqlite
    return isinstance(cause, OSError) and cause.errno in system


def system_error(error: BaseException) -> BaseException:
    """Return what led to an error: SQLAlchemy's has the driver's as its cause, and Optuna's has SQLAlchemy's."""
    while error.__cause__ is not None and not isinstance(error, sqlite3.Error | OSError):
        error = error.__cause__
    return error


def write_atomic(path: str | Place, text: str) -> None:
    """Write `text` in UTF-8, whole or not at all; errors as in `replacing`."""
    if isinstance(path, RemotePath):
        path.write_bytes(text.encode())
        return
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: str | Place, document: Mapping[str, Any]) -> None:
    """Write one JSON object, atomically.

    Raises:
        ValueError: the document holds NaN or infinity, which JSON cannot say (write null instead).
        OSError: as in `replacing`.
    """
    write_atomic(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Place, what: str) -> dict[str, Any]:
    """Return the JSON object in the file `path`.

    Args:
        path: the file.
        what: what it should be, for the message: ``"a recipe"``.

    Raises:
        ConfigError: the file is missing, a folder, unreadable, empty, not JSON, or not an object, or a
            number in it is NaN or infinite.
    """
    text = _read_text(Path(path) if isinstance(path, str) else path, what)
    if not text.strip():
        raise ConfigError(f"{path}: is empty, must be {what}")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{path}: not valid JSON at {where}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or thousands of open brackets.
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be an object, got {_JSON_NAMES[type(document)]}")
    for field, value in _leaves(document):
        if isinstance(value, float) and not isfinite(value):
            raise ConfigError(f"{path}: {field}: must be finite, got {value!r}")
    return document


def require_schema(document: Mapping[str, Any], schema: str, path: str | Place) -> None:
    """Raise a ConfigError where a file's document is of another format: its other fields then differ too."""
    if "schema" not in document:
        raise ConfigError(f"{path}: schema: is required, must be {schema!r}")
    if document["schema"] != schema:
        raise ConfigError(f"{path}: schema: must be {schema!r}, got {document['schema']!r}")


def _leaves(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every value that holds no others, and its path, in the document's order."""
    remaining: list[tuple[str, Any]] = [("", document)]
    while remaining:  # no recursion: a file may be deeper than Python's stack
        field, value = remaining.pop()
        if not isinstance(value, dict | list):
            yield field, value
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = [(f"{field}.{key}".removeprefix("."), item) for key, item in items]
        remaining.extend(reversed(inner))


_JSON_NAMES = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _read_text(path: Place, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, must be {what}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, must be {what}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}, must be {what}") from None


LOCK = ".lock"


# assumed: bytes below which the disk of a folder is the full one. What could not be written is gone by then.
NO_ROOM = 2**26


def full_folder(folders: Iterable[str]) -> str | None:
    """Return the first folder whose disk has no room, or None: the error of a full disk seldom names a file."""
    return next((one for one in folders if "://" not in one and _room(Path(one)) < NO_ROOM), None)


def temporary_folders() -> list[str]:
    """Return the folder for temporary files, or none: Python looks for one in which it can write."""
    with suppress(FileNotFoundError):
        return [tempfile.gettempdir()]
    return []


def _room(place: Path) -> int:
    """Return the bytes that are free where a folder is, or will be made: on the disk of its nearest parent."""
    there = next(one for one in (place, *place.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


@contextmanager
def locked(folder: Place) -> Iterator[None]:
    """Hold `folder` against other processes; the lock goes with the process, however that ends.

    Storage that a URI names has no locks: there it is for the user to run one process at a time.

    Raises:
        ConfigError: another process holds it, or it cannot be written to.
    """
    if isinstance(folder, RemotePath):
        yield
        return
    try:
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"out: {folder} cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise in_use(folder) from None
        yield


def in_use(folder: Path) -> ConfigError:
    """Return the error of a folder that another process holds."""
    return ConfigError(f"out: {folder} is in use by another process that is still running")


def is_locked(folder: Path) -> bool:
    """Return whether a living process holds `folder` as `locked` does; nothing is written."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
