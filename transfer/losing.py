"""Ends a target run that has lost what it stands on, before Ray waits for it or ends this process."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread

from widthwise.proxies.storage import Place
from widthwise.proxies.validation import RunError
from widthwise.search.nodes import local_death
from widthwise.transfer.run_folder import gone

SECONDS_BETWEEN_LOOKS = 0.25
# Who ends all processes of a job ends this one with Ray's: its own signal comes first then.
SECONDS_OF_GRACE = 1.5
# Longer than the repeats of a SIGTERM that `ray_session` takes for one.
SECONDS_BETWEEN_SIGNALS = 2.5

Loss = tuple[str, float]
"""What is said of it, and the seconds after which this process, if it lives still, is to end by it."""


def lost(out: Place) -> Loss | None:
    """Return that a run's local Ray, or its folder, has gone; None while both are there."""
    death, told = local_death(), gone(out)
    if death is not None:
        return f"{death}; go on with --resume", SECONDS_OF_GRACE if death.was_asked_for else 0.0
    return None if told is None else (told, 0.0)


@contextmanager
def ended_where_lost(find: Callable[[], Loss | None]) -> Iterator[None]:
    """Raise a RunError in the main thread, whatever that waits for, once `find` returns a loss.

    For use within `ray_session`, which makes a KeyboardInterrupt of the SIGTERM that this process sends itself. In
    another thread nothing is looked for, because no signal ends its waiting.
    """
    if current_thread() is not main_thread():
        yield
        return
    watch = _Watch(find)
    watch.start()
    try:
        try:
            yield
        finally:
            watch.end()
    except KeyboardInterrupt:
        if watch.loss is None:
            raise
        raise RunError(watch.loss[0]) from None
    except Exception as error:
        # Ray may notice it earlier, and tells it at length.
        loss = watch.loss or find()
        if loss is None:
            raise
        raise RunError(loss[0]) from error


class _Watch(Thread):
    """Looks for a loss, and interrupts the main thread where there is one."""

    def __init__(self, find: Callable[[], Loss | None]) -> None:
        super().__init__(name="losing", daemon=True)
        self.find, self.ended = find, Event()
        self.loss: Loss | None = None

    def run(self) -> None:
        while not self.ended.wait(SECONDS_BETWEEN_LOOKS):
            found = self.find()
            if found is not None and not self.ended.wait(found[1]):
                self.loss = found
                self._interrupt()

    def end(self) -> None:
        self.ended.set()
        self.join()

    def _interrupt(self) -> None:
        """Interrupt until that ends something: Python drops what is raised while it happens to be in a destructor."""
        main = main_thread().ident
        assert main is not None
        while not self.ended.is_set():
            signal.pthread_kill(main, signal.SIGTERM)
            self.ended.wait(SECONDS_BETWEEN_SIGNALS)
