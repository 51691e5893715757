"""``MODULE:FUNCTION``: a user's own function, named on the command line."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from widthwise.proxies.validation import ConfigError, nearest, one_line


def referenced(field: str, reference: str, folder: Path) -> Callable[..., Any]:
    """Return the function that ``MODULE:FUNCTION`` names; the module is imported.

    Args:
        field: the option that names it, for messages.
        reference: the module, which may lie in `folder`, and the function.
        folder: searched before the places that Python knows.

    Raises:
        ConfigError: there is no such module or function, or importing the module fails.
    """
    module, colon, name = reference.partition(":")
    if module.endswith(".py"):
        raise ConfigError(f"{field}: must be MODULE:FUNCTION, the module without .py, got {reference!r}")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ConfigError(f"{field}: must be MODULE:FUNCTION, got {reference!r}")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        home = import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise ConfigError(f"{field}: no module {error.name!r} for {reference!r}") from None
        raise ConfigError(f"{field}: importing {module!r} failed: {_told(error)}") from error
    if not callable(function := getattr(home, name, None)):
        near = nearest(name, [one for one in vars(home) if callable(getattr(home, one))])
        raise ConfigError(f"{field}: module {module!r} has no function {name!r}{near}")
    found: Callable[..., Any] = function
    return found


def _told(error: BaseException) -> str:
    """Return what was raised, and what that was raised for: some packages hide the mistake behind one of their own."""
    said = f"{type(error).__name__}: {one_line(error)}"
    return said if error.__cause__ is None else f"{said} ({_told(error.__cause__)})"


def local_source(reference: str, folder: Path) -> list[Path]:
    """Return the package or file of `folder` that holds a ``MODULE:FUNCTION``, to be sent elsewhere; often none."""
    top = folder / reference.partition(":")[0].partition(".")[0]
    return [place for place in (top, top.with_suffix(".py")) if place.exists()]
