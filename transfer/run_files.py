"""What rank 0 of a target run writes at every evaluation, and what the others decide with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from widthwise.proxies.files import write_atomic
from widthwise.proxies.outcome import Metrics
from widthwise.proxies.storage import Place
from widthwise.transfer.tensorboard import TensorBoard
from widthwise.transfer.watching.alarms import Watcher, measured
from widthwise.transfer.watching.records import Watch
from widthwise.transfer.watching.telling import first_of_each


class StepLines:
    """A file of JSON lines that belong to steps, each step's once, also after a resumption; rewritten whole."""

    def __init__(self, path: Place) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append a step's lines, in place of any that a lost stretch of the run left behind."""
        kept = [line for line in self.lines if line["step"] < step]
        if len(kept) == len(self.lines) and not lines:
            return
        self.lines = [*kept, *map(dict, lines)]
        write_atomic(self.path, "".join(f"{json.dumps(line)}\n" for line in self.lines))


class Log:
    """A run's evaluations and alarms: every worker compares, and the one that writes writes.

    Args:
        out: the run's folder, for ``metrics.jsonl``, ``alarms.jsonl`` and ``tensorboard``; None writes nothing.
        watch: what the run is compared with, or None.
        peak: floating-point operations a second that the device of each of all workers could do, together; None
            where unknown.
        abort: whether an alarm stops the run.
    """

    def __init__(
        self, out: Place | None, watch: Watch | None, *, peak: float | None = None, abort: bool = False
    ) -> None:
        self.peak, self.abort = peak, abort
        self.watcher = None if watch is None else Watcher(watch)
        self.metrics = None if out is None else StepLines(out / "metrics.jsonl")
        self.alarms = None if out is None else StepLines(out / "alarms.jsonl")
        self.tensorboard = TensorBoard(out) if isinstance(out, Path) else None

    def add(self, metrics: Metrics) -> bool:
        """Take an evaluation; return whether the run should stop."""
        found = []
        if self.watcher is not None:
            found = self.watcher.look(metrics.step, metrics.tokens, measured(metrics))
        if self.metrics is not None and self.alarms is not None:
            # The alarms first: who reads an evaluation has its alarms.
            self.alarms.add(metrics.step, [asdict(alarm) for alarm in found])
            self.metrics.add(metrics.step, [{**asdict(metrics), **self._utilisation(metrics)}])
            if self.tensorboard is not None:
                self.tensorboard.draw(self.metrics.lines)
        return self.abort and bool(found)

    def ending(self) -> dict[str, Any]:
        """Return what ``result.json`` says besides the run's own result."""
        # Where nothing is judged, no alarms would sound like a sound run.
        if self.watcher is None or not self.watcher.watch.bands or self.alarms is None:
            return {}
        return {"alarms": first_of_each(self.alarms.lines)}

    def _utilisation(self, metrics: Metrics) -> dict[str, float]:
        """Return the model FLOPs utilisation (MFU, arXiv 2204.02311), of the run's whole time."""
        if self.peak is None or metrics.flops is None or metrics.seconds <= 0:
            return {}
        return {"mfu": metrics.flops / (metrics.seconds * self.peak)}
