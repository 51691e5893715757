"""Numbers with confidence intervals: means, slopes, and where a mean line crosses zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its confidence interval, whose ends may be infinite."""

    value: float
    low: float
    high: float

    def __add__(self, shift: float) -> "Estimate":
        return Estimate(value=self.value + shift, low=self.low + shift, high=self.high + shift)

    def widened(self, by: float) -> "Estimate":
        """Return the estimate with both ends moved outwards."""
        return Estimate(value=self.value, low=self.low - by, high=self.high + by)

    def within(self, bound: float) -> bool:
        """Return whether the whole interval lies in ±`bound`."""
        return -bound <= self.low and self.high <= bound

    def beyond(self, bound: float) -> bool:
        """Return whether the whole interval lies outside ±`bound`, on one side."""
        return self.low > bound or self.high < -bound


def student(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return Student's two-sided quantile t; infinite without a degree of freedom."""
    return float(stdtrit(freedom, (1 + confidence) / 2)) if freedom > 0 else inf


def mean_over_seeds(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean and its t-interval; from a single value, an interval without ends."""
    value, count = fmean(values), len(values)
    if count < 2:
        return Estimate(value=value, low=-inf, high=inf)
    reach = student(count - 1, confidence) * stdev(values) / sqrt(count)
    return Estimate(value=value, low=value - reach, high=value + reach)


def slope(x: Sequence[float], y: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """Return the least-squares slope of y on x with its t-interval on n - 2 degrees of freedom.

    None where fewer than three different x are given: two points have a slope, but nothing that tests it.
    """
    if len(set(x)) < 3:
        return None
    across = np.asarray(x) - np.mean(x)
    spread = float(across @ across)
    value = float(across @ np.asarray(y)) / spread
    residuals = np.asarray(y) - np.mean(y) - value * across
    freedom = len(x) - 2
    reach = student(freedom, confidence) * sqrt(float(residuals @ residuals) / freedom / spread)
    return Estimate(value=value, low=value - reach, high=value + reach)


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """How the seeds' parabolas scatter about their mean.

    Attributes:
        covariance: of a parabola's slope at the best point and of twice its curvature, shape (2, 2).
        freedom: degrees of freedom that it was estimated with.
    """

    covariance: Vector
    freedom: int


def fieller(
    intercepts: Vector, slopes: Vector, confidence: float = CONFIDENCE, scatter: Scatter | None = None
) -> Estimate | None:
    """Return where the mean of the lines intercept + slope·x crosses zero, with Fieller's interval.

    Args:
        intercepts: of each seed's line, shape (seeds,).
        slopes: of each seed's line, shape (seeds,).
        confidence: of the interval.
        scatter: covariance of a line's intercept and slope; None estimates it from these lines alone.

    Returns:
        None where the interval is not bounded: the mean slope cannot be told from zero.
    """
    count = len(slopes)
    if scatter is None:
        if count < 2:
            return None
        scatter = Scatter(covariance=np.cov(intercepts, slopes), freedom=count - 1)
    b, c = float(intercepts.mean()), float(slopes.mean())
    covariance = scatter.covariance * student(scatter.freedom, confidence) ** 2 / count
    # (b + c·x)² <= t²·Var(b + c·x), a quadratic inequality in x.
    square, linear, rest = c * c - covariance[1, 1], b * c - covariance[0, 1], b * b - covariance[0, 0]
    if square <= 0:
        return None
    root = sqrt(max(0.0, linear * linear - square * rest))
    return Estimate(
        value=-b / c, low=float(-linear - root) / float(square), high=float(-linear + root) / float(square)
    )
