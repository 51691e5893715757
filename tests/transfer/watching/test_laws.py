"""The laws of a plan against closed forms, and against what the diagnostics of a real run make of them."""

from math import sqrt
from pathlib import Path

import pytest
import torch

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters, RunOptions
from widthwise.proxies.config import Kind
from widthwise.proxies.runs import RunSpec, run
from widthwise.transfer import Recipe
from widthwise.transfer.watching.laws import Course, evaluation_steps, initial_std

FLAT = Horizon(batch_tokens=64, tokens=64 * 50, warmup_fraction=0.0, schedule="linear", final_fraction=1.0)


def test_at_a_constant_rate_the_laws_are_closed_forms() -> None:
    course = Course(variance=0.09, lr=0.02, weight_decay=1.5, beta1=0.9, corrected=True, horizon=FLAT)
    few, many = course.at([20, 50])
    for steps, found in ((20, few), (50, many)):
        kept = (1 - 0.03) ** (2 * steps)
        assert found.rms == pytest.approx(sqrt(kept * 0.09 + (1 - kept) * 0.02 / 3.0), rel=1e-12)
    # The mean over the last eight steps, each in its own place.
    each = [course.at([step])[0].rms for step in range(43, 51)]
    assert many.update_ratio == pytest.approx(
        sum(0.02 * sqrt(0.1 / 1.9) / one for one in each) / 8, rel=1e-12
    )


def test_what_is_changed_is_multiplied() -> None:
    course = Course(variance=0.09, lr=0.02, weight_decay=1.5, beta1=0.9, corrected=True, horizon=FLAT)
    changed = course.changed(std=2.0, lr=3.0, decay=0.5, corrected=False)
    assert (changed.variance, changed.lr, changed.weight_decay) == pytest.approx((0.36, 0.06, 0.75))
    assert (changed.corrected, course.changed().corrected) == (False, True)


def test_the_correction_takes_decay_away_where_the_rate_falls() -> None:
    falling = FLAT.model_copy(update={"final_fraction": 0.0})
    course = Course(variance=1.0, lr=0.02, weight_decay=2.0, beta1=0.9, corrected=True, horizon=falling)
    [corrected], [plain] = course.at([50]), course.changed(corrected=False).at([50])
    assert corrected.rms > 1.2 * plain.rms


@pytest.mark.parametrize(("steps", "evaluations"), [(128, 8), (100, 7), (5, 9), (1, 1), (977, 10)])
def test_the_evaluations_are_those_of_a_run(steps: int, evaluations: int) -> None:
    horizon = Horizon(batch_tokens=64, tokens=64 * steps)
    due = [
        step
        for step in range(1, steps + 1)
        if step * evaluations // steps > (step - 1) * evaluations // steps
    ]
    assert list(evaluation_steps(horizon, evaluations)) == due


def test_a_plans_laws_are_those_that_a_runs_diagnostics_follow(real_text: Path) -> None:
    torch.set_num_threads(1)
    recipe = Recipe(
        hyperparameters=Hyperparameters(lr=0.03, weight_decay=2.0, decay="l2"),
        proxy=GPTConfig(width=16, depth=1, context=16, readout_std=0.1),
        horizon=Horizon(batch_tokens=64, tokens=64 * 20),
    )
    plan = recipe.at(width=64)
    settings = {kind: plan.settings(kind) for kind in plan.kinds}
    spec = RunSpec(
        model=plan.model,
        base_width=16,
        horizon=plan.horizon,
        hyperparameters=plan.hyperparameters,
        settings=settings,
        data=str(real_text),
    )
    options = RunOptions(evaluations=2, validation_batches=1, diagnostics=True)
    history = run(spec, options).history
    kinds: tuple[Kind, ...] = ("embedding", "readout", "matrix")
    for kind in kinds:
        for metrics, law in zip(history, Course.of(plan, kind).at([10, 20]), strict=True):
            assert metrics.diagnostics is not None
            measured = metrics.diagnostics.kinds[kind]
            assert measured.rms
            assert measured.rms_ratio
            assert measured.update_ratio
            assert measured.update_ratio_over_law
            # Drawn weights have not quite their standard deviation; a fan-in of three widths has a smaller one.
            close = 0.15 if kind == "matrix" else 0.02
            assert measured.rms / measured.rms_ratio == pytest.approx(law.rms, rel=close)
            found = measured.update_ratio / measured.update_ratio_over_law
            assert found == pytest.approx(law.update_ratio, rel=2 * close)
    assert initial_std(plan, "matrix") == 1 / 8
