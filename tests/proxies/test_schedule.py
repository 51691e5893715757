"""The learning rate's shape: its corners, its closed forms, and the sums that say how long weight decay acts."""

from math import cos, pi
from typing import Any

import pytest

from widthwise.proxies.config import Horizon
from widthwise.proxies.schedule import decay_horizon, schedule


def horizon(steps: int = 100, **fields: Any) -> Horizon:
    # 7 tokens are left over, and do not make a step.
    return Horizon(batch_tokens=8, tokens=8 * steps + 7, **fields)


def factors(shape: Horizon) -> list[float]:
    return [schedule(shape, step) for step in range(shape.steps)]


FORMS = ["cosine", "linear", "wsd"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [3, 10, 97, 100])
def test_it_rises_to_1_and_falls_to_the_final_fraction(form: str, final: float, steps: int) -> None:
    shape = horizon(steps, schedule=form, final_fraction=final)
    values = factors(shape)
    peak = values.index(1.0)
    assert peak == round(0.1 * steps)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert min(values) > 0
    assert min(values[peak:]) >= final
    assert schedule(shape, steps) == schedule(shape, 10 * steps) == pytest.approx(final)


@pytest.mark.parametrize("form", FORMS)
def test_a_single_step_is_taken_at_the_peak(form: str) -> None:
    assert factors(horizon(1, schedule=form)) == [1.0]


@pytest.mark.parametrize("form", FORMS)
def test_warmup_is_linear_and_ends_at_the_peak(form: str) -> None:
    values = factors(horizon(100, schedule=form, warmup_fraction=0.25))
    assert values[:26] == [pytest.approx((step + 1) / 26) for step in range(26)]
    assert values[25] == 1


@pytest.mark.parametrize("form", FORMS)
def test_without_warmup_it_starts_at_the_peak(form: str) -> None:
    assert schedule(horizon(schedule=form, warmup_fraction=0.0), 0) == 1


@pytest.mark.parametrize(
    ("form", "step", "factor"),
    [
        ("cosine", 60, 0.55),
        ("cosine", 40, 0.1 + 0.9 * (1 + cos(pi / 4)) / 2),
        ("cosine", 99, 0.1 + 0.9 * (1 + cos(pi * 79 / 80)) / 2),
        ("linear", 60, 0.55),
        ("linear", 40, 0.775),
        ("linear", 99, 0.1 + 0.9 / 80),
        ("wsd", 20, 1.0),
        ("wsd", 70, 1.0),
        ("wsd", 85, 0.55),
        ("wsd", 99, 0.1 + 0.9 / 30),
    ],
)
def test_values_of_a_run_of_100_steps(form: str, step: int, factor: float) -> None:
    shape = horizon(schedule=form, warmup_fraction=0.2, final_fraction=0.1, decay_fraction=0.3)
    assert schedule(shape, step) == pytest.approx(factor)


def test_a_wsd_decay_never_reaches_into_the_warmup() -> None:
    values = factors(horizon(10, schedule="wsd", warmup_fraction=0.5, decay_fraction=1.0))
    assert values == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_a_run_that_only_warms_up() -> None:
    assert factors(horizon(4, warmup_fraction=0.9)) == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("corrected", [False, True])
def test_the_decay_horizon_is_the_sum_over_the_steps(form: str, corrected: bool) -> None:
    shape = horizon(schedule=form, final_fraction=0.1)
    lr, weight_decay = 0.02, 0.5
    total = 0.0
    for factor in factors(shape):
        rate = lr * factor
        total += rate * weight_decay * (rate / lr if corrected else 1)
    assert decay_horizon(shape, lr, weight_decay, corrected=corrected) == pytest.approx(total)


@pytest.mark.parametrize(
    ("form", "corrected", "steps_at_the_peak"),
    [
        # Σ(1 - k/n), Σ(1 - k/n)², Σ(1 + cos)/2 and Σ(1 + cos)²/4 over k < n = 100
        ("linear", False, 101 / 2),
        ("linear", True, 101 * 201 / 600),
        ("cosine", False, 101 / 2),
        ("cosine", True, 3 * 100 / 8 + 1 / 2),
    ],
)
def test_the_decay_horizon_in_closed_form(form: str, corrected: bool, steps_at_the_peak: float) -> None:
    shape = horizon(schedule=form, warmup_fraction=0.0)
    found = decay_horizon(shape, 0.02, 0.5, corrected=corrected)
    assert found == pytest.approx(0.02 * 0.5 * steps_at_the_peak)
