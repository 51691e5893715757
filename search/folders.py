"""The folder of a study: what its files are called, what is refused in it, and where the study itself is."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection

from widthwise.proxies.files import in_use, is_locked, locked
from widthwise.proxies.validation import ConfigError
from widthwise.search import server
from widthwise.search.storage import (
    Storage,
    read_study_file,
    require_sound,
    sqlite_url,
    unreadable,
    write_study_file,
)
from widthwise.search.study_file import written

STUDY = "widthwise"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the files of a study's folder are called.

    Attributes:
        what: what the folder holds, in a word.
        study: the study in SQLite, and the file that says in which database it is instead.
        records: a line of JSON per finished trial.
        folder: holds a folder per unfinished trial.
        foreign: files that must not be there before the study is, and what they say that the folder holds.
        objectives: of the study, each to be minimised.
    """

    what: str
    study: tuple[str, str]
    records: str
    folder: str
    foreign: Mapping[str, str] = field(default_factory=dict)
    objectives: int = 1

    @property
    def database(self) -> str:
        """The study in SQLite."""
        return self.study[0]

    @property
    def place(self) -> str:
        """The file that says in which database the study is."""
        return self.study[1]

    def is_in(self, out: Path) -> bool:
        """Return whether `out` has a study."""
        return any((out / name).exists() for name in self.study)


def require_content(out: Path, layout: Layout, *, resume: bool, storage: Storage | None = None) -> None:
    """Raise a ConfigError where the folder `out` holds something else, or nothing to resume.

    A study that is named may be gone on with in a new folder.
    """
    exists, what = layout.is_in(out), layout.what
    if exists and not resume:
        raise ConfigError(
            f"out: {out} holds a {what} already; add --resume to go on with it, or name another folder"
        )
    if resume and not exists and not (storage and storage.study_name):
        raise ConfigError(f"out: {out} holds no {what} to resume")
    # Said before torch is imported; who opens the folder takes the lock, and says what else is wrong with it.
    with suppress(OSError):
        if exists and is_locked(out):
            raise in_use(out)
    if (out / "plan.json").exists():
        raise ConfigError(f"out: {out} holds a target run; name another folder")
    for name, content in layout.foreign.items():
        if not exists and (out / name).exists():
            raise ConfigError(f"out: {out} holds {content}; name another folder")


def require_folder(out: Path, layout: Layout, *, resume: bool, storage: Storage | None = None) -> None:
    """Make the folder `out`, or raise a ConfigError where it holds something else or cannot be written."""
    require_content(out, layout, resume=resume, storage=storage)
    try:
        (out / layout.folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error.strerror})") from None


@contextmanager
def nothing_left(out: Path) -> Iterator[None]:
    """Remove what the block makes of the folder `out` where it raises a ConfigError; what was there stays.

    Where another process holds the folder, all stays: what is new there is of that one.
    """
    made = [path for path in (out, *out.parents) if not path.exists()]
    before = set(out.iterdir()) if out.is_dir() else set()
    try:
        yield
    except ConfigError:
        with suppress(ConfigError), locked(out):
            for path in (*(set(out.iterdir()) - before), *made):
                with suppress(OSError):  # what is not empty is not ours alone
                    path.rmdir() if path.is_dir() else path.unlink()
        raise


@contextmanager
def opened(
    out: Path, layout: Layout, identity: Mapping[str, Any], *, resume: bool, storage: Storage | None
) -> Iterator[tuple[optuna.Study, Callable[[], None]]]:
    """Create the study of `out`, about `identity`, or open it with `resume`, to write it.

    Yields the study, and a function that has what was written outlast a loss of power.

    Raises:
        ConfigError: it cannot be read, and why, in one line; or another process has it.
    """
    place = place_of(out, layout, storage) if resume else storage and storage.named(out)
    if place is None:
        if not resume:
            _create(out, layout, identity)
        with _written(out, layout) as opened_file:
            yield opened_file
        return
    with server.writing(place, resume=resume, objectives=layout.objectives) as study:
        if resume:
            _require_readable(study, layout, str(place))
        write_study_file(out / layout.place, place)
        yield study, lambda: None


@contextmanager
def read(out: Path, layout: Layout, storage: Storage | None) -> Iterator[optuna.Study]:
    """Open the study of `out` to read it; errors as of `opened`."""
    place = place_of(out, layout, storage)
    if place is None:
        with _told(out, layout):
            url = sqlite_url(out / layout.database, read_only=True)
            study = _loaded(optuna.storages.RDBStorage(url, skip_table_creation=True))
        yield study
        return
    with server.reading(place) as study:
        _require_readable(study, layout, str(place))
        yield study


def place_of(out: Path, layout: Layout, storage: Storage | None) -> Storage | None:
    """Return the database that holds the study of `out`; None for SQLite's file.

    Raises:
        ConfigError: `storage` is given for a study in SQLite's file, or names another study.
    """
    if (out / layout.database).exists():
        if storage is not None:
            raise ConfigError(f"storage: must not be given, as {out} holds its study in {layout.database}")
        return None
    if (out / layout.place).exists():
        return read_study_file(out / layout.place, storage)
    return storage


def _create(out: Path, layout: Layout, identity: Mapping[str, Any]) -> None:
    """Create a study in SQLite's file, which has its name once the study is one that can be resumed."""
    path, unfinished = out / layout.database, out / f".{layout.database}"
    unfinished.unlink(missing_ok=True)
    storage = optuna.storages.RDBStorage(sqlite_url(unfinished))
    directions = [StudyDirection.MINIMIZE] * layout.objectives
    study = optuna.create_study(storage=storage, study_name=STUDY, directions=directions)
    identify(study, layout, identity)
    storage.engine.dispose()
    unfinished.replace(path)


def identify(study: optuna.Study, layout: Layout, identity: Mapping[str, Any]) -> None:
    """Write into a study what it is about."""
    study.set_user_attr("what", layout.what)
    study.set_user_attr("config", dict(identity))


@contextmanager
def _written(out: Path, layout: Layout) -> Iterator[tuple[optuna.Study, Callable[[], None]]]:
    with ExitStack() as file:
        with _told(out, layout):
            storage, secure = file.enter_context(written(out / layout.database))
            study = _loaded(storage)
        yield study, secure


def _loaded(storage: optuna.storages.RDBStorage) -> optuna.Study:
    require_sound(storage.engine)
    study = optuna.load_study(storage=storage, study_name=STUDY)
    study.user_attrs["config"]
    return study


@contextmanager
def _told(out: Path, layout: Layout) -> Iterator[None]:
    """Raise a ConfigError, which says what to do, where the study's file cannot be read."""
    try:
        yield
    except Exception as error:
        what = f"a {layout.what}'s study"
        raise ConfigError(f"out: {unreadable(out / layout.database, what, error)}") from error


def _require_readable(study: optuna.Study, layout: Layout, where: str) -> None:
    """Raise a ConfigError where a database's study is not one of ours, of the kind that the folder is for."""
    attributes = study.user_attrs
    if "config" not in attributes or attributes.get("what") != layout.what:
        raise ConfigError(
            f"study_name: must be a {layout.what}'s study, but {study.study_name!r} in {where} is not"
        )
