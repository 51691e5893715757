"""Where the loss along a line of settings is lowest, with intervals from the seeds.

A seed is the unit of evidence: what is computed for each seed alone is averaged, and Student's t over the seeds
says how far the mean can be trusted. Nothing is assumed of how one seed's losses at neighbouring points hang
together; they share batches and initialisation, and their errors are far from independent. What the widths may
share is how much the seeds scatter: three seeds at one width say little of that, at three widths enough.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import fmean, stdev

import numpy as np
from scipy.special import fdtrc

from widthwise.transfer.checking.estimates import (
    CONFIDENCE,
    Estimate,
    Scatter,
    Vector,
    fieller,
    mean_over_seeds,
)

# assumed: the probability of so much more scatter below which a line is taken to be of another kind.
STRANGE = 0.001

Losses = Mapping[float, Mapping[int, float | None]]
"""Octaves off the rule's own value → seed → validation loss in nats per token; None where the run diverged."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Where the loss along one line of settings is lowest, and what the transferred setting, at 0, loses to it.

    Attributes:
        best: the measured offset with the lowest mean loss, in octaves; None where every setting diverged.
        octaves: the minimum of the fitted parabola; None where it is not bracketed.
        why: why it is not bracketed; empty where it is.
        regret: loss at 0 minus loss at the minimum in nats per token, by the parabola over the minimum's interval.
            Where that is not bracketed, the measured loss at `best` stands in for it, and there is no upper end.
            None where a seed diverged at 0.
        curvature: the parabola's second-order coefficient, nats per octave².
        loss: the parabola's lowest loss, the mean over the seeds, nats per token.
        shift: how far a cubic would move the minimum, octaves; 0 where it is not bracketed.
        by_seed: each seed's own minimum, linearised about the common one.
        deviation: standard deviation of the loss over the seeds at `best`; None from one seed.
    """

    best: float | None
    octaves: Estimate | None = None
    why: str = ""
    regret: Estimate | None = None
    curvature: float | None = None
    loss: float | None = None
    shift: float = 0.0
    by_seed: Mapping[int, float] | None = None
    deviation: float | None = None


def pooled_scatter(lines: Sequence[Losses]) -> list[Scatter | None]:
    """Return, for each of several lines, the scatter of the seeds' parabolas that it has in common with others.

    Each line counts with its degrees of freedom. The steps between settings should be the same along all of them.
    One whose slopes scatter so much more than the others' that it happens once in a thousand times, as where a
    point lies on the wall before divergence, shares nothing: it gets None, to go by its own, and so do all lines
    where none has a fit.
    """
    tables = {index: _bracketed_parabolas(line) for index, line in enumerate(lines)}
    members = {index: table for index, table in tables.items() if table is not None}
    strangers: set[int] = set()
    while (odd := _stranger(members)) is not None:
        del members[odd]
        strangers.add(odd)
    freedom = _freedom(members.values())
    if not freedom:
        return [None] * len(lines)
    sums = [np.cov(table[:, 1], 2 * table[:, 2]) * (len(table) - 1) for table in members.values()]
    common = Scatter(covariance=np.sum(sums, axis=0) / freedom, freedom=freedom)
    return [None if index in strangers else common for index in tables]


def _stranger(tables: Mapping[int, Vector]) -> int | None:
    """Return the line whose slopes scatter beyond the others', by an F-test; None where none does."""
    if len(tables) < 2:
        return None
    wildest = max(tables, key=lambda index: float(tables[index][:, 1].var(ddof=1)))
    others = [table for index, table in tables.items() if index != wildest]
    freedom = _freedom(others)
    common = sum(float(table[:, 1].var(ddof=1)) * (len(table) - 1) for table in others) / freedom
    ratio = float(tables[wildest][:, 1].var(ddof=1)) / common if common else 1.0
    return wildest if fdtrc(len(tables[wildest]) - 1, freedom, ratio) < STRANGE else None


def _freedom(tables: Iterable[Vector]) -> int:
    return sum(len(table) - 1 for table in tables)


def _bracketed_parabolas(losses: Losses) -> Vector | None:
    """Return each seed's parabola, shape (seeds, 3); None where the best point is at an end."""
    means = _means(losses)
    best = min(means, key=lambda x: means[x], default=0.0)
    if _not_bracketed(sorted(means), best, len(_common_seeds(losses))):
        return None
    return _parabolas(losses, means, best)


def find_optimum(
    losses: Losses, confidence: float = CONFIDENCE, *, scatter: Scatter | None = None
) -> Optimum:
    """Fit a parabola to the losses near the best point, and say where its minimum lies, if that can be said.

    The parabola is fitted to each seed's losses by least squares, in which a point d steps from the best one
    counts 1/(1 + d⁴): the nearest decide, since no landscape is a parabola far from its minimum. The minimum's
    interval is Fieller's: every x at which the seeds' slopes, b + 2c·x, cannot be told from zero by a t-test. It is
    exact for normal errors however few the seeds are, and without ends where the landscape is not convex beyond
    doubt; the minimum then counts as not bracketed. So it does where its best point has no neighbour with a finite loss
    on one side, where the fitted minimum lies outside the points measured, and with one seed. With a `scatter` pooled
    over several lines, which must hold for this one too, the interval is much narrower.
    What the seeds cannot know is that landscapes are lopsided: the interval is widened on both sides by as much
    as a cubic, fitted in the same way to four points or more, would move the minimum.
    """
    means = _means(losses)
    if not means:
        return Optimum(best=None, why="every setting diverged with some seed")
    seeds, best = _common_seeds(losses), min(means, key=lambda x: means[x])
    deviation = stdev(loss_at(losses, best, seed) for seed in seeds) if len(seeds) > 1 else None
    measured = _lost_to(losses, best, seeds, confidence)
    # What lies beyond the end of the line may be better still.
    regret = None if measured is None else replace(measured, high=inf)
    unfitted = Optimum(best=best, regret=regret, deviation=deviation)
    reason = _not_bracketed(sorted(means), best, len(seeds))
    if reason:
        return replace(unfitted, why=reason)
    crossing, table = _crossing(losses, means, best, scatter, confidence)
    if crossing is None:
        return replace(unfitted, why="the loss does not curve upwards beyond doubt")
    if not min(means) <= crossing.value <= max(means):
        return replace(unfitted, why="the fitted minimum lies outside of what was tried")
    return _fitted(unfitted, means, dict(zip(seeds, table, strict=True)), crossing, measured)


def _means(losses: Losses) -> dict[float, float]:
    """Return the mean loss at every offset at which no seed diverged."""
    seeds = _common_seeds(losses)
    return {x: fmean(loss_at(losses, x, seed) for seed in seeds) for x in _finite(losses)} if seeds else {}


def _crossing(
    losses: Losses, means: Mapping[float, float], best: float, scatter: Scatter | None, confidence: float
) -> tuple[Estimate | None, Vector]:
    """Return where the seeds' mean slope crosses zero, None where that cannot be told, and their parabolas."""
    table = _parabolas(losses, means, best)
    crossing = fieller(table[:, 1], 2 * table[:, 2], confidence, scatter)
    if crossing is None or table[:, 2].mean() <= 0:
        return None, table
    return crossing + best, table


def _parabolas(losses: Losses, offsets: Iterable[float], best: float) -> Vector:
    """Return each seed's parabola in octaves off the best point, the constant first, shape (seeds, 3)."""
    local = {x: x - best for x in offsets}
    rows = [{local[x]: loss_at(losses, x, seed) for x in local} for seed in _common_seeds(losses)]
    return np.asarray([_polynomial(row, 2) for row in rows])


def _finite(losses: Losses) -> list[float]:
    """Return the offsets at which no seed diverged."""
    return [x for x, by_seed in losses.items() if by_seed and None not in by_seed.values()]


def _common_seeds(losses: Losses) -> list[int]:
    """Return the seeds that were run at every offset at which none diverged."""
    ran = [set(losses[x]) for x in _finite(losses)]
    return sorted(set.intersection(*ran)) if ran else []


def loss_at(losses: Losses, x: float, seed: int) -> float:
    """Return a loss that is known to be there."""
    loss = losses[x][seed]
    assert loss is not None
    return loss


def _not_bracketed(offsets: list[float], best: float, seeds: int) -> str:
    if seeds < 2:
        return "one seed says nothing of how far a minimum can be trusted"
    if len(offsets) < 3:
        return "fewer than three settings have a loss with every seed"
    if best == offsets[0]:
        return "the lowest loss is at the lower end of what was tried"
    if best == offsets[-1]:
        return "the lowest loss is at the upper end of what was tried"
    return ""


def _lost_to(losses: Losses, best: float, seeds: list[int], confidence: float) -> Estimate | None:
    """Return the loss at 0 minus the loss at `best`, paired by seed; None where a seed diverged at 0."""
    if 0.0 not in _finite(losses):
        return None
    return mean_over_seeds([loss_at(losses, 0.0, s) - loss_at(losses, best, s) for s in seeds], confidence)


def _polynomial(points: Mapping[float, float], degree: int) -> Vector:
    """Return a polynomial's coefficients, the constant first, fitted with the points near 0 above all."""
    x = np.asarray(sorted(points))
    y = np.asarray([points[one] for one in x])
    step = float(np.min(np.abs(x[x != 0])))
    weights = 1 / (1 + (x / step) ** 4)
    fitted: Vector = np.polyfit(x, y, degree, w=np.sqrt(weights))[::-1]
    return fitted


def _cubic_shift(means: Mapping[float, float], best: float, minimum: float, c: float) -> float:
    """Return how far a cubic's minimum lies above the parabola's, to first order; 0 from three points."""
    if len(means) < 4:
        return 0.0
    x = minimum - best
    _, b, c2, c3 = _polynomial({one - best: loss for one, loss in means.items()}, 3)
    return -float(b + 2 * c2 * x + 3 * c3 * x**2) / (2 * c)


def _fitted(
    unfitted: Optimum,
    means: Mapping[float, float],
    parabolas: Mapping[int, Vector],
    crossing: Estimate,
    measured: Estimate | None,
) -> Optimum:
    """Return the optimum with the parabola's minimum, which lies at the crossing."""
    best = unfitted.best
    assert best is not None
    c = fmean(float(row[2]) for row in parabolas.values())
    near = abs(best) <= min(abs(x - best) for x in means if x != best)
    shift = _cubic_shift(means, best, crossing.value, c)
    octaves = crossing.widened(abs(shift))
    off = crossing.value - best
    return replace(
        unfitted,
        octaves=octaves,
        regret=None if measured is None else _regret(octaves, c, measured, near=near),
        curvature=c,
        loss=fmean(float(row[0]) for row in parabolas.values()) - c * off**2,
        shift=shift,
        by_seed={
            seed: crossing.value - float(b + 2 * c_s * off) / (2 * c)
            for seed, (_, b, c_s) in parabolas.items()
        },
    )


def _regret(octaves: Estimate, c: float, measured: Estimate, *, near: bool) -> Estimate:
    """Return what is lost at 0 where the minimum is at x: c·x² over the interval of x.

    Where 0 is not `near` the best point, no parabola can be trusted to reach it: the measured difference takes its
    place. A loss that the measured difference does not show is never claimed.
    """
    ends = sorted((c * octaves.low**2, c * octaves.high**2))
    low = 0.0 if octaves.low <= 0 <= octaves.high else ends[0]
    return Estimate(
        value=c * octaves.value**2 if near else measured.value,
        low=max(0.0, min(low, measured.low)),
        high=ends[1] if near else max(ends[1], measured.high),
    )
