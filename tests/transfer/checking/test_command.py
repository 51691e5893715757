"""The command ``widthwise check``: its output, its exit statuses, and its resumption after Ctrl-C."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from math import inf
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.transfer import Recipe
from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.rounds import Design
from widthwise.transfer.checking.running import CheckResult
from widthwise.transfer.checking.tables import interval, notes, show
from widthwise.transfer.cli import main
from widthwise.transfer.commands.check import Check


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe file of a tiny proxy."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    Recipe(
        hyperparameters=Hyperparameters(lr=0.05, weight_decay=4.0, huber_c=2.0),
        proxy=GPTConfig(width=16, depth=1, head_dim=8, context=32),
        horizon=Horizon(batch_tokens=256, tokens=256 * 60, schedule="linear"),
    ).save(path)
    return path


def ran(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--strict",), 1)])
def test_a_verdict_is_a_success_unless_it_must_hold(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], status: int
) -> None:
    out = tmp_path / "out"
    assert ran("check", recipe, "--tokens", 2560, "--out", out, *options) == status
    said = capsys.readouterr()
    assert said.out.startswith("inconclusive: Σηλ is ")
    assert said.out.endswith(f"files: {out / 'check.json'}\n")
    assert said.err == "widthwise: data: python (the recipe does not say what it was tuned on)\n"


def test_json_is_the_files_document(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("check", recipe, "--tokens", 2560, "--out", tmp_path, "--data", "python", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "check.json").read_text())
    assert printed["verdict"]["outcome"] == "inconclusive"


def test_quietly_there_is_the_verdict_alone(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--tokens", 2560, "--out", tmp_path, "--data", "python", "--seeds", 2, "--quiet")
    assert ran("check", recipe, *options) == 0
    sentence = json.loads((tmp_path / "check.json").read_text())["verdict"]["sentence"]
    assert capsys.readouterr() == (f"{sentence}\n", "")


@pytest.mark.parametrize(
    ("options", "status", "line"),
    [
        (("--widths", "16,32"), 2, "error: widths: must be three different ones or more, got [16, 32]"),
        (
            ("--widths", "16,thirty"),
            2,
            "error: widths: must be whole numbers separated by commas, got '16,thirty'",
        ),
        (("--output", "x.json"), 2, "error: output: needs --calibrate"),
        (
            ("--calibrate", "--output", "no/x.json"),
            2,
            "error: output: no/x.json cannot be written: no such folder, or not yours",
        ),
        (
            ("--calibrate", "--rule", "my_rules:mine"),
            2,
            "error: calibrate: must follow a registered rule, which a recipe can name, got 'my_rules:mine'",
        ),
        (("--calibrate", "--output", "/"), 2, "error: output: / is a folder, must be a file"),
        (
            ("--tokens", 2560, "--calibrate"),
            1,
            "failed: calibrate: this check says nothing of λ: Σηλ is 0.38 at width 64 and must be >= 1.5: "
            "weight decay has no time to act; tune the recipe over 11,000 tokens instead of 2,560",
        ),
    ],
)
def test_a_mistake_is_one_line(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    status: int,
    line: str,
) -> None:
    before = recipe.read_bytes()
    assert ran("check", recipe, "--out", tmp_path / "out", "--data", "python", *options) == status
    assert capsys.readouterr().err == f"widthwise: {line}\n"
    assert recipe.read_bytes() == before


@pytest.mark.parametrize("truth", [{"decay_drift": 0.3}, {"coordinate": 0.5}, {"curvature": 0.0}])
def test_the_table_has_a_row_per_width_and_the_verdict_last(
    checked: Callable[..., CheckResult], truth: dict[str, float]
) -> None:
    result = checked(**truth)
    screen = StringIO()
    show(result, Console(file=screen, width=110))
    lines = screen.getvalue().splitlines()
    assert [line.split()[0] for line in lines if line.split()[:1] in (["32"], ["64"], ["128"])] == [
        "32",
        "64",
        "128",
    ]
    assert lines[-1] == result.verdict.sentence
    optima, weights = "best η, λ: log₂ of the best value over", "σ₁: geometric mean of the matrices'"
    assert [any(line.startswith(head) for line in lines) for head in (optima, weights)] == [
        "coordinate" not in truth,
        True,
    ]
    assert any(line.startswith("λ ∝ width to the power of: the rule's 0.50; ") for line in lines)


def test_what_is_not_known_well_is_not_printed_as_if_it_were(
    checked: Callable[..., CheckResult], design: Callable[..., Design]
) -> None:
    def printed(**truth: float) -> str:
        result, screen = checked(design(full=True), **truth), StringIO()
        show(result, Console(file=screen, width=120))
        return screen.getvalue()

    # Without a wall all is known; with one just above the recipe's η no best η has a neighbour on both sides.
    known, unbracketed = printed(), printed(wall=1.0, lr_optimum=1.0)
    quality = (
        r"^quality: the best η of 3 widths within 0\.\d\d octaves of a power law, each known to ± 0\.\d\d; an octave's "
        r"error costs 0\.05\d\d nats per token, penalty 0\.\d{4}$"
    )
    assert re.search(quality, known, re.MULTILINE)
    assert re.search(r"^32 .* 0\.\d{4} \[0\.0000, 0\.\d{4}\] ", known, re.MULTILINE)
    assert re.search(r"^32 .* near \+0\.5\? .* 0\.\d{4} \[-?0\.\d{4}, ∞\] ", unbracketed, re.MULTILINE)
    assert "quality" not in unbracketed


def test_a_number_has_no_negative_zero_and_a_rule_with_the_same_decay_is_no_alternative(
    checked: Callable[..., CheckResult],
) -> None:
    result = checked()
    assert result.measured is not None
    flat = replace(result.measured, rule_decay_exponent=-1e-9)
    same = {name: replace(one, octaves=0.0) for name, one in result.alternatives.items()}
    assert {name for name, one in same.items() if one.change} == {
        "mup-coupled",
        "mup-independent",
        "completep",
    }
    lines = list(notes(replace(result, alternatives=same), flat))
    assert not [line for line in lines if line.startswith("rule ")]
    assert [line for line in lines if line.startswith("λ ∝ width to the power of: the rule's 0.00; ")]
    assert interval(Estimate(value=-0.001, low=-inf, high=inf)) == "+0.00 [-∞, +∞]"


def test_too_few_seeds_are_told_before_anything_is_trained(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("check", recipe, "--tokens", 2560, "--out", tmp_path, "--data", "python", "--seeds", 2) == 0
    assert capsys.readouterr().err == (
        "widthwise: note: with 2 seed(s) the transfer can fail, but not hold: that takes 3 "
        "(--seeds, also with --resume)\n"
    )


def test_calibration_says_how_well_the_exponent_is_known(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    checked: Callable[..., CheckResult],
    design: Callable[..., Design],
) -> None:
    result, path = checked(design(seeds=(0, 1)), decay_drift=0.3), tmp_path / "calibrated.json"
    Check(recipe=recipe, output=path)._calibrate(result)
    own = Recipe.load(path).rule
    assert own is not None
    assert capsys.readouterr() == ("", f"widthwise: {path} has a rule of its own now: {own.basis()}\n")
    assert own.basis().startswith("rule calibrated has λ ∝ w^0.")
    assert own.basis().endswith(f"], from a check of fan-sqrt at widths 32 to 128: {result.verdict.sentence}")
    assert result.verdict.outcome == "inconclusive"


@pytest.mark.ray
def test_a_check_that_was_interrupted_goes_on(
    recipe: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    out = tmp_path / "check"
    command = ("check", recipe, "--rule", "sp", "--data", "python", "--out", out, "--concurrency", 1)
    first = start(*command)
    records = out / "runs.jsonl"
    first.until(lambda: records.exists() and len(records.read_text().splitlines()) >= 2)
    first.interrupt()
    status, printed, complaint = first.finish()
    assert (status, printed) == (130, "")
    assert complaint.endswith(f"widthwise: stopped; go on with the same command and --resume ({out})\n")
    kept = [json.loads(line)["key"] for line in records.read_text().splitlines()]
    assert 2 <= len(kept) < 9

    status, printed, complaint = start(*command, "--resume", "--json").finish()
    assert status == 0, complaint
    document = json.loads(printed)
    assert document["verdict"]["outcome"] == "fails"
    assert "the parametrisation is broken" in document["verdict"]["sentence"]
    assert len(document["observations"]) == 9
    keys = [json.loads(line)["key"] for line in records.read_text().splitlines()]
    assert keys[: len(kept)] == kept
    assert len(keys) == len(set(keys)) == 9
    # More seeds go on with the same folder, and keep what is there.
    status, printed, complaint = start(*command, "--resume", "--json", "--seeds", 4).finish()
    assert status == 0, complaint
    assert len(json.loads(printed)["observations"]) == 12
