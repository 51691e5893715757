"""Live progress on standard error; a study's: trials done, best loss, time left."""

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from widthwise.search.standard_error import standard_error
from widthwise.search.view import BarAndLines, best_line, counts_line

if TYPE_CHECKING:
    from widthwise.search.books import Books


def console(*, enabled: bool = True) -> Console:
    """Return the console of progress: standard error, so that standard output stays a command's result.

    Where nobody reads that any more, the work goes on.
    """
    return Console(file=standard_error(), quiet=not enabled)


def say(line: str, enabled: bool) -> None:
    """Print a line of progress."""
    console(enabled=enabled).print(line, highlight=False, markup=False, soft_wrap=True)


class _TimeLeft(ProgressColumn):
    """The time until the task's field ``ends``, of the monotonic clock; nothing where that is not known.

    Rich's own goes by how fast the bar has grown, which a study's does by leaps: a trial that is stopped early counts
    whole, and nothing is known until one has ended.
    """

    def render(self, task: Task) -> Text:
        ends = task.fields.get("ends")
        if ends is None:
            return Text("")
        left = timedelta(seconds=max(0, round(ends - time.monotonic())))
        return Text(f"about {left} left", style="progress.remaining")


def progress_bar(name: str, screen: Console, *left: ProgressColumn | str) -> BarAndLines:
    """Return a bar with elapsed time, and the time left by `left` or else by rich; it shows only on a terminal."""
    return BarAndLines(
        TextColumn(name),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        *(left or (TextColumn("left"), TimeRemainingColumn())),
        console=screen,
        disable=screen.quiet or not screen.is_terminal,
    )


class Progress:
    """A study's bar on a terminal, a line per finished trial elsewhere."""

    def __init__(self, books: "Books", *, enabled: bool = True) -> None:
        self.books = books
        self.console = console(enabled=enabled)
        self.bar = progress_bar(books.layout.what, self.console, _TimeLeft())
        # What every trial reported last, and what is to come.
        self.latest: dict[int, Mapping[str, Any]] = {}
        self._look()
        self.task = self.bar.add_task("", total=self.total)

    def __enter__(self) -> Self:
        self.bar.start()
        self.say("starting Ray")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def began(self, number: int) -> None:
        """Say so of the first trial: until it ends there is nothing to say, and that may take long."""
        if not self.latest:
            self.say("starting the first trials")
        self._look()
        self.latest[number] = {}

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """Redraw after an evaluation of a trial, of whose steps the share ``progress`` is behind it."""
        if "error" in result and "error" not in self.latest[number]:
            self.warn(f"{self.books.label(self.books.record(number))}: {result['error']}")
        self.latest[number] = result
        self._draw()

    def died(self, number: int) -> None:
        """Say that a trial is started again."""
        name = self.books.label(self.books.record(number))
        self.warn(f"{name}: its worker died; it is started again, from its last checkpoint")

    def ended(self, number: int) -> None:
        """Redraw after a trial has ended."""
        told = {record["number"] for record in self.records}
        self._look()
        for record in self.records:
            if record["number"] not in told:
                self._say(record)
        self._draw()

    def seconds_left(self) -> float | None:
        """Return how long the study goes on by what its trials have taken so far; None where that is not known."""
        spent = [one.get("seconds", 0.0) for one in self._running()]
        return self.outlook.seconds_left(spent, self.books.places)

    def say(self, doing: str) -> None:
        """Say what is being done: beside the bar on a terminal, in a line elsewhere."""
        self.bar.update(self.task, description=doing)
        if not self.console.is_terminal:
            self._print(doing)

    def warn(self, said: str) -> None:
        """Print a line of something that went wrong, above the bar where there is one."""
        self._print(f"widthwise: {said}")

    def _look(self) -> None:
        """Ask the books; not at every evaluation: a study on a server answers each question in its time."""
        self.records, self.outlook = self.books.records(), self.books.outlook()
        self.total = len(self.records) + self.outlook.trials

    def _print(self, line: str) -> None:
        self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _say(self, record: Mapping[str, Any]) -> None:
        """Print how a trial ended; on a terminal, where the bar says the rest, only if it failed."""
        name = f"{self.books.label(record)}{_role(record)}"
        if record["status"] == "failed":
            from widthwise.search.packing import OUT_OF_MEMORY  # imports torch, which a trial has done by now

            said = f"{name} failed: {record['error'] or 'the worker died'}"
            if OUT_OF_MEMORY in said:
                said += " (fewer at a time from now on; --gpus-per-trial and --concurrency say how many)"
        elif self.console.is_terminal:
            return
        else:
            loss = "-" if record["loss"] is None else f"{record['loss']:.4f}"
            said = f"{name} {record['status']}, loss {loss}; {self._standing()}"
        self._print(said)

    def _standing(self) -> str:
        left = self.seconds_left()
        when = "" if not left else f", about {timedelta(seconds=round(left))} left"
        return f"{len(self.records)}/{self.total} trials{when}"

    def _running(self) -> list[Mapping[str, Any]]:
        """Return what each running trial reported last, nothing of one that has not yet; others wait for a place."""
        latest = [self.latest.get(number, {}) for number in self.books.live]
        return sorted(latest, key=lambda one: not one)[: self.books.places]

    def _draw(self) -> None:
        running, best = self._running(), best_line(self.records)
        self.bar.lines = [counts_line(self.records, running), *([best] if best else [])]
        left = self.seconds_left()
        self.bar.update(
            self.task,
            completed=len(self.records) + sum(one.get("progress", 0.0) for one in running),
            total=self.total,
            description=f"{len(self.records)}/{self.total} trials",
            ends=None if left is None else time.monotonic() + left,
        )


def _role(record: Mapping[str, Any]) -> str:
    """Return what a sweep's trial is for, where it is no proposal; a check's runs are named by it."""
    if record.get("confirms") is not None:
        return f" (confirms trial {record['confirms']} with seed {record['seed']})"
    return " (fitted minimum)" if record.get("fitted") else ""
