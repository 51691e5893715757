"""What a study is expected to take yet, by what its trials have taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Outlook:
    """What a study is expected to take yet.

    Attributes:
        trials: that have not ended, the running ones among them.
        seconds: that these take in all, one after the other, from their beginnings; None where nothing tells.
    """

    trials: int
    seconds: float | None

    def seconds_left(self, spent: Sequence[float], at_a_time: int) -> float | None:
        """Return the time until the study ends, where running trials have `spent` so many seconds each."""
        if self.seconds is None or not self.trials:
            return self.seconds
        usual = self.seconds / self.trials
        behind = sum(min(seconds, usual) for seconds in spent)
        return (self.seconds - behind) / min(at_a_time, self.trials)


def of_sweep(records: Sequence[Mapping[str, Any]], *, tokens: int, proposals: int, others: int) -> Outlook:
    """Return what is expected of a sweep's trials; no seconds until a proposal has completed the whole horizon.

    Proposals take as long as those that have ended, stopped and diverged ones too. What confirms them runs to its end,
    and measures on the way: as long as such trials, once there is one, until then as completed proposals.

    Args:
        records: the trials that have ended, as in ``trials.jsonl``.
        tokens: the whole horizon.
        proposals: that have not ended.
        others: trials that have not ended and are no proposals.
    """
    ended = [one for one in records if one["status"] != "failed"]
    proposed = [one for one in ended if one["confirms"] is None and not one["fitted"]]
    whole = [one["seconds"] for one in proposed if one["status"] == "completed" and one["horizon"] == tokens]
    if not whole:
        return Outlook(proposals + others, None)
    again = [
        one["seconds"]
        for one in ended
        if one["status"] == "completed" and (one["confirms"] is not None or one["fitted"])
    ]
    seconds = proposals * fmean(one["seconds"] for one in proposed) + others * fmean(again or whole)
    return Outlook(proposals + others, seconds)
