"""A target run's progress and alarms on standard error, read from its files as the workers write them."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.progress import Progress as Bar

from widthwise.proxies.pulse import PULSE, last_beat
from widthwise.proxies.storage import Place
from widthwise.search.progress import console, progress_bar
from widthwise.transfer.watching.telling import told

# On this machine's file systems, and on storage that charges for each look.
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_REQUESTS = 5.0
# Without a bar a line says how far the run is when so long nothing else was said.
SECONDS_OF_SILENCE = 60.0

Say = Callable[[str], None]


@contextmanager
def following(
    out: Place, steps: int, *, begun: str | None = None, done: int | None = None, enabled: bool = True
) -> Iterator[Say]:
    """Show how far the run in a folder is: a bar on a terminal, lines elsewhere; alarms a line each.

    Of the alarms of one quantity and kind the first is shown, and of what causes several the first mention.

    Args:
        out: the run's folder, with `PULSE`, ``metrics.jsonl`` and ``alarms.jsonl``.
        steps: of the whole run.
        begun: said first.
        done: the step that a resumed run goes on from; what the file holds already is not shown again.
        enabled: whether anything is shown.

    Yields:
        A function that prints a line among the others.
    """
    screen, ended = console(enabled=enabled), Event()
    pause = SECONDS_BETWEEN_LOOKS if isinstance(out, Path) else SECONDS_BETWEEN_REQUESTS
    with progress_bar("target", screen) as bar:
        follower = _Follower(out, bar, steps, done or 0)
        if begun is not None:
            follower.say(begun)
        if done is not None:
            follower.say(f"going on from step {done}")

        def look() -> None:
            while not ended.wait(pause):
                follower.look()
            follower.look()

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield follower.say
        finally:
            ended.set()
            thread.join()


class _Follower:
    """What was shown of a run, so that it is shown once."""

    def __init__(self, out: Place, bar: Bar, steps: int, done: int) -> None:
        self.out, self.bar, self.steps = out, bar, steps
        self.task = bar.add_task("starting Ray", total=steps, completed=done)
        self.beat = last_beat(out / PULSE)
        # Known by all that they say: a stretch that is repeated takes its own time.
        self.seen = set(_lines(out / "metrics.jsonl"))
        self.raised = {_what(json.loads(line)) for line in _lines(out / "alarms.jsonl")}
        self.causes: set[tuple[str, str]] = set()
        self.said_at = time.monotonic()

    def say(self, line: str) -> None:
        self.said_at = time.monotonic()
        self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def look(self) -> None:
        """Show what is new."""
        self._pulse()
        self._evaluations()
        self._alarms()

    def _pulse(self) -> None:
        beat, before = last_beat(self.out / PULSE), self.beat
        if beat is None or beat == before:
            return
        self.beat = beat
        self.bar.update(self.task, completed=beat.step)
        if before is None or beat.started != before.started:
            workers = f"{beat.workers} worker{'s' if beat.workers > 1 else ''}"
            self.bar.update(self.task, description=f"training on {workers}")
            self.say(f"training on {workers}, from step {beat.first_step:,}")
        elif not self.bar.console.is_terminal and time.monotonic() > self.said_at + SECONDS_OF_SILENCE:
            self.say(f"step {beat.step} of {self.steps}: {beat.tokens_per_second:,.0f} tokens/s")

    def _evaluations(self) -> None:
        new = [line for line in _lines(self.out / "metrics.jsonl") if line not in self.seen]
        self.seen.update(new)
        for metrics in map(json.loads, new):
            text = f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:,.0f} tokens/s"
            if "mfu" in metrics:
                text += f", MFU {metrics['mfu']:.1%}"
            self.bar.update(self.task, completed=metrics["step"], description=text)
            if not self.bar.console.is_terminal:
                self.say(f"step {metrics['step']}: {text}")

    def _alarms(self) -> None:
        for alarm in map(json.loads, _lines(self.out / "alarms.jsonl")):
            if (what := _what(alarm)) not in self.raised:
                self.raised.add(what)
                self.say(f"widthwise: {told(alarm, self.causes)}")


def _lines(path: Place) -> list[str]:
    """Return a file's whole lines: on some storage one can be read that is still being written."""
    try:
        return path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    except OSError:
        return []  # not there yet, or not to be had just now


def _what(alarm: dict[str, Any]) -> tuple[str, str]:
    return alarm["quantity"], alarm["kind"]
