"""Signs of life of a long run between its evaluations, in a file for whoever looks from outside."""

import time
from contextlib import suppress
from pathlib import Path

from widthwise.proxies.files import read_json, write_json
from widthwise.proxies.storage import Place, place
from widthwise.proxies.validation import ConfigError, Record

PULSE = "pulse.json"
"""The file's name in a run's folder."""
# On a file system, and on storage that charges for each write.
SECONDS_BETWEEN_BEATS = 5.0
SECONDS_BETWEEN_REQUESTS = 60.0


class Beat(Record):
    """How far a run is.

    Attributes:
        started: seconds since 1970 at which these workers began.
        workers: how many they are.
        first_step: steps that were done when they began.
        step: steps that are done.
        tokens_per_second: since the beat before; None in the first.
    """

    started: float
    workers: int
    first_step: int
    step: int
    tokens_per_second: float | None


def last_beat(path: Place) -> Beat | None:
    """Return the beat in a file, or None where there is none that can be read."""
    try:
        return Beat.parse(read_json(path, "a sign of life"))
    except (OSError, ConfigError):
        return None


class Pulse:
    """Writes a `Beat` at the first call and every few seconds from then on.

    Args:
        path: the file, a path or a URI; None writes nothing.
        workers: how many train.
        batch_tokens: tokens of a step.
    """

    def __init__(self, path: str | None, *, workers: int, batch_tokens: int) -> None:
        self.path = None if path is None else place(path)
        self.pause = SECONDS_BETWEEN_BEATS if isinstance(self.path, Path) else SECONDS_BETWEEN_REQUESTS
        self.workers, self.batch_tokens = workers, batch_tokens
        self.first: tuple[float, int] | None = None
        self.last = 0.0, 0

    def beat(self, step: int) -> None:
        """Say that so many steps are done, where it is time to."""
        if self.path is None:
            return
        now, (then, done), speed = time.monotonic(), self.last, None
        if self.first is None:
            self.first = time.time(), step
        elif now < then + self.pause:
            return
        else:
            speed = (step - done) * self.batch_tokens / (now - then)
        self.last = now, step
        started, first_step = self.first
        found = Beat(
            started=started,
            workers=self.workers,
            first_step=first_step,
            step=step,
            tokens_per_second=speed,
        )
        # What ends a run is a checkpoint that cannot be written, not this, whatever a storage raises.
        with suppress(Exception):
            write_json(self.path, found.model_dump())
