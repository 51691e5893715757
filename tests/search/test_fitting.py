"""The fitted minimum: right on known landscapes, with an honest interval, and refused where it is not determined."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from widthwise.search.fitting import Tried, fit_minimum

# An elongated valley along ηλ = constant, its minimum at η = 0.03, λ = 2; 2.1 nats, 0.1 more an octave of η away.
BEST_LR, BEST_DECAY, BEST_LOSS = 0.03, 2.0, 2.1
NOISE = 0.01


def landscape(lr: Any, weight_decay: Any) -> Any:
    x, y = np.log2(lr / BEST_LR), np.log2(weight_decay / BEST_DECAY)
    return BEST_LOSS + 0.05 * x**2 + 0.05 * (x + y) ** 2


def drawn(count: int, noise: float, seed: int, *, octaves: float = 1.5) -> list[Tried]:
    generator = np.random.default_rng(seed)
    points = generator.uniform(-octaves, octaves, (count, 2))
    lr, weight_decay = BEST_LR * 2 ** points[:, 0], BEST_DECAY * 2 ** points[:, 1]
    losses = landscape(lr, weight_decay) + noise * generator.standard_normal(count)
    return [
        Tried(lr=float(a), weight_decay=float(b), loss=float(c))
        for a, b, c in zip(lr, weight_decay, losses, strict=True)
    ]


def test_without_noise_the_minimum_is_exact() -> None:
    fit = fit_minimum(drawn(12, 0.0, 0))
    assert (fit.lr, fit.weight_decay, fit.loss) == pytest.approx((BEST_LR, BEST_DECAY, BEST_LOSS), rel=1e-6)
    assert fit.as_json()["problem"] is None
    assert "curvature" not in fit.as_json()
    # 0.05 x² + 0.05 (x + y)², and its least values over the other one.
    assert fit.curvature == pytest.approx((0.1, 0.1, 0.05), rel=1e-6)
    assert fit.along("lr", BEST_LR * 4) == pytest.approx(BEST_LOSS + 0.05 * 2**2, rel=1e-6)
    assert fit.along("weight_decay", BEST_DECAY / 2) == pytest.approx(BEST_LOSS + 0.025, rel=1e-6)
    assert fit.parameters() == {"lr": fit.lr, "weight_decay": fit.weight_decay, "decay": "l2"}


def test_the_interval_covers_the_minimum_as_often_as_it_says() -> None:
    """Selected by their losses, the trials are a little less noisy than they seem: 90 % is asked for, not 95 %."""
    fits = [fit_minimum(drawn(40, NOISE, seed)) for seed in range(200)]
    trusted = [fit for fit in fits if fit.problem is None]
    assert len(trusted) > 150
    for name, truth in (("lr", BEST_LR), ("weight_decay", BEST_DECAY)):
        intervals = [getattr(fit, f"{name}_interval") for fit in trusted]
        assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.9
    # And the fitted minimum beats the luckiest trial.
    lucky = [min(drawn(40, NOISE, seed), key=lambda one: one.loss) for seed in range(200)]
    found = np.mean([landscape(fit.lr, fit.weight_decay) for fit in trusted])
    assert found < np.mean([landscape(one.lr, one.weight_decay) for one in lucky])


def test_forms_of_decay_share_a_shape_and_differ_in_height() -> None:
    tried = [
        replace(one, decay="huber", huber_c=c, loss=one.loss - 0.05)
        for one, c in zip(drawn(12, 0.0, 2), [1.0, 4.0] * 6, strict=True)
    ]
    fit = fit_minimum([*drawn(6, 0.0, 3), *tried])
    assert (fit.lr, fit.weight_decay, fit.loss) == pytest.approx(
        (BEST_LR, BEST_DECAY, BEST_LOSS - 0.05), rel=1e-6
    )
    assert fit.decay == "huber"
    assert 1 < (fit.huber_c or 0) < 4


def valley(loss: Any) -> list[Tried]:
    return [
        Tried(lr=one.lr, weight_decay=one.weight_decay, loss=loss(one.lr, one.weight_decay))
        for one in drawn(12, 0.0, 1)
    ]


@pytest.mark.parametrize(
    ("tried", "problem"),
    [
        (drawn(1, 0.0, 0), "1 trial near the best, 9 are needed"),
        (drawn(8, 0.0, 0, octaves=0.5), "8 trials near the best, 9 are needed"),
        (valley(lambda lr, decay: 2 - 0.01 * np.log2(lr / 0.03) ** 2), "the fitted quadratic has no minimum"),
        (
            valley(lambda lr, decay: landscape(lr / 4, decay) / 10 + 2),
            "the fitted minimum lies outside the trials",
        ),
        ([Tried(lr=0.03, weight_decay=1.0 + i, loss=2 + i / 99) for i in range(9)], "η or λ does not vary"),
        (
            [Tried(lr=0.01 * 2**i, weight_decay=2.0**i, loss=2 + i / 99) for i in range(9)],
            "the trials lie on a line",
        ),
        (drawn(12, 0.06, 11, octaves=1.0), "the noise allows quadratics without a minimum"),
    ],
)
def test_a_minimum_that_is_not_determined_is_refused(tried: list[Tried], problem: str) -> None:
    fit = fit_minimum(tried)
    assert fit.problem == problem
    assert (fit.lr, fit.weight_decay, fit.lr_interval, fit.along("lr", 0.1)) == (None, None, None, None)
