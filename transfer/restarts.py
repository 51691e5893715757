"""Ray Train's controller is told here which failures end a run; imported with Ray, never before it."""

from typing import Any

from ray.train import UserCallback

from widthwise.proxies.storage import Place
from widthwise.proxies.validation import RunError, last_line
from widthwise.transfer.failures import last_checkpoint

RETRIES = 3
"""Times that the workers are started again after the same checkpoint."""


class Restarts(UserCallback):
    """Ends a run by an exception, which Ray Train does not retry; other failures it retries without an end.

    A run ends where a worker says why it failed, or where workers die again and again without a new checkpoint
    in between.
    """

    def __init__(self, out: Place) -> None:
        self.out = out
        self.deaths, self.step = 0, last_checkpoint(out)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise what ends the run, or return to have the workers started again."""
        for error in worker_exceptions.values():
            if isinstance(error, RunError):
                raise error
        try:
            step = last_checkpoint(self.out)
        except OSError:
            # An object store that does not answer for a moment is no reason to end a run.
            step = self.step
        self.deaths = self.deaths + 1 if step == self.step else 1
        self.step = step
        if self.deaths > RETRIES:
            after = "before the first checkpoint" if step is None else f"after the checkpoint of step {step}"
            told = last_line(next(iter(worker_exceptions.values())))
            raise RunError(f"workers died {self.deaths} times {after} ({told}); go on with --resume")
