"""The folder of a study: what its files are called, and what is refused in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from widthwise.proxies.validation import ConfigError

STUDY = "widthwise"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the files of a study's folder are called.

    Attributes:
        what: what the folder holds, in a word.
        database: the study, SQLite.
        records: a line of JSON per finished trial.
        folder: holds a folder per unfinished trial.
        foreign: files that must not be there before the database is, and what they say that the folder holds.
    """

    what: str
    database: str
    records: str
    folder: str
    foreign: Mapping[str, str] = field(default_factory=dict)


def require_content(out: Path, layout: Layout, *, resume: bool) -> None:
    """Raise a ConfigError where the folder `out` holds something else, or nothing to resume."""
    exists, what = (out / layout.database).exists(), layout.what
    if exists and not resume:
        raise ConfigError(
            f"out: {out} holds a {what} already; add --resume to go on with it, or name another folder"
        )
    if resume and not exists:
        raise ConfigError(f"out: {out} holds no {what} to resume")
    if (out / "plan.json").exists():
        raise ConfigError(f"out: {out} holds a target run; name another folder")
    for name, content in layout.foreign.items():
        if not exists and (out / name).exists():
            raise ConfigError(f"out: {out} holds {content}; name another folder")


def require_folder(out: Path, layout: Layout, *, resume: bool) -> None:
    """Make the folder `out`, or raise a ConfigError where it holds something else or cannot be written."""
    require_content(out, layout, resume=resume)
    try:
        (out / layout.folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error.strerror})") from None


def created(out: Path, layout: Layout) -> optuna.Study:
    """Return a new study in `out`."""
    return optuna.create_study(storage=_storage(out, layout), study_name=STUDY, direction="minimize")


def loaded(out: Path, layout: Layout) -> optuna.Study:
    """Return the study in `out`; a ConfigError says in one line why it cannot be read."""
    try:
        study = optuna.load_study(storage=_storage(out, layout), study_name=STUDY)
        study.user_attrs["config"]
    except Exception as error:
        reason = str(error).partition("\n")[0]
        path = out / layout.database
        raise ConfigError(f"out: {path} cannot be read as a {layout.what}'s study ({reason})") from error
    return study


def _storage(out: Path, layout: Layout) -> str:
    return f"sqlite:///{out / layout.database}"
