"""Which trials are stopped: asynchronous successive halving (arXiv 1810.05934), from the learning curves alone.

Optuna's own pruner writes down that a trial has reached a rung, and then decides: a sweep that is killed in between
never asks again. The curves can be asked anew, and answer as before unless others have come to the rung since.
"""

from collections.abc import Iterable, Iterator, Mapping

# assumed: one in so many of the trials that reach a rung goes on.
REDUCTION = 2

Curve = Mapping[int, float]
"""Validation loss by step."""


def is_behind(curve: Curve, others: Iterable[Curve], *, first: int) -> bool:
    """Return whether a trial should stop after the last evaluation in its curve.

    It should where that evaluation is the first at a rung or beyond, and its loss not among the best of those with
    which trials came there, one in `REDUCTION` of them and one at least.

    Args:
        curve: the trial's.
        others: the other trials', whatever became of them.
        first: steps to the first rung; each of the next is `REDUCTION` times as far.
    """
    last = max(curve)
    known = [*others, curve]
    for rung in _rungs(first, last):
        reached = sorted(other[step] for other in known if (step := _first_step(other, rung)) is not None)
        best = reached[: max(1, len(reached) // REDUCTION)]
        if _first_step(curve, rung) == last and curve[last] > best[-1]:
            return True
    return False


def _rungs(first: int, last: int) -> Iterator[int]:
    rung = first
    while rung <= last:
        yield rung
        rung *= REDUCTION


def _first_step(curve: Curve, rung: int) -> int | None:
    return min((step for step in curve if step >= rung), default=None)
