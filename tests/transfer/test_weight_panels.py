"""The plots of a run's weights: means over the matrices, and the steady state that weight decay leads to."""

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.transfer import Recipe
from widthwise.transfer.reporting.formats import MetricsLine, PlanFile
from widthwise.transfer.reporting.panels import Series
from widthwise.transfer.reporting.reading import RunFolder
from widthwise.transfer.reporting.weight_panels import run_panels

STEPS = 1500
# Of decay.md: ‖u‖/‖θ‖ = √(2λ/η_max·(1-β1)/(1+β1)) with AdamC, λ = 1, η_max = 0.02 and β1 = 0.9.
ADAMC = 2.294


def parameter(kind: str, size: int, **values: float | None) -> dict[str, Any]:
    return {"kind": kind, "size": size, "kappa": 1.0, **values}


def run_folder(*, corrected: bool) -> RunFolder:
    """Return a run by η = 0.02, λ = 1, linear to zero, of two matrices, one three times as large, and an embedding."""
    recipe = Recipe(
        hyperparameters=Hyperparameters(lr=0.02, weight_decay=1.0, decay="l2", corrected=corrected),
        proxy=GPTConfig(width=64),
        horizon=Horizon(batch_tokens=1024, tokens=1024 * STEPS, schedule="linear"),
    )
    measured = {
        "up": parameter("matrix", 300, rms=0.1, rms_law=0.2, update_ratio=0.01, gradient_to_weight=0.5),
        "down": parameter("matrix", 100, rms=0.3, rms_law=0.2, update_ratio=0.05, gradient_to_weight=None),
        "embedding": parameter("embedding", 1000, rms=9.0, gradient_to_weight=9.0),
    }
    lines = [
        {"step": step, "tokens": 1024 * step, "loss": 2.0, "diagnostics": {"parameters": measured}}
        for step in (450, 900, 1500)
    ]
    return RunFolder(
        name="AdamC" if corrected else "AdamW",
        folder=Path(),
        recipe=recipe,
        plan=PlanFile.parse(recipe.at(width=64).document()),
        metrics=[MetricsLine.parse(one) for one in [{**lines[0], "step": 8, "diagnostics": None}, *lines]],
        result=None,
    )


@pytest.fixture(scope="module")
def series() -> dict[tuple[str, str], Series]:
    runs = [run_folder(corrected=True), run_folder(corrected=False)]
    return {(panel.name, one.label): one for panel in run_panels(runs) for one in panel.series}


def test_what_is_shown_are_the_matrices_by_their_sizes(series: dict[tuple[str, str], Series]) -> None:
    for run in ("AdamC (fan-sqrt)", "AdamW (fan-sqrt)"):
        assert series["rms", run].x == [450, 900, 1500]
        assert series["rms", run].y == pytest.approx([0.15] * 3)
        assert series["rms", f"{run}, law"].y == pytest.approx([0.2] * 3)
        # Where one matrix has no gradient, the other speaks alone.
        assert series["gradients", run].y == pytest.approx([0.5] * 3)


def test_an_update_is_divided_by_the_learning_rate_of_its_steps(
    series: dict[tuple[str, str], Series],
) -> None:
    # Warm-up over 150 steps, then linear to zero: 8 steps before 450, 900 and the end.
    means = [(1350 - (450 - 4.5 - 150)) / 1350, (1350 - (900 - 4.5 - 150)) / 1350, 4.5 / 1350]
    assert series["updates", "AdamC (fan-sqrt)"].y == pytest.approx([0.02 / (0.02 * mean) for mean in means])


def test_the_steady_state_is_constant_with_adamc_and_grows_with_adamw(
    series: dict[tuple[str, str], Series],
) -> None:
    assert series["updates", "AdamC (fan-sqrt), steady state"].y == pytest.approx([ADAMC] * 3, rel=1e-3)
    growth = [(1350 - 295.5) / 1350, (1350 - 745.5) / 1350, 4.5 / 1350]
    expected = [ADAMC / sqrt(factor) for factor in growth]
    assert series["updates", "AdamW (fan-sqrt), steady state"].y == pytest.approx(expected, rel=1e-3)


def test_runs_without_diagnostics_have_no_panels() -> None:
    bare = run_folder(corrected=True)
    assert run_panels([replace(bare, metrics=bare.metrics[:1])]) == []
    # Without a plan nothing is known of η and λ: what was measured remains.
    unplanned = run_panels([replace(bare, plan=None)])
    assert [(panel.name, len(panel.series)) for panel in unplanned] == [("rms", 2), ("gradients", 1)]
