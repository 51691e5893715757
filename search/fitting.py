"""The minimum of a quadratic fitted to a sweep's best trials: less lucky than the best of them.

The loss near its minimum is taken as a quadratic in (log η, log λ), with its six coefficients by least squares over
the trials that came closest to the best (a second-order response surface; Box and Wilson 1951).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import geometric_mean
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

COEFFICIENTS = 6
# As few to spare as still give an idea of the noise.
MIN_TRIALS = COEFFICIENTS + 3
# Nats per token that a sum in double precision may be off.
ROUNDING = 1e-9
# Draws of the coefficients within their uncertainty, and the share of them that must agree.
DRAWS, AGREEING = 4000, 0.95


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A completed trial: η, λ, c where the decay has one, and its validation loss in nats per token."""

    lr: float
    weight_decay: float
    loss: float
    huber_c: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A quadratic through the trials near the best, and its minimum.

    Attributes:
        trials: that it was fitted to.
        problem: why its minimum is not to be trusted; None where it is. Then the rest is None too.
        lr, weight_decay: the minimum.
        huber_c: geometric mean over the trials; not fitted, because it matters less than they scatter.
        lr_interval, weight_decay_interval: central 95 % of the minimum, from the coefficients' t distribution.
        loss: of the quadratic at its minimum, nats per token.
        residual: standard deviation of the trials about the quadratic, nats per token.
        regret: 95th percentile of what the minimum may cost, the coefficients being uncertain, nats per token.
    """

    trials: int
    problem: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    huber_c: float | None = None
    lr_interval: tuple[float, float] | None = None
    weight_decay_interval: tuple[float, float] | None = None
    loss: float | None = None
    residual: float | None = None
    regret: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fit as plain data."""
        return asdict(self)


def fit_minimum(tried: Sequence[Tried], *, seed: int = 0) -> Fit:
    """Fit the quadratic to the better half of `tried`, at least `MIN_TRIALS`, and judge its minimum.

    The minimum is trusted where at least 95 % of the quadratics that the noise allows have one, where it lies within
    the range of the trials, and where its regret, the excess of the loss there over the smallest of the same
    quadratic, stays below the noise of a single trial.

    Args:
        tried: trials of one form of decay.
        seed: of the draws that the interval is made of.
    """
    near = sorted(tried, key=lambda one: one.loss)[: max(MIN_TRIALS, len(tried) // 2)]
    if len(near) < MIN_TRIALS:
        return Fit(trials=len(near), problem=f"{len(near)} completed trials, {MIN_TRIALS} are needed")
    points = np.log2([[one.lr, one.weight_decay] for one in near])
    centre, scale = points.mean(axis=0), points.std(axis=0)
    if not scale.all():
        return Fit(trials=len(near), problem="η or λ does not vary")
    unit = (points - centre) / scale
    losses = np.array([one.loss for one in near])
    if np.linalg.matrix_rank(_design(unit)) < COEFFICIENTS:
        return Fit(trials=len(near), problem="the trials lie on a line")
    coefficients, covariance, residual = _least_squares(_design(unit), losses)
    fit = _judged(coefficients, covariance, residual, unit, centre, scale, seed)
    thresholds = [one.huber_c for one in near if one.huber_c is not None]
    return replace(fit, huber_c=geometric_mean(thresholds)) if thresholds and fit.problem is None else fit


def _judged(
    coefficients: Array,
    covariance: Array,
    residual: float,
    unit: Array,
    centre: Array,
    scale: Array,
    seed: int,
) -> Fit:
    """Return the fit, or why its minimum is not to be trusted."""
    count = len(unit)
    minima, convex = _minima(coefficients[None])
    if not convex[0]:
        return Fit(trials=count, problem="the fitted quadratic has no minimum", residual=residual)
    if ((minima[0] < unit.min(axis=0)) | (minima[0] > unit.max(axis=0))).any():
        return Fit(trials=count, problem="the fitted minimum lies outside the trials", residual=residual)
    generator = np.random.default_rng(seed)
    drawn = _draws(coefficients, covariance, count - COEFFICIENTS, generator)
    others, convex = _minima(drawn)
    if convex.mean() < AGREEING:
        return Fit(trials=count, problem="the noise allows quadratics without a minimum", residual=residual)
    here = _design(minima)
    costs = drawn[convex] @ here[0] - np.einsum("ij,ij->i", drawn[convex], _design(others[convex]))
    regret = float(np.quantile(costs, AGREEING))
    if regret > max(residual, ROUNDING):
        problem = f"the minimum may cost {regret:.2g} nats, more than the noise of a trial, {residual:.2g}"
        return Fit(trials=count, problem=problem, residual=residual, regret=regret)
    low, high = np.exp2(np.quantile(others[convex], (0.025, 0.975), axis=0) * scale + centre)
    lr, weight_decay = np.exp2(minima[0] * scale + centre)
    return Fit(
        trials=count,
        lr=float(lr),
        weight_decay=float(weight_decay),
        lr_interval=(float(low[0]), float(high[0])),
        weight_decay_interval=(float(low[1]), float(high[1])),
        loss=float(here[0] @ coefficients),
        residual=residual,
        regret=regret,
    )


def _design(points: Array) -> Array:
    """Return the terms 1, x, y, x², xy, y² of points (n, 2) as (n, 6)."""
    x, y = points.T
    return np.stack((np.ones_like(x), x, y, x * x, x * y, y * y), axis=1)


def _least_squares(terms: Array, losses: Array) -> tuple[Array, Array, float]:
    """Return the coefficients, their covariance, and the residuals' standard deviation."""
    coefficients = np.asarray(np.linalg.lstsq(terms, losses)[0], dtype=np.float64)
    spare = len(losses) - COEFFICIENTS
    variance = float(np.sum((losses - terms @ coefficients) ** 2)) / spare
    inverse = np.asarray(np.linalg.inv(terms.T @ terms), dtype=np.float64)
    return coefficients, variance * inverse, math.sqrt(variance)


def _draws(mean: Array, covariance: Array, freedom: int, generator: np.random.Generator) -> Array:
    """Draw from the coefficients' multivariate t distribution."""
    normal = generator.multivariate_normal(np.zeros(len(mean)), covariance, DRAWS, method="svd")
    return mean + normal * np.sqrt(freedom / generator.chisquare(freedom, (DRAWS, 1)))


def _minima(coefficients: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the stationary points (n, 2) of quadratics (n, 6), and which of them are minima."""
    _, x, y, xx, xy, yy = coefficients.T
    determinant = 4 * xx * yy - xy**2
    convex = (determinant > 0) & (xx > 0)
    safe = np.where(convex, determinant, 1.0)
    return np.stack(((xy * y - 2 * yy * x) / safe, (xy * x - 2 * xx * y) / safe), axis=1), convex
