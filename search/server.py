"""A study on a PostgreSQL server: one process at a time writes it, and a server that restarts is waited for.

A writer has a single connection, which holds the study's advisory lock: who cannot have the lock cannot connect, and
what is written, its holder writes. With the connection goes the lock; the next connection makes sure that nobody else
has written meanwhile. What failed with a connection is done again, and a COMMIT whose answer was lost is looked up by
its transaction's number, so that nothing is done twice.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import RDBStorage, _CachedStorage
from optuna.study import StudyDirection
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from widthwise.proxies.validation import ConfigError, RunError, one_line
from widthwise.search.storage import Storage

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")

# Seconds for a server to take a connection.
ANSWER_SECONDS = 10
# Seconds that a process which has just died may still hold its lock.
RELEASE_SECONDS = 2.0
# The longest pause between two attempts, in seconds.
LONGEST_PAUSE = 5.0
# Each end notices within a minute that the other one is gone: by three looks after half a minute's silence (seconds),
# or by what it has sent and nobody confirms (milliseconds), about which the looks say nothing.
LIVENESS = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# The attribute in which a study says who has written to it last.
WRITER = "writer"


class Taken(Exception):
    """Another process holds the study."""


@contextmanager
def writing(storage: Storage, *, resume: bool, objectives: int = 1) -> Iterator[optuna.Study]:
    """Create a study, or open it with `resume`, such that no other process can meanwhile.

    Raises:
        ConfigError: the database cannot be opened, another process has the study, or there is none to resume, or
            one of this name already.
        RunError: within the block, where the server has not answered for as long as it is waited for.
    """
    holder = _Holder(storage)
    try:
        _create_tables(storage)
        backend = _patiently(RELEASE_SECONDS, lambda error: isinstance(error, Taken), holder.backend)
    except Taken as error:
        raise ConfigError(f"storage: {error}") from None
    except Exception as error:
        raise _unopened(storage, error) from error
    try:
        shared = _CachedStorage(cast(RDBStorage, _Again(backend, storage)))
        study = _loaded(shared, storage) if resume else _created(shared, storage, objectives)
        holder.claim(study)
        yield study
    finally:
        _close(backend)


@contextmanager
def reading(storage: Storage) -> Iterator[optuna.Study]:
    """Open a study such that the server refuses every write; nobody else is held up.

    Raises:
        ConfigError: the database cannot be opened, or has no such study.
    """
    readonly = {"execution_options": {"postgresql_readonly": True}}
    try:
        backend = RDBStorage(str(storage), {**_unheld(storage), **readonly}, skip_table_creation=True)
    except Exception as error:
        raise _unopened(storage, error) from error
    try:
        yield _loaded(backend, storage)
    finally:
        _close(backend)


def is_held(storage: Storage) -> bool:
    """Return whether a living process, on whatever machine, has the study open to write it."""
    key = _key(storage)
    query = """SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND classid::bigint = %s AND objid::bigint = %s"""
    try:
        with _connected(storage) as connection:
            found = connection.execute(query, [key >> 32 & 0xFFFFFFFF, key & 0xFFFFFFFF])
            return found.fetchone() is not None
    except Exception as error:
        raise _unopened(storage, error) from error


class _Holder:
    """Makes the connections of a study's only writer."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.token: str | None = None

    def backend(self) -> RDBStorage:
        """Return Optuna's storage over one connection at a time, looked at before each use."""
        options = {"creator": self.connect, "pool_size": 1, "max_overflow": 0, "pool_pre_ping": True}
        backend = RDBStorage(
            str(self.storage), options, skip_compatibility_check=True, skip_table_creation=True
        )
        info = {"patience": self.storage.patience}
        backend.scoped_session = scoped_session(sessionmaker(backend.engine, class_=_Session, info=info))
        return backend

    def connect(self) -> "Connection[Any]":
        """Connect, and take the lock.

        Raises:
            Taken: another process has it.
            RunError: another process has had it since `claim`.
        """
        connection = _connected(self.storage)
        try:
            self._take(connection)
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    def claim(self, study: optuna.Study) -> None:
        """Leave a mark in the study that stays until another process opens it to write."""
        token = uuid4().hex
        study.set_user_attr(WRITER, token)
        self.token = token

    def _take(self, connection: "Connection[Any]") -> None:
        name = self.storage.study_name
        for setting, value in LIVENESS.items():
            name_there = f"tcp_{setting.removeprefix('tcp_')}"
            connection.execute("SELECT set_config(%s, %s, false)", [name_there, str(value)])
        [taken] = connection.execute("SELECT pg_try_advisory_lock(%s)", [_key(self.storage)]).fetchone() or [
            None
        ]
        if not taken:
            raise Taken(
                f"study {name!r} in {self.storage} is in use by another process that is still running"
            )
        query = """SELECT value_json FROM studies JOIN study_user_attributes USING (study_id)
            WHERE study_name = %s AND key = %s"""
        if self.token and connection.execute(query, [name, WRITER]).fetchone() != (json.dumps(self.token),):
            raise RunError(f"storage: another process has gone on with study {name!r} in {self.storage}")


class _Session(Session):
    """A session that finds out whether a COMMIT was carried out whose answer never came."""

    def commit(self) -> None:
        self.flush()
        number = self.scalar(select(func.txid_current_if_assigned()))
        try:
            super().commit()
        except DBAPIError:
            # The connection, of which there is one, has to be given back before the next one.
            self.close()
            if number is None or not _patiently(
                self.info["patience"], _is_passing, self._is_committed, number
            ):
                raise

    def _is_committed(self, number: int) -> bool:
        with self.get_bind().engine.connect() as connection:
            return bool(connection.scalar(select(func.txid_status(number))) == "committed")


class _Again:
    """Optuna's storage, every operation of which is tried again while the server is away."""

    def __init__(self, backend: RDBStorage, storage: Storage) -> None:
        self._backend, self._storage = backend, storage

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        return partial(self._tried, value) if callable(value) else value

    def _tried(self, operation: Callable[..., T], *arguments: Any, **options: Any) -> T:
        patience = self._storage.patience
        try:
            return _patiently(patience, _is_passing, operation, *arguments, **options)
        except (StorageInternalError, DBAPIError, Taken) as error:
            tried = f"tried for {patience:g} s; " if _is_passing(error) else ""
            going_on = f"{tried}what has ended is kept: go on with --resume"
            raise RunError(f"storage: {self._storage} fails ({_reason(error)}); {going_on}") from error


def _patiently(
    seconds: float,
    is_passing: Callable[[BaseException], bool],
    call: Callable[..., T],
    *args: Any,
    **named: Any,
) -> T:
    """Call, and again while an error is a passing one, with pauses that grow, for so many seconds."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    attempts = Retrying(
        retry=retry_if_exception(is_passing),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.1, max=min(LONGEST_PAUSE, seconds / 4)),
        reraise=True,
    )
    result: T = attempts(call, *args, **named)
    return result


def _is_passing(error: BaseException) -> bool:
    """Return whether an error is one of the connection or the server, not of what was asked for."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, DBAPIError) and cause.connection_invalidated:
        return True
    # The last is what remains of a lost connection where Optuna itself tries another query over it.
    return isinstance(cause, Taken | OperationalError | InterfaceError | PendingRollbackError)


def _created(storage: Any, place: Storage, objectives: int) -> optuna.Study:
    directions = [StudyDirection.MINIMIZE] * objectives
    try:
        return optuna.create_study(storage=storage, study_name=place.study_name, directions=directions)
    except DuplicatedStudyError:
        rule = "must be new, or be gone on with in its folder by --resume"
        raise ConfigError(f"study_name: {rule}, but {place} holds a study {place.study_name!r}") from None


def _loaded(storage: Any, place: Storage) -> optuna.Study:
    try:
        return optuna.load_study(storage=storage, study_name=place.study_name)
    except KeyError:
        raise ConfigError(f"storage: {place} holds no study {place.study_name!r}") from None


def _create_tables(storage: Storage) -> None:
    """Create Optuna's tables where they are missing, one process after the other."""
    with _connected(storage) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_number("tables")])
        _close(RDBStorage(str(storage), _unheld(storage)))


def _close(backend: RDBStorage) -> None:
    backend.remove_session()
    backend.engine.dispose()


def _unheld(storage: Storage) -> dict[str, Any]:
    """Return SQLAlchemy's options for connections without the lock."""
    return {"creator": partial(_connected, storage), "poolclass": NullPool}


def _connected(storage: Storage) -> "Connection[Any]":
    import psycopg

    _, arguments = storage.url.get_dialect()().create_connect_args(storage.url)
    ours = {
        "connect_timeout": ANSWER_SECONDS,
        "application_name": "widthwise",
        **LIVENESS,
        "password": storage.password,
    }
    # What the URL says goes before.
    return psycopg.connect(**{**ours, **arguments})


def _key(storage: Storage) -> int:
    """Return the number of a study's advisory lock."""
    return _number(f"study {storage.study_name}")


def _number(name: str) -> int:
    return int.from_bytes(sha256(f"widthwise {name}".encode()).digest()[:8], "big", signed=True)


def _unopened(storage: Storage, error: Exception) -> ConfigError:
    reason = _reason(error)
    advice = "; give one by PGPASSWORD, ~/.pgpass or --storage" if "no password supplied" in reason else ""
    return ConfigError(f"storage: {storage} cannot be opened ({reason}){advice}")


def _reason(error: Exception) -> str:
    """Return what the server or its client said, in one line."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):
        # Of Optuna's other query; what the connection was lost by stands behind it.
        cause = cause.__context__ or cause
    return one_line(getattr(cause, "orig", cause))
