"""What a sweep tells experiment trackers, from a thread of its own: a slow server holds up no trial.

The study is the truth. A trial that is begun again is told anew, and one whose end a tracker has not seen, because the
sweep was killed or the tracker was not asked for then, is told when the sweep is resumed.
"""

import json
import math
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self

from widthwise.proxies.files import read_json, write_atomic
from widthwise.proxies.validation import ConfigError, one_line
from widthwise.search.books import Books, trial_name
from widthwise.search.trackers import Begin, Run, Settings, Tracker, begin_with

Told = Callable[[str], None]

# What trackers are given to hear the last of a sweep that is interrupted; a finished one waits for them.
SECONDS_TO_LEAVE = 5.0


class Tracking:
    """Tells each of a sweep's trackers what its trials do.

    Args:
        books: the sweep; ``tracked.json`` in its folder holds which trials each tracker has seen the end of.
        trackers: who is told.
        tokens_per_step: what a step of the trials takes.
        warn: is told of a tracker that failed.
    """

    def __init__(
        self, books: Books, trackers: tuple[Tracker, ...], *, tokens_per_step: int, warn: Told
    ) -> None:
        self.books, self.tokens_per_step, self.warn = books, tokens_per_step, warn
        self.path = books.out / "tracked.json"
        book = self._book()
        self.sweep: str = book.get("sweep") or secrets.token_hex(4)
        self.seen: dict[str, list[str]] = book.get("seen", {})
        self.channels = [_Channel(one, books.out, self.sweep) for one in trackers]
        self.steps: dict[str, int] = {}
        self.waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A daemon: the process does not wait for a server that never answers.
        self.thread = Thread(target=self._work, name="trackers", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        if self.channels:
            # Before any run begins: one that a kill interrupts is to be known again.
            self._save()
        for channel in self.channels:
            self._catch_up(channel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self.channels:
            self._tell(channel, channel.leave)
        self.waiting.put(None)
        self.thread.join(SECONDS_TO_LEAVE)
        if not self.thread.is_alive():
            return
        untold = f"{', '.join(one.tracker for one in self.channels if one.works)} did not answer in time"
        if error is None and self.books.is_finished():
            self.warn(f"{untold}; waiting, Ctrl-C gives up")
            self.thread.join()
        else:
            for channel in self.channels:
                channel.works = False
            self.warn(f"{untold}, and the last was not told; --resume makes up for it")

    def began(self, number: int) -> None:
        """Tell of a trial that begins or goes on, and of all that is known of it."""
        for channel in self.channels:
            self._begin(channel, self.books.record(number))

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """Tell of an evaluation; one that was told before, or is not finite, is passed over."""
        name, step, loss = trial_name(number), result["step"], result["loss"]
        if not math.isfinite(loss) or step <= self.steps.get(name, 0):
            return
        self.steps[name] = step
        for channel in self.channels:
            self._tell(channel, channel.point, name, step * self.tokens_per_step, loss)

    def died(self, number: int) -> None:
        """Nothing: the trial's run stays open until it is begun again."""

    def ended(self, number: int) -> None:
        """Tell of the end of a trial that began."""
        for channel in self.channels:
            self._end(channel, self.books.record(number))

    def _book(self) -> dict[str, Any]:
        """Return what the trackers have seen; nothing where its file is damaged, which is not worth a sweep."""
        if not self.path.exists():
            return {}
        try:
            return read_json(self.path, "what trackers have seen")
        except ConfigError as error:
            self.warn(f"{error}; trackers are told of all trials anew")
            return {}

    def _catch_up(self, channel: "_Channel") -> None:
        """Tell a tracker of the finished trials whose end it has not seen."""
        seen = set(self.seen.get(channel.tracker, []))
        for record in self.books.records():
            if trial_name(record["number"]) not in seen:
                self._begin(channel, record)
                self._end(channel, record)

    def _begin(self, channel: "_Channel", record: Mapping[str, Any]) -> None:
        name = trial_name(record["number"])
        self._tell(channel, channel.begin, name, _settings(record))
        for step, loss in record["curve"]:
            self.steps[name] = step
            self._tell(channel, channel.point, name, step * self.tokens_per_step, loss)

    def _end(self, channel: "_Channel", record: Mapping[str, Any]) -> None:
        name = trial_name(record["number"])
        self._tell(channel, channel.end, name, record["status"])
        self._tell(channel, self._saw_end, channel.tracker, name)

    def _saw_end(self, tracker: str, name: str) -> None:
        self.seen.setdefault(tracker, []).append(name)
        self._save()

    def _save(self) -> None:
        write_atomic(self.path, json.dumps({"sweep": self.sweep, "seen": self.seen}) + "\n")

    def _tell(self, channel: "_Channel", what: Callable[..., None], *arguments: Any) -> None:
        def told() -> None:
            if channel.works:
                try:
                    what(*arguments)
                except Exception as error:
                    reason = _without_secrets(one_line(f"{type(error).__name__}: {error}"))
                    if channel.works:
                        self.warn(f"{channel.tracker} is told no more ({reason}); --resume makes up for it")
                    channel.works = False

        self.waiting.put(told)

    def _work(self) -> None:
        for told in iter(self.waiting.get, None):
            told()


class _Channel:
    """A tracker and its open runs; used in the trackers' thread alone."""

    def __init__(self, tracker: Tracker, out: Path, sweep: str) -> None:
        self.tracker, self.out, self.sweep = tracker, out, sweep
        self.works = True
        self.runs: dict[str, Run] = {}
        self._begin: Begin | None = None

    def begin(self, name: str, settings: Settings) -> None:
        # Here, because a server may take its time to answer.
        self._begin = self._begin or begin_with(self.tracker, self.out, self.sweep)
        if name in self.runs:
            # Of a worker that died: a server takes no second run of the name while the first is open.
            self.end(name, None)
        self.runs[name] = self._begin(name, settings)

    def point(self, name: str, tokens: int, loss: float) -> None:
        self.runs[name].point(tokens, loss)

    def end(self, name: str, status: str | None) -> None:
        self.runs.pop(name).end(status)

    def leave(self) -> None:
        """Put away the runs of trials that have not ended."""
        for name in list(self.runs):
            self.end(name, None)


def _without_secrets(said: str) -> str:
    """Return a text without the users and passwords of the URLs in it: a server's address may have them."""
    return re.sub(r"//[^/@\s]*@", "//***@", said)


def _settings(record: Mapping[str, Any]) -> Settings:
    """Return what distinguishes a trial from the sweep's others; c is missing where there is none."""
    hyperparameters = {k: v for k, v in record["hyperparameters"].items() if v is not None}
    return {**hyperparameters, "width": record["width"], "seed": record["seed"]}
