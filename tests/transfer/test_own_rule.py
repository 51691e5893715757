"""``--rule MODULE:FUNCTION``: a rule of one's own, for every command that takes one, or one line that says why not."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from widthwise.transfer import LaunchOptions, Recipe, cli, rulebook
from widthwise.transfer.commands.launch import Launch
from widthwise.transfer.commands.submitting import _own_files
from widthwise.transfer.launching import _spec

SOURCE = """
from dataclasses import replace
from widthwise.transfer import Multipliers, Ratios, Scaled, scaled

def steep(ratios: Ratios) -> Scaled:
    "η ∝ w^-2 on matrices."
    w = ratios.width
    return scaled(matrix=Multipliers(lr=w**-2, init_std=w**-0.5), why={"matrix": "steeper than most"})

def constant(ratios):
    return scaled(matrix=Multipliers(lr=0.5))

def half(ratios):
    return scaled(matrix=Multipliers(), residual_multiplier=0.5)

def quicker(ratios):
    return replace(scaled(matrix=Multipliers()), one_minus_beta=2.0)

def failing(ratios):
    return ratios.heigth

def nothing(ratios):
    return None

def negative(ratios):
    return scaled(matrix=Multipliers(lr=2 - ratios.width))

number = 3
"""


@pytest.fixture(autouse=True)
def _in_a_folder_with_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_rules.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_rules", None)
    rulebook._own.cache_clear()


def exit_status(*argv: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    return stop.value.code


def test_scale_takes_it(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("scale", recipe, "--width", "256", "--rule", "my_rules:steep", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["rule"], document["kinds"]["matrix"]["lr"]) == ("my_rules:steep", 0.02 / 16)
    assert document == Recipe.load(recipe).at(width=256, rule="my_rules:steep").as_json()
    assert exit_status("scale", recipe, "--width", "256", "--rule", "my_rules:steep") == 0
    out = capsys.readouterr().out
    assert "my_rules:steep: width 64 → 256" in out
    assert "matrix: steeper than most" in out


def test_it_stands_beside_the_others(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["scale", recipe, "--width", "256", "--compare", "--json"]
    assert exit_status(*options, "--rule", "my_rules:steep") == 0
    own, *others = json.loads(capsys.readouterr().out)["plans"]
    assert (own["rule"], own["kinds"]["matrix"]["lr"]) == ("my_rules:steep", 0.02 / 16)
    assert exit_status(*options) == 0
    assert json.loads(capsys.readouterr().out)["plans"] == others
    # One that stands there anyhow stands there once, first; one that cannot be had is an error.
    assert exit_status(*options, "--rule", "sp") == 0
    names = [one["rule"] for one in json.loads(capsys.readouterr().out)["plans"]]
    assert names == ["sp", *(one["rule"] for one in others if one["rule"] != "sp")]
    assert exit_status(*options, "--rule", "my_rules:half") == 2
    assert capsys.readouterr().out == ""


def test_a_run_has_its_values_and_its_name(recipe: str) -> None:
    plan = Recipe.load(recipe).at(width=128, rule="my_rules:steep")
    # Workers get values alone, so that they need not have the module.
    assert _spec(plan, LaunchOptions(), None).settings["matrix"].lr == 0.02 / 4
    assert plan.document()["rule"] == "my_rules:steep"


@pytest.mark.parametrize(("rule", "files"), [("my_rules:steep", ["my_rules.py"]), ("fan-sqrt", [])])
def test_a_submitted_run_takes_the_module_along(recipe: str, rule: str, files: list[str]) -> None:
    command = Launch(recipe=Path(recipe), width=128, rule=rule)
    plan = Recipe.load(recipe).at(width=128, rule=rule)
    assert _own_files(command, plan) == [Path.cwd() / name for name in files]


@pytest.mark.parametrize("command", ["scale", "launch"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rules:", "rule: must be MODULE:FUNCTION, got 'my_rules:'"),
        ("no_rules:steep", "rule: no module 'no_rules' for 'no_rules:steep'"),
        ("my_rules:step", "rule: module 'my_rules' has no function 'step'; did you mean 'steep'?"),
        ("my_rules:number", "rule: module 'my_rules' has no function 'number'"),
        (
            "my_rules:constant",
            "rule 'my_rules:constant': must change nothing where every ratio is 1, but does for 'matrix'",
        ),
        (
            "my_rules:half",
            "rule 'my_rules:half': must change nothing where every ratio is 1, but does for 'residual_multiplier'",
        ),
        (
            "my_rules:quicker",
            "rule 'my_rules:quicker': must change nothing where every ratio is 1, but does for 'one_minus_beta'",
        ),
        (
            "my_rules:failing",
            "rule 'my_rules:failing': failed: AttributeError: 'Ratios' object has no attribute 'heigth'",
        ),
        ("my_rules:nothing", "rule 'my_rules:nothing': must return what `scaled` does, got None"),
        ("my_rules:negative", "rule 'my_rules:negative': matrix.lr: must be finite and >= 0, got -2.0"),
    ],
)
def test_what_is_no_rule_is_one_line(
    recipe: str, command: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(command, recipe, "--width", "256", "--rule", name) == 2
    assert capsys.readouterr() == ("", f"widthwise: error: {message}\n")
