"""What rank 0 of a target run writes at every evaluation, and whether the run goes on after it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from widthwise.proxies.files import write_atomic
from widthwise.proxies.outcome import Metrics
from widthwise.proxies.storage import Place
from widthwise.transfer.tensorboard import TensorBoard
from widthwise.transfer.watching.alarms import Alarm, Watcher, measured
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
    """A run's evaluations and alarms; one that is begun again goes on with those that its folder has.

    Args:
        out: the run's folder, for ``metrics.jsonl``, ``alarms.jsonl``, and on a file system ``tensorboard``.
        watch: what the run is compared with, or None.
        peak: floating-point operations a second that the devices of all workers could do together; None where unknown.
        abort: whether an alarm stops the run.
    """

    def __init__(
        self, out: Place, watch: Watch | None, *, peak: float | None = None, abort: bool = False
    ) -> None:
        self.watch, self.peak, self.abort = watch, peak, abort
        self.watcher: Watcher | None = None
        self.metrics, self.alarms = StepLines(out / "metrics.jsonl"), StepLines(out / "alarms.jsonl")
        self.tensorboard = TensorBoard(out) if isinstance(out, Path) else None

    def add(self, metrics: Metrics) -> bool:
        """Take an evaluation; return whether the run should stop."""
        before = [line for line in self.metrics.lines if line["step"] < metrics.step]
        found = [] if self.watch is None else self._look(self.watch, before, metrics)
        # The alarms first: who reads an evaluation has its alarms.
        self.alarms.add(metrics.step, [asdict(alarm) for alarm in found])
        self.metrics.add(metrics.step, [{**asdict(metrics), **self._utilisation(before, metrics)}])
        if self.tensorboard is not None:
            self.tensorboard.draw(self.metrics.lines)
        return self.abort and bool(found)

    def ending(self) -> dict[str, Any]:
        """Return what ``result.json`` says besides the run's own result."""
        # Where nothing is judged, no alarms would sound like a sound run.
        if self.watch is None or not self.watch.bands:
            return {}
        return {"alarms": first_of_each(self.alarms.lines)}

    def _look(self, watch: Watch, before: Sequence[Mapping[str, Any]], metrics: Metrics) -> list[Alarm]:
        if self.watcher is None:
            self.watcher = Watcher(watch)
            # An alarm, and its cause, may need what was seen before the run was begun again.
            for one in TypeAdapter(list[Metrics]).validate_python(before):
                self.watcher.look(one.step, one.tokens, measured(one))
        return self.watcher.look(metrics.step, metrics.tokens, measured(metrics))

    def _utilisation(self, before: Sequence[Mapping[str, Any]], metrics: Metrics) -> dict[str, float]:
        """Return the model FLOPs utilisation (MFU, arXiv 2204.02311), of the run's whole time."""
        if self.peak is None or metrics.flops is None or metrics.seconds <= 0:
            return {}
        # The workers may have been others, or more, until the last evaluation.
        last = before[-1] if before else {}
        could, since = (last["flops"] / last["mfu"], last["seconds"]) if last.get("mfu") else (0.0, 0.0)
        return {"mfu": metrics.flops / (could + (metrics.seconds - since) * self.peak)}
