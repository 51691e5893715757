"""``widthwise table``: every parameter's kind and width multiplier, of a model in the current folder."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from tyro.conf import Positional

from widthwise.proxies.validation import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Table:
    """Show how your own model's parameters scale: kind, width multiplier, whether normalised."""

    build: Positional[str]
    """MODULE:FUNCTION that returns the model of a given width; the module may lie in the current folder."""
    width: int
    """Width of the target."""
    base_width: int
    """Width of the proxy, where all multipliers are 1."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self) -> int:
        """Print the table on standard output."""
        from widthwise.proxies.shapes import parameter_table

        for name in ("width", "base_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be >= 1, got {getattr(self, name)}")
        # Standard output is for the table alone, whatever the user's module prints.
        with redirect_stdout(sys.stderr):
            build = _guarded(_found(self.build))
            table = parameter_table(build, width=self.width, base_width=self.base_width)
        if self.json:
            from json import dumps

            print(dumps(asdict(table), indent=2))
            return 0
        from rich.console import Console

        Console().print(table.table())
        return 0


def _guarded(build: Callable[[int], Any]) -> Callable[[int], Any]:
    """Return `build` with its errors as a user's in one line."""
    from torch import nn

    def guarded(width: int) -> nn.Module:
        try:
            model = build(width)
        except Exception as error:
            raise ConfigError(f"build: failed at width {width}: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ConfigError(f"build: must return a torch.nn.Module, got {model!r}")
        return model

    return guarded


def _found(build: str) -> Callable[[int], Any]:
    module, colon, name = build.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ConfigError(f"build: must be MODULE:FUNCTION, got {build!r}")
    sys.path.insert(0, "")  # the current folder, which an installed command does not search
    try:
        home = import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"build: no module {error.name!r} for {build!r}") from None
    if not callable(function := getattr(home, name, None)):
        near = nearest(name, [one for one in vars(home) if callable(getattr(home, one))])
        raise ConfigError(f"build: module {module!r} has no function {name!r}{near}")
    found: Callable[[int], Any] = function
    return found
