"""``check.json`` read back is the result that wrote it; what is damaged or foreign is one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies.files import write_json
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.checking.calibrating import calibrated
from widthwise.transfer.checking.recorded import read_check
from widthwise.transfer.checking.rounds import Design
from widthwise.transfer.checking.running import CheckResult
from widthwise.transfer.custom_rule import CustomRule

Checked = Callable[..., CheckResult]


@pytest.mark.parametrize(
    "truth", [{"decay_drift": 0.3}, {"coordinate": 0.5}, {"wall": 1.0}, {"curvature": 0.0}]
)
def test_a_check_read_back_is_the_one_that_was_written(
    checked: Checked, tmp_path: Path, truth: dict[str, float]
) -> None:
    written = checked(**truth)
    write_json(tmp_path / "check.json", written.as_json())
    read = read_check(tmp_path / "check.json")
    assert read.as_json() == written.as_json()
    assert (read.measured, read.alternatives) == (written.measured, written.alternatives)


def test_a_recipes_own_rule_is_kept_and_calibrated_anew(checked: Checked, tmp_path: Path) -> None:
    written = checked(decay_drift=0.3)
    own = CustomRule(name="mine", base="mup-coupled", weight_decay_exponent=0.6, evidence={"seeds": 3})
    written = replace(written, recipe=written.recipe.model_copy(update={"rule": own}), rule="mine")
    write_json(tmp_path / "check.json", written.as_json())
    read = read_check(tmp_path / "check.json")
    assert (read.recipe.rule, read.recipe) == (own, written.recipe)
    assert read.recipe.at(width=64, rule="mine") == written.recipe.at(width=64, rule="mine")
    assert calibrated(read) == calibrated(written)
    rule = calibrated(read).rule
    assert rule is not None
    assert rule.base == "mup-coupled"


def test_an_interval_without_ends_is_read_as_one(
    checked: Checked, design: Callable[..., Design], tmp_path: Path
) -> None:
    written = checked(design(seeds=(0,)))
    write_json(tmp_path / "check.json", written.as_json())
    read = read_check(tmp_path / "check.json")
    changes = [one.change for one in read.alternatives.values() if one.change is not None]
    assert changes
    assert {(one.low, one.high) for one in changes} == {(-inf, inf)}
    assert read.alternatives == written.alternatives


def test_a_check_that_its_horizon_kept_from_training_is_read_too(checked: Checked, tmp_path: Path) -> None:
    document = checked().as_json() | {"measured": None, "observations": []}
    write_json(tmp_path / "check.json", document)
    assert read_check(tmp_path / "check.json").measured is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "flour/1"}, "schema: must be 'widthwise/check/1', got 'flour/1'"),
        ({"rule": None}, "rule: must be a string, got null"),
        ({"alternatives": [1]}, "alternatives: must be an object, got [1]"),
        ({"observations": [{}]}, "observations.0.setting: is required (and 3 more)"),
        (
            {"options": {"points": 4}},
            "options.points: must be odd, the rule's own value in the middle, got 4",
        ),
        ({"measured": {"widths": []}}, "measured.base_width: is required (and 11 more)"),
        ({"measured": {"base_width": 33}}, "measured.widths: must hold the base width 33, got [32, 64, 128]"),
    ],
)
def test_damage_is_one_line(checked: Checked, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    document = checked().as_json()
    if change.get("measured") == {"base_width": 33}:
        change = {"measured": document["measured"] | {"base_width": 33}}
    path = tmp_path / "check.json"
    path.write_text(json.dumps(document | change))
    with pytest.raises(ConfigError) as caught:
        read_check(path)
    assert str(caught.value) == f"{path}: {message}"
