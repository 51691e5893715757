"""A target run's evaluations for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from widthwise.search.trackers import TensorBoardRun

_AXES = ("step", "tokens")


class TensorBoard:
    """One run in the folder ``tensorboard``, of every number that an evaluation has."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "tensorboard" / "target"
        self.run: TensorBoardRun | None = None

    def draw(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add the last of the run's evaluations; begin anew, with all of them, in a process that has not drawn yet."""
        new = lines[-1:]
        if self.run is None:
            self.run, new = TensorBoardRun(self.folder), lines
        for line in new:
            self.run.scalars(line["tokens"], _scalars(line))


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in line.items() if isinstance(value, int | float) and name not in _AXES
    }
