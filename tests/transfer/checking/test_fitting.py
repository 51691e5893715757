"""Slopes and minima: values against SciPy's, and intervals that cover the truth as often as they say."""

from collections.abc import Callable
from math import inf

import numpy as np
import pytest
from scipy import optimize, stats

from widthwise.transfer.checking.estimates import Estimate, fieller, mean_over_seeds, slope, student
from widthwise.transfer.checking.fitting import Losses, Optimum, find_optimum, pooled_scatter

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)


def drawn(
    truth: Callable[[float], float], seeds: int, noise: float, generator: np.random.Generator
) -> dict[float, dict[int, float | None]]:
    """Return a line's losses: the truth, an offset that a seed's runs share, and noise of each run's own."""
    shared = generator.normal(0, 0.02, seeds)
    return {
        x: {seed: float(truth(x) + shared[seed] + generator.normal(0, noise)) for seed in range(seeds)}
        for x in GRID
    }


def test_students_quantile_is_scipys() -> None:
    assert student(2) == pytest.approx(stats.t.ppf(0.975, 2), rel=1e-12)
    assert student(6, 0.99) == pytest.approx(stats.t.ppf(0.995, 6), rel=1e-12)
    assert student(0) == inf


def test_a_mean_over_seeds_has_scipys_interval() -> None:
    values = [2.1, 2.4, 2.2, 2.05]
    found = mean_over_seeds(values)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), *reference), rel=1e-12)
    assert mean_over_seeds([2.1]) == Estimate(value=2.1, low=-inf, high=inf)


def test_a_slope_is_scipys_with_its_interval() -> None:
    x, y = [5, 5, 6, 6, 7, 8], [0.1, 0.3, 0.5, 0.35, 0.9, 1.2]
    found, reference = slope(x, y), stats.linregress(x, y)
    assert found is not None
    reach = stats.t.ppf(0.975, 4) * reference.stderr
    assert found.value == pytest.approx(reference.slope, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach), rel=1e-12)
    assert slope([5, 5, 6, 6], [1, 2, 3, 4]) is None


def test_fiellers_interval_is_where_a_t_test_sees_no_slope() -> None:
    intercepts, slopes = np.array([0.02, -0.05, 0.01, 0.04]), np.array([0.1, 0.14, 0.09, 0.12])
    found = fieller(intercepts, slopes)
    assert found is not None

    def probability(x: float) -> float:
        return float(stats.ttest_1samp(intercepts + slopes * x, 0).pvalue)

    assert found.value == pytest.approx(-intercepts.mean() / slopes.mean())
    assert probability(found.low) == pytest.approx(0.05, abs=1e-9)
    assert probability(found.high) == pytest.approx(0.05, abs=1e-9)
    assert probability(found.low - 0.01) < 0.05 < probability(found.low + 0.01)
    # Slopes that cannot be told from zero say nothing of a crossing; nor does a single one.
    assert fieller(intercepts, np.array([0.1, -0.14, 0.09, 0.02])) is None
    assert fieller(intercepts[:1], slopes[:1]) is None


@pytest.mark.parametrize(
    "truth",
    [
        pytest.param(lambda x: 0.04 * (x - 0.3) ** 2, id="parabola"),
        pytest.param(lambda x: 0.03 * np.exp(-0.8 * x) + 0.025 * np.exp(1.1 * x), id="steep on the right"),
        pytest.param(lambda x: 0.04 * np.exp(-0.95 * x) + 0.02 * np.exp(0.7 * x), id="steep on the left"),
    ],
)
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.003, 0.01])
def test_the_interval_of_a_minimum_covers_the_truth(
    truth: Callable[[float], float], seeds: int, noise: float
) -> None:
    minimum = optimize.minimize_scalar(truth, bounds=(-2, 2), method="bounded").x
    generator = np.random.default_rng(0)
    optima = [find_optimum(drawn(truth, seeds, noise, generator)) for _ in range(200)]
    found = [one.octaves for one in optima if one.octaves is not None]
    covered = sum(one.low <= minimum <= one.high for one in found)
    # Binomial: 95 % of 200 less three standard deviations is 90 %; what was not bracketed claims nothing.
    assert len(optima) - len(found) + covered >= 0.9 * len(optima)
    if seeds >= 3 and noise < 0.01:
        assert len(found) >= 0.9 * len(optima)
        assert np.median([one.high - one.low for one in found]) < 1.2


def test_scatter_in_common_makes_intervals_narrower_and_they_still_cover_the_truth() -> None:
    generator, minima = np.random.default_rng(1), (-0.4, 0.1, 0.6)
    alone, pooled, covered = [], [], 0
    for _ in range(100):
        truths = [lambda x, at=at: 0.02 * (x - at) ** 2 for at in minima]  # type: ignore[misc]
        lines = [drawn(truth, 3, 0.008, generator) for truth in truths]
        for at, losses, scatter in zip(minima, lines, pooled_scatter(lines), strict=True):
            alone.append(reach(find_optimum(losses)))
            pooled.append(reach(found := find_optimum(losses, scatter=scatter)))
            covered += found.octaves is None or found.octaves.low <= at <= found.octaves.high
    assert covered >= 0.92 * 300
    assert np.median(pooled) < 0.75 * np.median(alone)
    assert pooled.count(inf) < 0.5 * alone.count(inf)


def reach(found: Optimum) -> float:
    return inf if found.octaves is None else found.octaves.high - found.octaves.low


def test_scatter_is_the_mean_covariance_of_the_seeds_parabolas() -> None:
    def line(spread: float, best: float) -> Losses:
        tilts = {0: -spread, 1: 0.0, 2: spread}
        return {x: {seed: (x - best) ** 2 + tilt * (x - best) for seed, tilt in tilts.items()} for x in GRID}

    end = {x: dict.fromkeys(range(3), x) for x in GRID}
    both, same, unbracketed = pooled_scatter([line(0.1, 0.0), line(0.2, 1.0), end])
    assert both is same is unbracketed is not None
    assert both.freedom == 4
    np.testing.assert_allclose(both.covariance, [[(0.1**2 + 0.2**2) / 2, 0], [0, 0]], atol=1e-12)
    assert pooled_scatter([end]) == [None]


def test_a_line_that_ends_on_the_wall_before_divergence_does_not_blur_the_others() -> None:
    generator = np.random.default_rng(2)
    sound = [drawn(lambda x: 0.02 * x**2, 3, 0.005, generator) for _ in range(3)]
    wall = {x: dict(by_seed) for x, by_seed in sound[0].items()}
    last = max(wall)
    wall[last] = {seed: 3.0 + seed for seed in wall[last]}
    *pools, own = pooled_scatter([*sound, wall])
    assert own is None
    for found, expected in zip(pools, pooled_scatter(sound), strict=True):
        assert found is not None
        assert expected is not None
        assert found.freedom == expected.freedom == 6
        np.testing.assert_array_equal(found.covariance, expected.covariance)


def test_lines_of_one_kind_seldom_lose_a_member() -> None:
    generator = np.random.default_rng(3)
    pools = [
        pooled_scatter([drawn(lambda x: 0.02 * x**2, 3, 0.005, generator) for _ in range(4)])
        for _ in range(500)
    ]
    # The wildest of four lines at one in a thousand: at most 2 of 500 on average, 6 at three standard deviations.
    assert sum(None in pool for pool in pools) <= 6


def test_each_seed_has_a_minimum_of_its_own() -> None:
    losses = {x: {seed: 0.05 * (x - 0.1 * seed) ** 2 + seed for seed in range(3)} for x in GRID}
    found = find_optimum(losses)
    assert found.octaves is not None
    assert found.octaves.value == pytest.approx(0.1)
    assert found.by_seed == pytest.approx({0: 0.0, 1: 0.1, 2: 0.2})
    assert found.curvature == pytest.approx(0.05)
    assert found.deviation == pytest.approx(np.std([0, 1.0005, 2.002], ddof=1), rel=1e-3)
    assert found.regret is not None
    assert found.regret.value == pytest.approx(0.05 * 0.1**2)
    assert found.regret.low == 0


FLAT = {x: {seed: 2 + 0.01 * ((seed + place) % 3) for seed in range(3)} for place, x in enumerate(GRID)}
FLAT[0.0] = dict.fromkeys(range(3), 2.001)


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        (
            {x: dict.fromkeys(range(3), (x - 3) ** 2) for x in GRID},
            "the lowest loss is at the upper end of what was tried",
        ),
        (
            {x: dict.fromkeys(range(3), (x + 3) ** 2) for x in GRID},
            "the lowest loss is at the lower end of what was tried",
        ),
        ({x: {0: x * x} for x in GRID}, "one seed says nothing of how far a minimum can be trusted"),
        (
            {x: {0: x * x, 1: None if x else 0.0} for x in GRID},
            "fewer than three settings have a loss with every seed",
        ),
        ({x: {0: None, 1: 2.0} for x in GRID}, "every setting diverged with some seed"),
        (FLAT, "the loss does not curve upwards beyond doubt"),
    ],
)
def test_a_minimum_that_the_losses_do_not_show_is_not_claimed(losses: Losses, why: str) -> None:
    found = find_optimum(losses)
    assert (found.octaves, found.why) == (None, why)
    assert found.by_seed is None
    if found.regret is not None:
        # The best of what was tried bounds what is lost from below alone.
        assert found.regret.high == inf


def test_what_is_lost_far_from_the_minimum_is_what_was_measured() -> None:
    # Steep near the minimum at -1.5, then a plateau: a parabola would claim 0.09 more at 0.
    plateau = {-3.0: 0.1, -2.0: 0.01, -1.5: 0.0, -1.0: 0.01, 0.0: 0.03, 1.0: 0.03}
    losses = {
        x: {s: y + 0.0005 * ((3 * s + i) % 4) for s in range(3)} for i, (x, y) in enumerate(plateau.items())
    }
    found = find_optimum(losses)
    assert found.octaves is not None
    assert found.octaves.value == pytest.approx(-1.5, abs=0.2)
    assert found.regret is not None
    assert found.regret.value == pytest.approx(0.03, abs=0.002)
    assert found.regret.low < 0.03 < found.regret.high


def test_a_setting_at_which_a_seed_diverged_bounds_the_line_and_is_not_fitted() -> None:
    losses: dict[float, dict[int, float | None]] = {
        x: {seed: 0.05 * x * x + 0.01 * seed for seed in range(3)} for x in (-2.0, -1.0, 0.0, 1.0)
    }
    found = find_optimum({**losses, 2.0: {0: 0.2, 1: None, 2: 0.2}})
    assert found == find_optimum(losses)
    assert found.octaves is not None
    assert found.octaves.value == pytest.approx(0.0, abs=1e-9)


def test_nothing_is_said_of_what_is_lost_where_the_transferred_setting_diverged() -> None:
    losses: dict[float, dict[int, float | None]] = {
        x: {seed: 0.05 * (x + 2) ** 2 for seed in range(3)} for x in (-3.0, -2.0, -1.0)
    }
    found = find_optimum({**losses, 0.0: {0: 0.2, 1: None, 2: 0.2}})
    assert found.octaves is not None
    assert found.regret is None
