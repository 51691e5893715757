"""Rules and widths side by side, as a table, JSON and CSV; the list of rules; the same choices for a launch."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.transfer import Recipe, cli, horizon_rules, rules
from widthwise.transfer.custom_rule import CustomRule


def exit_status(*argv: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    return stop.value.code


def cells(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line.strip()]


def test_compare_shows_every_rule(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("scale", recipe, "--width", "256", "--depth", "8", "--compare") == 0
    captured = capsys.readouterr()
    title, _, head, *rows = cells(captured.out)
    assert " ".join(title) == "width 256, from width 64, depth 2 → 8"
    assert head == ["rule", "matrix", "matrix", "embed", "readout", "logits", "residual", "Σηλ"]
    # Other tests register rules too.
    found = {row[0]: row[1:] for row in rows if row[0] != "note:"}
    assert list(found) == list(rules)
    assert found["completep"] == ["0.005", "1.6", "0.02", "0.02", "×0.25", "×0.25", "0.596"]
    assert found["completed-p"] == ["0.005", "1.6", "0.02", "0.005", "×1", "×0.25", "0.596"]
    assert (captured.err, "\x1b" in captured.out) == ("", False)


def test_widths_have_a_row_each(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("scale", recipe, "--widths", "512,1024,512,4096", "--rule", "mup-coupled") == 0
    title, _, head, *rows = cells(capsys.readouterr().out)
    assert " ".join(title) == "rule mup-coupled, from width 64, depth 2 → 2"
    assert head[0] == "width"
    assert [row[:3] for row in rows] == [
        ["512", "0.0025", "0.4"],
        ["1024", "0.00125", "0.4"],
        ["4096", "0.000313", "0.4"],
    ]


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ("", ""),
        ("--tokens 819200", ", tokens ×2"),
        ("--horizon-rule sde", ", horizon rule sde"),
        (
            "--batch-tokens 1024 --tokens 819200 --horizon-rule tau-const",
            ", batch ×0.5, tokens ×2, horizon rule tau-const",
        ),
    ],
)
def test_a_title_names_what_changes_besides_the_sizes(
    recipe: str, capsys: pytest.CaptureFixture[str], options: str, title: str
) -> None:
    for several, head, expected in (
        ("--widths 128,256", "η", f"rule fan-sqrt, from width 64, depth 2 → 2{title}"),
        ("--width 128", "┏", f"fan-sqrt: width 64 → 128, depth 2 → 2{title}"),
    ):
        assert exit_status("scale", recipe, *several.split(), *options.split()) == 0
        assert " ".join(capsys.readouterr().out.partition(head)[0].split()) == expected


def test_of_several_plans_what_to_beware_of_is_said_once(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = CustomRule(name="measured", weight_decay_exponent=0.75)
    Recipe.load(recipe).model_copy(update={"rule": own}).save(recipe)
    assert exit_status("scale", recipe, "--widths", "512,1024", "--decay-kinds", "none") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"note: {own.basis()}",
        "note: decay on nothing; λ was tuned on proxies whose matrices alone decay",
    ]


@pytest.mark.parametrize(
    "options", ["--width 256 --compare", "--widths 256,512", "--widths 256,512 --compare"]
)
def test_several_plans_as_json_and_csv(recipe: str, capsys: pytest.CaptureFixture[str], options: str) -> None:
    names = list(rules) if "--compare" in options else ["fan-sqrt"]
    widths = [256, 512] if "--widths" in options else [256]
    plans = [Recipe.load(recipe).at(width=width, rule=name) for width in widths for name in names]
    assert exit_status("scale", recipe, *options.split(), "--json") == 0
    expected = [{"width": plan.model.width, **plan.as_json()} for plan in plans]
    assert json.loads(capsys.readouterr().out) == {"plans": expected}
    assert exit_status("scale", recipe, *options.split(), "--csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 5 * len(plans)
    kinds = [
        (one.rule, one.model.width, kind, planned) for one in plans for kind, planned in one.kinds.items()
    ]
    for row, (name, width, kind, planned) in zip(rows, kinds, strict=True):
        assert (row["rule"], row["width"], row["kind"]) == (name, str(width), kind)
        assert float(row["lr"]) == planned.lr
        assert float(row["forward_multiplier"]) == planned.multipliers.forward


def test_the_csv_of_one_plan_is_exactly_this(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("scale", recipe, "--width", "256", "--csv") == 0
    head, matrix, *others = capsys.readouterr().out.splitlines()
    assert head == (
        "rule,horizon_rule,width,depth,batch_tokens,tokens,kind,lr,weight_decay,eps,lr_multiplier,"
        "weight_decay_multiplier,eps_multiplier,init_std_multiplier,forward_multiplier,residual_multiplier,"
        "beta1,beta2,decay,huber_c,threshold,corrected,clip_norm,"
        "warmup_fraction,schedule,final_fraction,decay_fraction"
    )
    assert matrix == (
        "fan-sqrt,none,256,2,2048,409600,matrix,0.005,0.8,1e-08,0.25,2.0,1.0,0.5,1.0,1.0,0.9,0.95,"
        "huber,2.0,mean,True,,0.1,cosine,0.0,0.2"
    )
    assert [line.split(",")[6] for line in others] == ["embedding", "readout", "gain", "bias"]


def test_compare_goes_on_without_a_rule_that_cannot_be_had(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--width", "256", "--batch-tokens", "65536", "--compare"]
    assert exit_status("scale", recipe, *options, "--json") == 0
    captured = capsys.readouterr()
    found = [plan["rule"] for plan in json.loads(captured.out)["plans"]]
    assert found == [name for name in rules if name != "completed-p"]
    refusal = "betas: must be in [0, 1), got -2.2, -0.6 (1 - β times 32)"
    assert captured.err == f"widthwise: left out: rule 'completed-p': {refusal}\n"
    # Where no rule can be had, it is an error.
    assert exit_status("scale", recipe, *options, "--horizon-rule", "sde") == 2
    assert capsys.readouterr() == ("", f"widthwise: error: horizon_rule 'sde': {refusal}\n")


def test_rules_lists_every_rule_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("rules", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in document["rules"]] == list(rules)
    assert [one["name"] for one in document["horizon_rules"]] == list(horizon_rules)
    for known, listed in ((rules, "rules"), (horizon_rules, "horizon_rules")):
        for one in document[listed]:
            rule: Any = known[one["name"]]  # type: ignore[index]
            assert (one["source"], one["summary"]) == (rule.source, rule.summary)
    assert exit_status("rules") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*rules, *horizon_rules])


def test_launch_takes_the_same_rules(recipe: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "target"))
    assert exit_status("launch", recipe, "--width", "128", "--horizon-rule", "sd", *out) == 2
    assert "horizon_rule: must be one of none" in capsys.readouterr().err
    assert exit_status("launch", recipe, "--width", "128", "--decay-kinds", "gian", *out) == 2
    assert "decay_kinds: must be one of matrix" in capsys.readouterr().err
