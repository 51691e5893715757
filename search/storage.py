"""Where a study is kept that is not in its folder: a PostgreSQL database, and what the folder says of it."""

import shlex
import sqlite3
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote
from uuid import uuid4

from pydantic import Field
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from widthwise.proxies.files import read_json, require_schema, write_json
from widthwise.proxies.validation import ConfigError, Record, first_line

SCHEMA = "widthwise/study/1"
DRIVER = "postgresql+psycopg"
EXAMPLE = f"{DRIVER}://USER@HOST/DATABASE"
# Optuna's column for a study's name.
LONGEST_NAME = 512
# SQLite's primary codes of a file that holds something else than it did: what it asks for, it does not find.
_DAMAGED = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A study in a PostgreSQL database, which several studies share.

    Attributes:
        url: SQLAlchemy's, without a password.
        password: as the URL had it; None leaves it to libpq (``PGPASSWORD``, ``~/.pgpass``).
        study_name: the study's name in the database; None for a new study makes one of its folder's name.
        patience: seconds for which a server that has gone is waited for.
    """

    url: URL
    password: str | None = field(default=None, repr=False)
    study_name: str | None = None
    patience: float = 120.0

    @classmethod
    def parse(cls, text: str, *, study_name: str | None = None, patience: float = 120.0) -> Self:
        """Read ``postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE``; nothing is connected to.

        Raises:
            ConfigError: it is no such URL, or psycopg is not installed; the message never holds the password.
        """
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            raise ConfigError(
                f"storage: must be a URL such as {EXAMPLE}, and cannot be read as one"
            ) from None
        _require(url)
        if study_name is not None and not (study_name.isprintable() and 0 < len(study_name) <= LONGEST_NAME):
            raise ConfigError(
                f"study_name: must be 1 to {LONGEST_NAME} printable characters, got {study_name!r}"
            )
        bare = URL.create(DRIVER, url.username, None, url.host, url.port, url.database, url.query)
        return cls(url=bare, password=url.password, study_name=study_name, patience=patience)

    def __str__(self) -> str:
        """Return the URL, without a password."""
        return self.url.render_as_string()

    def named(self, out: Path) -> Self:
        """Return the storage of a new study in `out`, with a name that no other study has."""
        name = self.study_name or f"{out.resolve().name[:100]}-{uuid4().hex[:8]}"
        return replace(self, study_name=name)


class _StudyFile(Record):
    """What a folder says of its study: the database's URL, without a password, and the study's name there."""

    schema_: str = Field(alias="schema")
    storage: str
    study: str


def write_study_file(path: Path, storage: Storage) -> None:
    """Say in a folder where its study is."""
    write_json(path, {"schema": SCHEMA, "storage": str(storage), "study": storage.study_name})


def read_study_file(path: Path, given: Storage | None = None) -> Storage:
    """Return where a folder's study is.

    Args:
        path: the file.
        given: takes the place of the URL in it: with a password, or where the database has moved to.

    Raises:
        ConfigError: the file is damaged, or `given` names another study.
    """
    document = read_json(path, "a study's place")
    require_schema(document, SCHEMA, path)
    said = _StudyFile.parse(document, where=str(path))
    if given is None:
        return Storage.parse(said.storage, study_name=said.study)
    if given.study_name not in (None, said.study):
        raise ConfigError(f"study_name: must be {said.study!r} as in {path}, got {given.study_name!r}")
    return replace(given, study_name=said.study)


def sqlite_url(path: Path, *, read_only: bool = False) -> str:
    """Return the URL of an SQLite file, whatever characters its path has."""
    if not read_only:
        return URL.create("sqlite", database=str(path)).render_as_string()
    database = f"file:{quote(str(path.resolve()))}"
    return URL.create("sqlite", database=database, query={"mode": "ro", "uri": "true"}).render_as_string()


def require_sound(engine: Engine) -> None:
    """Raise SQLite's own error where a page of the file is damaged: what needs that page may be read much later."""
    with engine.connect() as connection:
        said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if said != "ok":
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def unreadable(path: Path, what: str, error: BaseException) -> str:
    """Return that an SQLite file cannot be read as a study, why, and what to do, in one line.

    Args:
        path: the file.
        what: that it should hold: ``"a sweep's study"``.
        error: Optuna's, or SQLAlchemy's, which what they were caused by explains; a KeyError where it holds no study.
    """
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, sqlite3.Error):
        cause = cause.__cause__
    is_absent = isinstance(error, KeyError)
    why = "it holds no study of ours" if is_absent else first_line(cause)
    said = f"{path} cannot be read as {what} ({why})"
    if not is_absent and getattr(cause, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
        return said
    known = path.with_name("trials.jsonl")
    warm = (
        f" with --warm-start {shlex.quote(str(path.parent))}"
        if known.exists() and known.stat().st_size
        else ""
    )
    return f"{said}; put a copy of it back, or begin anew in another folder{warm}"


def _require(url: URL) -> None:
    """Raise a ConfigError unless `url` is a PostgreSQL database's; only parts that hold no secret are repeated."""
    if url.drivername not in (DRIVER, "postgresql"):
        default = "; without storage, the study is an SQLite file in the folder"
        hint = default if url.get_backend_name() == "sqlite" else ""
        raise ConfigError(f"storage: must be a PostgreSQL URL, {EXAMPLE}, got {url.drivername!r}{hint}")
    if "@" in (url.host or ""):
        raise ConfigError("storage: '@' in a password must be written as '%40'")
    secret = next((key for key in url.query if "password" in key or "secret" in key), None)
    if secret is not None:
        raise ConfigError(
            f"storage: must not hold {secret!r}; a password stands before the host, or in ~/.pgpass"
        )
    if not url.database:
        raise ConfigError(f"storage: must name a database, {EXAMPLE}")
    if any(find_spec(module) is None for module in ("psycopg", "tenacity")):
        raise ConfigError(
            "storage: psycopg is not installed; install it with: pip install 'widthwise[postgres]'"
        )
