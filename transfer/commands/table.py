"""``widthwise table``: every parameter's kind and width multiplier, of a model in the current folder."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional, UseAppendAction

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.commands.options import Flag, Option, overrides

if TYPE_CHECKING:
    from widthwise.proxies.table import ParameterTable


@dataclass(frozen=True, kw_only=True)
class Table:
    """Show how your own model's parameters scale: kind, width multiplier, whether AdamC corrects their decay."""

    build: Positional[str]
    """MODULE:FUNCTION that returns the model of a given width; the module may lie in the current folder."""
    width: int
    """Width of the target."""
    base_width: int
    """Width of the proxy, where all multipliers are 1."""
    delta_width: Option[int] = None
    """Another width that build takes, to see what grows; twice the base width if not given."""
    override: UseAppendAction[tuple[str, ...]] = ()
    """PATTERN=KIND for parameters whose shapes do not tell their kind: matrix, embedding, readout, gain, bias."""
    transposed: UseAppendAction[tuple[str, ...]] = ()
    """PATTERN of matrices that are kept (in, out)."""
    out: Option[Path] = None
    """File to write the table to as well; ParameterTable.load reads it."""
    csv: Flag = False
    """Print comma-separated values instead of a table."""
    json: Flag = False
    """Print one JSON document instead of a table."""

    def run(self) -> int:
        """Print the table on standard output."""
        from widthwise.proxies.building import find_build
        from widthwise.proxies.shapes import parameter_table

        self._require_possible()
        kinds = overrides(self.override)
        # Standard output is for the table alone, whatever the user's module prints.
        with redirect_stdout(sys.stderr):
            table = parameter_table(
                find_build(self.build, Path.cwd()),
                width=self.width,
                base_width=self.base_width,
                delta_width=self.delta_width,
                overrides=kinds,
                transposed=self.transposed,
            )
        if self.out is not None:
            _save(table, self.out)
        self._print(table)
        return 0

    def _require_possible(self) -> None:
        for name in ("width", "base_width", "delta_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be >= 1, got {value}")
        if self.csv and self.json:
            raise ConfigError("csv: must not be given together with json")

    def _print(self, table: "ParameterTable") -> None:
        if self.json:
            from json import dumps

            print(dumps(table.as_json(), indent=2))
        elif self.csv:
            _print_csv(table)
        else:
            from rich.console import Console

            Console().print(table.table())


def _save(table: "ParameterTable", path: Path) -> None:
    try:
        table.save(path)
    except OSError as error:
        raise ConfigError(f"out: {path} cannot be written ({error.strerror})") from None


def _print_csv(table: "ParameterTable") -> None:
    from csv import DictWriter

    from widthwise.proxies.table import ParameterEntry

    rows = DictWriter(sys.stdout, ["parameter", *ParameterEntry.model_fields], lineterminator="\n")
    rows.writeheader()
    for name, entry in table.items():
        shape = "x".join(map(str, entry.shape))
        rows.writerow({"parameter": name, **entry.model_dump(), "shape": shape})
