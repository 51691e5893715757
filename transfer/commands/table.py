"""``widthwise table``: every parameter's kind and width multiplier, of a model in the current folder."""

import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from widthwise.proxies.validation import ConfigError


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
        from widthwise.proxies.building import find_build
        from widthwise.proxies.shapes import parameter_table

        for name in ("width", "base_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be >= 1, got {getattr(self, name)}")
        # Standard output is for the table alone, whatever the user's module prints.
        with redirect_stdout(sys.stderr):
            build = find_build(self.build, Path.cwd())
            table = parameter_table(build, width=self.width, base_width=self.base_width)
        if self.json:
            from json import dumps

            print(dumps(asdict(table), indent=2))
            return 0
        from rich.console import Console

        Console().print(table.table())
        return 0
