"""A sweep's plots: its trials against η and λ, and the quadratic, on a landscape that is known."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.transfer import Recipe, cli
from widthwise.transfer.reporting.panels import Panel
from widthwise.transfer.reporting.reading import read_contents
from widthwise.transfer.reporting.sweep_panels import sweep_panels

# The minimum, and an elongated valley around it.
LR, DECAY, LOSS = 0.03, 2.0, 2.1


def loss_at(lr: float, weight_decay: float) -> float:
    x, y = math.log2(lr / LR), math.log2(weight_decay / DECAY)
    return LOSS + 0.05 * x**2 + 0.05 * (x + y) ** 2


def line(number: int, lr: float, weight_decay: float, **fields: Any) -> dict[str, Any]:
    tried = {"lr": lr, "weight_decay": weight_decay, "decay": "l2", "huber_c": None}
    known = {"number": number, "hyperparameters": tried, "status": "completed", "horizon": 4096}
    return known | {"loss": loss_at(lr, weight_decay)} | fields


@pytest.fixture
def trials(tmp_path: Path) -> list[dict[str, Any]]:
    """Write an interrupted sweep into the folder: completed trials, a stopped one, a diverged one, a confirmation."""
    octaves = np.random.default_rng(0).uniform(-1.5, 1.5, (12, 2))
    lines = [line(i, LR * 2**x, DECAY * 2**y) for i, (x, y) in enumerate(octaves.tolist())]
    lines.append(line(12, 0.1, 0.5, status="stopped", loss=2.9))
    lines.append(line(13, 0.2, 0.5, status="diverged", loss=None))
    lines.append(line(14, LR, DECAY, confirms=0, loss=1.0))
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return lines


def panels(folder: Path) -> list[Panel]:
    return sweep_panels(read_contents(folder).sweeps)


def points(panel: Panel, look: str) -> list[tuple[float, float]]:
    found = [zip(one.x, one.y, strict=True) for one in panel.series if one.look == look]
    return sorted(point for series in found for point in series)


def test_trials_are_drawn_along_both_axes_with_the_least_of_the_quadratic(
    tmp_path: Path, trials: list[dict[str, Any]]
) -> None:
    lr, decay = panels(tmp_path)
    assert (lr.what, decay.what) == ("lr", "decay")
    assert lr.title == f"{tmp_path.name}: loss against η (1 trial diverged)"
    for panel, name, curvature in ((lr, "lr", 0.05), (decay, "weight_decay", 0.025)):
        completed = [one for one in trials if one["status"] == "completed" and "confirms" not in one]
        assert points(panel, "points") == sorted(
            (one["hyperparameters"][name], one["loss"]) for one in completed
        )
        assert points(panel, "open") == [(trials[12]["hyperparameters"][name], 2.9)]
        assert points(panel, "stars") == []
        best = LR if name == "lr" else DECAY
        curve = points(panel, "dashed")
        assert len(curve) > 50
        expected = [LOSS + curvature * math.log2(value / best) ** 2 for value, _ in curve]
        assert [loss for _, loss in curve] == pytest.approx(expected, rel=1e-6)
        assert [one.label for one in panel.series if one.look == "dashed"] == [
            "fitted quadratic of 9 trials (l2)"
        ]
    # Four colours, from small to large values of the other one.
    spans = [one.label for one in lr.series if one.look == "points"]
    values = sorted(one["hyperparameters"]["weight_decay"] for one in completed)
    assert spans == [f"λ {values[i]:.3g} to {values[i + 2]:.3g}" for i in (0, 3, 6, 9)]


def test_a_finished_sweep_shows_what_it_recommends(tmp_path: Path, trials: list[dict[str, Any]]) -> None:
    tuned = Hyperparameters(lr=LR, weight_decay=DECAY, decay="l2")
    drawn = {"lr": LR, "weight_decay": DECAY, "decay": "l2"}
    finalist = {"number": 3, "fitted": True, "hyperparameters": drawn, "losses": {"0": 2.0}, "mean": 2.25}
    Recipe(
        hyperparameters=tuned,
        proxy=GPTConfig(),
        horizon=Horizon(),
        evidence={"finalists": [finalist]},
        schema="widthwise/recipe/1",
    ).save(tmp_path / "recipe.json")
    assert [points(panel, "stars") for panel in panels(tmp_path)] == [[(LR, 2.25)], [(DECAY, 2.25)]]


@pytest.mark.parametrize(("ending", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_command_draws_a_plain_sweep(
    tmp_path: Path, trials: list[dict[str, Any]], ending: str, head: bytes
) -> None:
    out = tmp_path / f"sweep.{ending}"
    with pytest.raises(SystemExit) as stop:
        cli.main(["plot", str(tmp_path), "--out", str(out)])
    assert stop.value.code == 0
    assert out.read_bytes().startswith(head)


def test_without_a_completed_trial_there_is_nothing_to_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = line(0, 0.1, 0.5, status="stopped")
    (tmp_path / "trials.jsonl").write_text(json.dumps(stopped) + "\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["plot", str(tmp_path), "--out", "a.png"])
    needed = "a check that trained, a sweep with a completed trial, or runs with --diagnostics are needed"
    message = f"what: {tmp_path} holds no plots; {needed}"
    assert (stop.value.code, capsys.readouterr().err) == (2, f"widthwise: error: {message}\n")
