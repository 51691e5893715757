"""Settings to begin with: from a recipe, from a finished sweep, from one that was interrupted."""

import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Recipe
from widthwise.transfer.warm_start import known_points


def setting(lr: float, decay: str = "l2") -> dict[str, Any]:
    huber_c = 2.0 if decay == "huber" else None
    return {"lr": lr, "weight_decay": 0.4, "decay": decay, "huber_c": huber_c}


def finalist(tried: dict[str, Any]) -> dict[str, Any]:
    return {"number": 0, "hyperparameters": {**tried, "eps": 1e-8}, "losses": {"0": 2.0}, "mean": 2.0}


def recipe(*finalists: dict[str, Any]) -> Recipe:
    tuned = Hyperparameters(**setting(0.02, "huber"))
    evidence = {"finalists": [finalist(one) for one in finalists]}
    return Recipe(
        hyperparameters=tuned,
        proxy=GPTConfig(),
        horizon=Horizon(),
        evidence=evidence,
        schema="widthwise/recipe/1",
    )


def write_trials(folder: Path, *endings: tuple[float, str, float | None]) -> None:
    lines = [
        {"number": number, "hyperparameters": setting(lr), "status": status, "loss": loss}
        for number, (lr, status, loss) in enumerate(endings)
    ]
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def found(path: Path) -> list[dict[str, Any]]:
    return [point.model_dump() for point in known_points(path)]


def test_a_recipes_own_setting_comes_first_then_its_finalists(tmp_path: Path) -> None:
    recipe(setting(0.02, "huber"), setting(0.05)).save(tmp_path / "recipe.json")
    expected = [setting(0.02, "huber"), setting(0.05)]
    assert found(tmp_path / "recipe.json") == expected
    # A folder needs something of a sweep beside it.
    write_trials(tmp_path, (0.1, "completed", 2.0))
    assert found(tmp_path) == expected


def test_an_interrupted_sweeps_best_trials_are_taken(tmp_path: Path) -> None:
    write_trials(
        tmp_path,
        (0.1, "completed", 2.5),
        (0.2, "stopped", 2.0),
        (0.3, "completed", 2.25),
        (0.4, "diverged", None),
    )
    assert found(tmp_path) == [setting(0.3), setting(0.1)]


def test_what_holds_no_setting_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        known_points(tmp_path)
    assert (
        str(caught.value)
        == f"warm_start: {tmp_path} holds neither a sweep nor a finished check nor a target run"
    )
    with pytest.raises(ConfigError) as caught:
        known_points(tmp_path / "recipe.json")
    assert str(caught.value) == f"warm_start: {tmp_path / 'recipe.json'}: no such file, must be a recipe"
