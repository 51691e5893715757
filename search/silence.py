"""A head of Ray that does not answer: said after seconds, and after a minute the process ends.

Whoever asks it waits within Ray, where no Ctrl-C is heard: for ever where its process hangs, and where it is gone until
Ray ends the process, with words of its own. Tune asks it too, so that a thread of ours does nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread, Timer
from typing import Any

import ray

from widthwise.search.nodes import local_death

# A look asks Ray's own process, which answers within a millisecond or so.
SECONDS_BETWEEN_LOOKS = 2.0
# For which Ray's head may be busy.
SECONDS_OF_SILENCE = 5.0
# A little less than Ray itself waits for a head that is gone.
SECONDS_TO_THE_END = 55.0
SILENT = "Ray's head does not answer; if that lasts a minute, the sweep ends here: go on with --resume then"
NO_ANSWER = "Ray's head has not answered for a minute"


class Head:
    """Ray's head, asked for its nodes every few seconds by a thread of its own, within the context."""

    def __init__(self, warn: Callable[[str], None], end: Callable[[str], object]) -> None:
        """Take what is called where it does not answer, as `not_for_ever` does."""
        self._warn, self._end, self._left = warn, end, Event()
        self._thread = Thread(target=self._look, name="head", daemon=True)
        self.nodes: Sequence[Mapping[str, Any]] | None = None
        """Those that were alive at the last look; None before the first."""

    def __enter__(self) -> "Head":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._left.is_set():
            # What a head that is gone raises; the next look waits for it.
            with suppress(Exception), not_for_ever(self._warn, self._end):
                nodes = ray.nodes()  # type: ignore[no-untyped-call]
                self.nodes = [node for node in nodes if node["Alive"]]
            self._left.wait(SECONDS_BETWEEN_LOOKS)


@contextmanager
def not_for_ever(warn: Callable[[str], None], end: Callable[[str], object]) -> Iterator[None]:
    """Watch over a question to Ray's head.

    Args:
        warn: is called, from another thread, after some seconds without an answer.
        end: shall end the process and is told why, from another thread: after a minute, or at once where what does not
            answer is a local Ray that has died.
    """

    def said() -> None:
        death = local_death()
        if death:
            end(str(death))
        else:
            warn(SILENT)

    timers = [Timer(SECONDS_OF_SILENCE, said), Timer(SECONDS_TO_THE_END, end, [NO_ANSWER])]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
