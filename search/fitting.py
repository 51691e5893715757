"""The minimum of a quadratic fitted to a sweep's best trials: less lucky than the best of them.

The loss near its minimum is taken as a quadratic in (log η, log λ), by least squares over the trials that came close to
the best (a second-order response surface; Box and Wilson 1951). Every form of decay has a height of its own; the shape
is common to them, or a sweep of usual size has too few trials of each to tell a minimum from noise.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import geometric_mean
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# measured (docs/results/search/samplers.md): trials whose loss is higher than the best by this share are not near it.
WINDOW = 0.1
# x, y, x², xy and y², besides a height for every form of decay.
SHAPE = 5
# As few trials more than coefficients as still give an idea of the noise.
SPARE = 3
# Nats per token that a sum in double precision may be off.
ROUNDING = 1e-9
# Draws of the coefficients within their uncertainty, and the share of them that must agree.
DRAWS, AGREEING = 4000, 0.95


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A completed trial: η, λ, form of decay, c where it has one, and its validation loss in nats per token."""

    lr: float
    weight_decay: float
    loss: float
    decay: str = "l2"
    huber_c: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A quadratic through the trials near the best, and its minimum.

    Attributes:
        trials: that it was fitted to.
        problem: why its minimum is not to be trusted; None where it is. Then the values below are there.
        lr, weight_decay: the minimum.
        decay: the best trial's form of decay.
        huber_c: geometric mean over the trials of this form; not fitted, because it matters less than they scatter.
        lr_interval, weight_decay_interval: central 95 % of the minimum, from the coefficients' t distribution.
        loss: of the quadratic at its minimum, nats per token.
        curvature: what (Δx², Δx·Δy, Δy²) are multiplied by in it, in nats per token, x = log2 η and y = log2 λ being
            counted from the minimum.
        residual: standard deviation of the trials about the quadratic, nats per token.
        regret: 95th percentile of what the minimum may cost, the coefficients being uncertain, nats per token.
    """

    trials: int
    problem: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    decay: str | None = None
    huber_c: float | None = None
    lr_interval: tuple[float, float] | None = None
    weight_decay_interval: tuple[float, float] | None = None
    loss: float | None = None
    curvature: tuple[float, float, float] | None = None
    residual: float | None = None
    regret: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fit as plain data, without its curvature: who draws it has the trials to fit."""
        return {name: value for name, value in asdict(self).items() if name != "curvature"}

    def along(self, name: Literal["lr", "weight_decay"], value: float) -> float | None:
        """Return the quadratic's least loss at a value of η, over λ, or of λ, over η; None where it has no minimum."""
        best = getattr(self, name)
        if self.curvature is None or self.loss is None or best is None:
            return None
        own, mixed, other = self.curvature if name == "lr" else self.curvature[::-1]
        return self.loss + (own - mixed**2 / (4 * other)) * math.log2(value / best) ** 2

    def parameters(self) -> dict[str, Any]:
        """Return the minimum as a search space draws it."""
        drawn = {name: getattr(self, name) for name in ("lr", "weight_decay", "decay", "huber_c")}
        return {name: value for name, value in drawn.items() if value is not None}


def fit_minimum(tried: Sequence[Tried], *, seed: int = 0) -> Fit:
    """Fit the quadratic to the trials whose loss is at most `WINDOW` above the lowest, and judge its minimum.

    The minimum is trusted where at least 95 % of the quadratics that the noise allows have one, where it lies within
    the range of the trials, and where its regret, the excess of the loss there over the smallest of the same
    quadratic, stays below the noise of a single trial.

    Args:
        tried: completed trials.
        seed: of the draws that the interval is made of.
    """
    near = sorted(tried, key=lambda one: one.loss)
    near = [one for one in near if one.loss <= near[0].loss * (1 + WINDOW)]
    forms = sorted({one.decay for one in near})
    needed = SHAPE + max(1, len(forms)) + SPARE
    if len(near) < needed:
        found = f"{len(near)} trial{'' if len(near) == 1 else 's'} near the best"
        return Fit(trials=len(near), problem=f"{found}, {needed} are needed")
    points = np.log2([[one.lr, one.weight_decay] for one in near])
    centre, scale = points.mean(axis=0), points.std(axis=0)
    if not scale.all():
        return Fit(trials=len(near), problem="η or λ does not vary")
    unit = (points - centre) / scale
    heights = np.array([[float(one.decay == form) for form in forms] for one in near])
    terms = np.hstack((_shape(unit), heights))
    if np.linalg.matrix_rank(terms) < terms.shape[1]:
        return Fit(trials=len(near), problem="the trials lie on a line")
    coefficients, covariance, residual = _least_squares(terms, np.array([one.loss for one in near]))
    fit = _judged(coefficients[:SHAPE], covariance[:SHAPE, :SHAPE], residual, unit, terms.shape[1], seed)
    if fit.problem:
        return fit
    x, y = scale.tolist()
    xx, xy, yy = coefficients[2:SHAPE].tolist()
    fit = replace(fit, curvature=(xx / x**2, xy / (x * y), yy / y**2))
    return _completed(fit, near, coefficients[SHAPE:][forms.index(near[0].decay)], centre, scale)


def _judged(shape: Array, covariance: Array, residual: float, unit: Array, unknowns: int, seed: int) -> Fit:
    """Return the minimum in units of the trials' spread, or why it is not to be trusted."""
    fit = Fit(trials=len(unit), residual=residual)
    [minimum], convex = _minima(shape[None])
    if not convex[0]:
        return replace(fit, problem="the fitted quadratic has no minimum")
    if ((minimum < unit.min(axis=0)) | (minimum > unit.max(axis=0))).any():
        return replace(fit, problem="the fitted minimum lies outside the trials")
    drawn = _draws(shape, covariance, len(unit) - unknowns, np.random.default_rng(seed))
    others, convex = _minima(drawn)
    if convex.mean() < AGREEING:
        return replace(fit, problem="the noise allows quadratics without a minimum")
    drawn, others = drawn[convex], others[convex]
    here = _shape(minimum[None])[0]
    costs = drawn @ here - np.einsum("ij,ij->i", drawn, _shape(others))
    regret = float(np.quantile(costs, AGREEING))
    if regret > max(residual, ROUNDING):
        excess = f"the minimum may cost {regret:.2g} nats, more than the noise of a trial, {residual:.2g}"
        return replace(fit, problem=excess, regret=regret)
    low, high = np.quantile(others, (0.025, 0.975), axis=0)
    return replace(
        fit,
        lr=float(minimum[0]),
        weight_decay=float(minimum[1]),
        lr_interval=(float(low[0]), float(high[0])),
        weight_decay_interval=(float(low[1]), float(high[1])),
        loss=float(here @ shape),
        regret=regret,
    )


def _completed(fit: Fit, near: Sequence[Tried], height: float, centre: Array, scale: Array) -> Fit:
    """Return the fit in its real units, with what is not fitted."""
    assert fit.lr_interval is not None
    assert fit.weight_decay_interval is not None
    assert fit.loss is not None
    same = [one for one in near if one.decay == near[0].decay]
    thresholds = [one.huber_c for one in same if one.huber_c is not None]
    unit = np.array(
        [(fit.lr, fit.weight_decay), *zip(fit.lr_interval, fit.weight_decay_interval, strict=True)]
    )
    (lr, weight_decay), *ends = np.exp2(unit * scale + centre).tolist()
    lows, highs = ends
    return replace(
        fit,
        lr=lr,
        weight_decay=weight_decay,
        lr_interval=(lows[0], highs[0]),
        weight_decay_interval=(lows[1], highs[1]),
        loss=fit.loss + height,
        decay=near[0].decay,
        huber_c=geometric_mean(thresholds) if thresholds else None,
    )


def _shape(points: Array) -> Array:
    """Return the terms x, y, x², xy, y² of points (n, 2) as (n, 5)."""
    x, y = points.T
    return np.stack((x, y, x * x, x * y, y * y), axis=1)


def _least_squares(terms: Array, losses: Array) -> tuple[Array, Array, float]:
    """Return the coefficients, their covariance, and the residuals' standard deviation."""
    coefficients = np.asarray(np.linalg.lstsq(terms, losses)[0], dtype=np.float64)
    spare = len(losses) - terms.shape[1]
    variance = float(np.sum((losses - terms @ coefficients) ** 2)) / spare
    inverse = np.asarray(np.linalg.inv(terms.T @ terms), dtype=np.float64)
    return coefficients, variance * inverse, math.sqrt(variance)


def _draws(mean: Array, covariance: Array, freedom: int, generator: np.random.Generator) -> Array:
    """Draw from the coefficients' multivariate t distribution."""
    normal = generator.multivariate_normal(np.zeros(len(mean)), covariance, DRAWS, method="svd")
    return mean + normal * np.sqrt(freedom / generator.chisquare(freedom, (DRAWS, 1)))


def _minima(coefficients: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the stationary points (n, 2) of quadratics (n, 5), and which of them are minima."""
    x, y, xx, xy, yy = coefficients.T
    determinant = 4 * xx * yy - xy**2
    convex = (determinant > 0) & (xx > 0)
    safe = np.where(convex, determinant, 1.0)
    return np.stack(((xy * y - 2 * yy * x) / safe, (xy * x - 2 * xx * y) / safe), axis=1), convex
