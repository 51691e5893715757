"""Options as the commands share them."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from widthwise.proxies.config import Kind
from widthwise.proxies.storage import Place, place
from widthwise.proxies.validation import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from widthwise.search.storage import Storage

T = TypeVar("T")

Option = Annotated[T | None, tyro.conf.arg(help_behavior_hint="")]
"""An option that may be left out: its own help says what holds then, in place of tyro's ``default: None``."""

Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
"""An option that is off unless it is given."""

Folder = Annotated[
    Place,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|URI",
        instance_from_str=lambda arguments: place(arguments[0]),
        is_instance=lambda value: isinstance(value, Place),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A folder that may lie on storage that a URI names."""


_UNBOUNDED = 10_000  # columns


def whole_lines() -> "Console":
    """Return standard output for tables; a pipe has no width: whoever reads it looks for a whole name in a line."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_UNBOUNDED)


def worker_range(text: str) -> tuple[int | None, int]:
    """Return the fewest and the most workers that ``--workers N`` or ``--workers FEWEST-MOST`` names.

    Raises:
        ConfigError: it names something else.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)", text)
    if found is None:
        raise ConfigError(f"workers: must be a whole number or a range like 2-4, got {text!r}")
    fewest, most = found.groups()
    if fewest is not None and int(fewest) > int(most):
        raise ConfigError(f"workers: must be a range from fewest to most, got {text!r}")
    return None if fewest is None else int(fewest), int(most)


def overrides(texts: Iterable[str]) -> dict[str, Kind]:
    """Return the kinds by pattern that every ``--override PATTERN=KIND`` names, the last one counting.

    Raises:
        ConfigError: one of them has no pattern or no kind.
    """
    return dict(map(_override, texts))


def _override(text: str) -> tuple[str, Kind]:
    pattern, sign, kind = text.rpartition("=")
    if not (sign and pattern):
        raise ConfigError(f"override: must be PATTERN=KIND, got {text!r}")
    return pattern, cast(Kind, kind)  # parameter_table looks at it


def storage_of(url: str | None, study_name: str | None = None) -> "Storage | None":
    """Return the database that ``--storage`` names, or None where it is not given.

    Raises:
        ConfigError: it is no database's URL, or a study is named without one.
    """
    if url is None:
        if study_name is not None:
            raise ConfigError("study_name: needs --storage")
        return None
    from widthwise.search.storage import Storage

    return Storage.parse(url, study_name=study_name)
