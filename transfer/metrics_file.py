"""What a target run writes at every evaluation: ``metrics.jsonl``, and the same for TensorBoard."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from widthwise.proxies.files import write_atomic
from widthwise.proxies.outcome import Metrics
from widthwise.search.trackers import TensorBoardRun

_AXES = ("step", "tokens")


class MetricsFile:
    """A line per evaluation, each step once, also after a resumption; TensorBoard's run is written after the lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.run: TensorBoardRun | None = None
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, metrics: Metrics) -> None:
        """Append an evaluation, in place of any that a lost stretch of the run left behind."""
        self.lines = [line for line in self.lines if line["step"] < metrics.step] + [asdict(metrics)]
        write_atomic(self.path, "".join(f"{json.dumps(line)}\n" for line in self.lines))
        self._draw()

    def _draw(self) -> None:
        """Add the last line to TensorBoard's run, which is begun anew after a resumption."""
        new = self.lines[-1:]
        if self.run is None:
            self.run, new = TensorBoardRun(self.path.parent / "tensorboard" / "target"), self.lines
        for line in new:
            self.run.scalars(line["tokens"], _scalars(line))


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in line.items() if isinstance(value, int | float) and name not in _AXES
    }
