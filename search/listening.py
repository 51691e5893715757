"""Who is told what trials do: the progress on the terminal, the experiment trackers."""

from collections.abc import Mapping
from typing import Any, Protocol


class Listener(Protocol):
    """Is told in the driver what trials do; must not hold it up."""

    def began(self, number: int) -> None:
        """Trial `number` is handed out, anew or again after an interruption."""

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """An evaluation: ``step``, ``loss``, ``tokens``, ``seconds``, the share of the steps, ``progress``, and where
        something went wrong that did not end the trial, ``error``.
        """

    def died(self, number: int) -> None:
        """The worker of a trial died; the trial is handed out again, and goes on from its checkpoint."""

    def ended(self, number: int) -> None:
        """The books know how the trial ended."""
