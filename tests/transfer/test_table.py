"""The command ``table``: a model of one's own, found in the current folder, or one line that says why not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import ParameterTable
from widthwise.transfer import cli

SOURCE = """
from torch import nn

def build(width):
    return nn.Sequential(nn.Embedding(9, width), nn.Linear(width, width, bias=False), nn.Linear(width, 9, bias=False))

def talking(width):
    print("hello")
    return build(width)

def number(width):
    return 3

def failing(width):
    return build(width / 2 + 0.5)

def kv_heads(width):
    return nn.Sequential(nn.Linear(width, width // 2), nn.Linear(width, 32), nn.Linear(width, 9))
"""
BASES = ["--width", "64", "--base-width", "16"]


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_model.py").write_text(SOURCE)
    (tmp_path / "importing.py").write_text("import absent_library")
    (tmp_path / "failing.py").write_text("1 / 0")
    # As transformers does where torchvision does not fit torch.
    (tmp_path / "hiding.py").write_text(
        "raise ModuleNotFoundError('something is amiss\\nand more') from RuntimeError('the reason')"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_model", "importing", "failing", "hiding"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def exit_status(*argv: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        cli.main(["table", *argv])
    return stop.value.code


def test_it_prints_a_row_per_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("my_model:build", *BASES) == 0
    out = capsys.readouterr().out
    assert "width 16 → 64" in out
    rows = [[word.strip() for word in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert rows == [
        ["0.weight", "embedding", "×4", "no"],
        ["1.weight", "matrix", "×4", "yes"],
        ["2.weight", "readout", "×4", "no"],
    ]


def test_it_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("my_model:build", *BASES, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["width"], document["base_width"], len(document["entries"])) == (64, 16, 3)
    row = {"kind": "matrix", "width_multiplier": 4.0, "normalised": True, "shape": [64, 64], "fan_in": 64}
    assert (document["schema"], document["entries"]["1.weight"]) == ("widthwise/table/1", row)


def test_it_prints_a_line_per_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("my_model:build", *BASES, "--csv") == 0
    assert capsys.readouterr().out.splitlines() == [
        "parameter,kind,width_multiplier,normalised,shape,fan_in",
        "0.weight,embedding,4.0,False,9x64,",
        "1.weight,matrix,4.0,True,64x64,64",
        "2.weight,readout,4.0,False,9x64,",
    ]


def test_what_it_writes_is_what_python_reads(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--override", "1.weight=matrix", "--override", "[24].bias=gain", "--transposed", "0.weight"]
    assert (
        exit_status("my_model:kv_heads", *BASES, *options, "--delta-width", "48", "--out", "table.json") == 0
    )
    assert "gain" in capsys.readouterr().out
    found = ParameterTable.load("table.json")
    assert {name: (entry.kind, entry.fan_in) for name, entry in found.items()} == {
        "0.weight": ("matrix", 32),
        "0.bias": ("bias", None),
        "1.weight": ("matrix", 64),
        "1.bias": ("bias", None),
        "2.weight": ("readout", None),
        "2.bias": ("gain", None),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--override 1.weight", "override: must be PATTERN=KIND, got '1.weight'"),
        ("--override =matrix", "override: must be PATTERN=KIND, got '=matrix'"),
        (
            "--override 1.wieght=matrix",
            "overrides: pattern '1.wieght' matches no parameter; did you mean '1.weight'?",
        ),
        (
            "--override 1.weight=matrx",
            "overrides: kind must be one of matrix, embedding, readout, gain, bias, got 'matrx'; "
            "did you mean 'matrix'?",
        ),
        ("--transposed expert", "transposed: pattern 'expert' matches no parameter"),
        ("--delta-width 0", "delta_width: must be >= 1, got 0"),
        (
            "--delta-width 16",
            "delta_width: must differ from base_width = 16, or no dimension is seen to grow",
        ),
        ("--csv --json", "csv: must not be given together with json"),
        ("--out no/table.json", "out: no/table.json cannot be written (No such file or directory)"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("my_model:build", *BASES, *options.split()) == 2
    assert capsys.readouterr() == ("", f"widthwise: error: {message}\n")


def test_what_the_model_prints_stays_off_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("my_model:talking", *BASES, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["width"] == 64
    assert "hello" in captured.err


def test_a_model_that_fails_and_widths_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("my_model:failing", *BASES) == 2
    said = capsys.readouterr().err
    assert said.startswith("widthwise: error: build: failed at width 64: TypeError: ")
    assert said.count("\n") == 1
    assert exit_status("my_model:build", "--width", "64", "--base-width", "0") == 2
    assert capsys.readouterr().err == "widthwise: error: base_width: must be >= 1, got 0\n"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("x", "must be MODULE:FUNCTION, got 'x'"),
        ("my_model:", "must be MODULE:FUNCTION, got 'my_model:'"),
        (":build", "must be MODULE:FUNCTION, got ':build'"),
        ("./my_model:build", "must be MODULE:FUNCTION, got './my_model:build'"),
        ("my_model:number", "must return a torch.nn.Module, got 3"),
        ("absent:build", "no module 'absent' for 'absent:build'"),
        ("importing:build", "no module 'absent_library' for 'importing:build'"),
        ("failing:build", "importing 'failing' failed: ZeroDivisionError: division by zero"),
        (
            "hiding:build",
            "importing 'hiding' failed: ModuleNotFoundError: something is amiss and more (RuntimeError: the reason)",
        ),
        ("my_model.py:build", "must be MODULE:FUNCTION, the module without .py, got 'my_model.py:build'"),
        ("my_model:biuld", "module 'my_model' has no function 'biuld'; did you mean 'build'?"),
        ("my_model:nn", "module 'my_model' has no function 'nn'"),
        (
            "my_model:kv_heads",
            "cannot tell readouts from other layers from growing to fixed size, got '1.weight', '2.weight'; let what "
            "is fixed, such as kv heads, grow with the width, or name each: 'matrix' divides η by the ratio of widths, "
            "for layers within the model, 'readout' keeps η, for its outputs; as in overrides={'1.weight': 'matrix'} "
            "(--override 1.weight=matrix)",
        ),
    ],
)
def test_what_cannot_be_tabled_is_one_line(
    build: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(build, *BASES) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"widthwise: error: build: {message}\n")
