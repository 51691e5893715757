"""Target runs of a model of the user's own: the plan's groups reach it by name, and its mistakes are one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from widthwise.kernels import AdamHC
from widthwise.proxies import GPTConfig, parameter_table
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.data import open_tokens
from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.runs import RunSpec, run
from widthwise.proxies.training import train
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Recipe, cli, launching
from widthwise.transfer.launch_options import LaunchOptions, require_possible
from widthwise.transfer.own_model import own_model

# The bottleneck grows with the root of the width: its own multiplier, and so its own learning rate.
SOURCE = """
import math

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, width, vocabulary=256):
        super().__init__()
        print("hello")
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        bottleneck = 4 * math.isqrt(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.readout = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.readout(x + self.up(torch.relu(self.down(self.norm(x)))))


def build(width):
    return Model(width)


def narrow(width):
    return Model(width, vocabulary=9)


class Placed(Model):
    # Bare parameters, a matrix kept (in, out) among them: shapes do not tell their kinds.
    def __init__(self, width):
        super().__init__(width)
        self.positions = nn.Parameter(torch.randn(64, width))
        self.mix = nn.Parameter(torch.randn(width, 4 * math.isqrt(width)) / width)

    def forward(self, tokens):
        x = super().forward(tokens)
        return x + self.readout(torch.relu(self.positions @ self.mix) @ self.mix.T)[: x.shape[1]]


class Failing(Model):
    def forward(self, tokens):
        return super().forward(tokens)[:, :, None] @ tokens


class Deciding(Model):
    def forward(self, tokens):
        return super().forward(tokens) * (2 if tokens[0, 0].item() else 1)
"""
TUNED = Hyperparameters(lr=0.03, weight_decay=1.0, huber_c=2.0, clip_norm=1.0)
RECIPE = Recipe(
    hyperparameters=TUNED,
    proxy=GPTConfig(width=16, context=64),
    horizon=Horizon(batch_tokens=1024, tokens=1024 * 12),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a model and a recipe."""
    (tmp_path / "own_network.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import torch\nassert torch is None, 'no torch\\nhere'\n")
    RECIPE.save(tmp_path / "recipe.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_network", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_workers_run_equals_the_readmes_three_calls(folder: Path, real_text: Path) -> None:
    plan = RECIPE.at(width=64)
    own = own_model(plan, "own_network:build")
    options = LaunchOptions(data=str(real_text), model="own_network:build")
    spec = RunSpec.model_validate_json(launching._spec(plan, options, own).model_dump_json())
    found = run(spec, RunOptions(seed=3, evaluations=2))

    build: Callable[[int], nn.Module] = sys.modules["own_network"].build
    table = parameter_table(build, width=64, base_width=16)
    torch.manual_seed(3)
    model = build(64)
    groups = plan.parameter_groups(model, table)
    assert {group["name"]: group["lr"] for group in groups} == {
        "embedding x4": pytest.approx(0.03),
        "gain x4": pytest.approx(0.03),
        "bias x4": pytest.approx(0.03),
        "bias x2": pytest.approx(0.03),
        "matrix x4": pytest.approx(0.03 / 4),
        "matrix x2": pytest.approx(0.03 / 2),
        "readout x4": pytest.approx(0.03),
    }
    expected = train(
        model,
        AdamHC(groups, clip_norm=1.0),
        open_tokens(str(real_text), vocab_size=256),
        plan.horizon,
        context=64,
        options=RunOptions(seed=3, evaluations=2),
    )
    assert [line.loss for line in found.history] == [line.loss for line in expected.history]
    assert found.history[-1].loss < found.history[0].loss
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.flops is None  # the model has no flops_per_token


def launch(capsys: pytest.CaptureFixture[str], options: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["launch", "recipe.json", "--width", "64", "--data", "python", *options.split()])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("own_network", "build: must be MODULE:FUNCTION, got 'own_network'"),
        ("absent:build", "build: no module 'absent' for 'absent:build'"),
        ("own_network:biuld", "build: module 'own_network' has no function 'biuld'; did you mean 'build'?"),
        ("broken:build", "build: importing 'broken' failed: AssertionError: no torch here"),
        ("own_network:narrow", "model: must map tokens (1, 64) to logits (1, 64, 256), got (1, 64, 9)"),
    ],
)
def test_a_model_that_cannot_be_trained_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    for dry in ("", " --dry-run"):
        status, printed, said = launch(capsys, f"--model {model}{dry}")
        assert (status, printed) == (2, "")
        assert said.splitlines()[-1] == f"widthwise: error: {message}"
        assert set(said.splitlines()[:-1]) <= {"hello"}


def test_a_failing_forward_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, said = launch(capsys, "--model own_network:Failing")
    assert status == 2
    last = said.splitlines()[-1]
    assert last.startswith("widthwise: error: model: failed on tokens (1, 64): RuntimeError: ")


def test_a_dry_run_of_an_own_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, said = launch(capsys, "--model own_network:build --dry-run --json")
    assert status == 0
    table = json.loads(printed)["table"]
    assert table["down.weight"]["lr"] == pytest.approx(0.03 / 4)
    assert table["up.weight"]["lr"] == pytest.approx(0.03 / 2)
    assert "hello" in said
    status, printed, said = launch(capsys, "--model own_network:build --dry-run")
    own = "logits ×0.25, residual branches ×1, initial standard deviations embedding ×1, matrix ×0.5, readout ×1"
    told = f"own_network:build: the model's own to apply: {own} of the proxy's"
    assert (status, printed.splitlines()[-1]) == (0, told)
    status, printed, said = launch(capsys, "--model own_network:Deciding --dry-run")
    assert (status, printed) == (2, "")
    assert said.splitlines()[-1] == (
        "widthwise: error: model: 'own_network:Deciding' decides by numbers what it computes: "
        "a dry run has only shapes"
    )


PLACED = "--model own_network:Placed --override positions=embedding --transposed mix"


def test_kinds_that_shapes_do_not_tell_are_named_to_a_launch(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed, _ = launch(capsys, f"{PLACED} --dry-run --json")
    assert status == 0
    table = json.loads(printed)["table"]
    assert (table["positions"]["kind"], table["positions"]["lr"]) == ("embedding", pytest.approx(0.03))
    # Summed over the width, which grows fourfold, and not over the last dimension, which doubles.
    assert (table["mix"]["fan_in"], table["mix"]["lr"]) == (64, pytest.approx(0.03 / 4))
    status, _, said = launch(capsys, "--model own_network:Placed --dry-run")
    assert status == 2
    assert said.splitlines()[-1] == (
        "widthwise: error: build: cannot tell the kind of parameter 'positions' of shape (64, 64) in Placed "
        "(1 growing dimension); name it: overrides={'positions': 'embedding'} (--override positions=embedding) "
        "('matrix' for η/w, where it sums over the width)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--override positions=embedding", "override: needs --model"),
        ("--transposed mix", "transposed: needs --model"),
        (f"{PLACED} --override positions", "override: must be PATTERN=KIND, got 'positions'"),
        (f"{PLACED} --override absent=matrix", "overrides: pattern 'absent' matches no parameter"),
        (
            f"{PLACED} --override positions=embeding",
            "overrides.positions: must be 'matrix', 'embedding', 'readout', 'gain' or 'bias', got 'embeding'; "
            "did you mean 'embedding'?",
        ),
    ],
)
def test_what_a_launch_cannot_name(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    for dry in ("", " --dry-run"):
        status, printed, said = launch(capsys, options + dry)
        assert (status, printed, said.splitlines()[-1]) == (2, "", f"widthwise: error: {message}")


def test_kinds_need_a_model_of_ones_own() -> None:
    with pytest.raises(ConfigError, match=r"^overrides: needs a model of your own$"):
        require_possible(RECIPE.at(width=64), LaunchOptions(overrides={"positions": "embedding"}))


def test_named_kinds_reach_the_workers_and_the_runs_identity(folder: Path, real_text: Path) -> None:
    plan = RECIPE.at(width=64)
    found = [
        own_model(plan, "own_network:Placed", {"positions": kind}, ("mix",))
        for kind in ("embedding", "matrix")
    ]
    assert found[0].identity() != found[1].identity()
    options = LaunchOptions(data=str(real_text))
    losses = [run(launching._spec(plan, options, own), RunOptions(evaluations=1)).loss for own in found]
    assert losses[0] != losses[1]


def test_named_kinds_go_along_with_a_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = "--override mix=matrix --print slurm --out /shared/target --data /shared/data"
    status, printed, _ = launch(capsys, f"{PLACED} {more}")
    assert status == 0
    said = " ".join(printed.replace("\\\n", " ").split())
    assert "--override=positions=embedding --override=mix=matrix --transposed=mix" in said


@pytest.mark.slow
@pytest.mark.ray
def test_an_own_model_through_ray_resumed_by_itself_alone(
    start: Callable[..., Any], folder: Path, real_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = folder / "target", f"--data {real_text} --evaluations 2 --seed 3 --out {folder}/target"
    program = f"import os; os.chdir({str(folder)!r}); from widthwise.transfer.cli import main; main()"
    command = f"launch recipe.json --width 64 --model own_network:build {options} --json"
    status, printed, said = start(*command.split(), script=program).finish()
    assert status == 0, said
    result = json.loads(printed)
    assert (result["status"], result["width"], result["flops"]) == ("completed", 64, None)
    plan = json.loads((out / "plan.json").read_text())
    assert plan["own_model"]["build"] == "own_network:build"
    own = own_model(RECIPE.at(width=64), "own_network:build")
    spec = launching._spec(RECIPE.at(width=64), LaunchOptions(data=str(real_text)), own)
    assert result["loss"] == pytest.approx(run(spec, RunOptions(seed=3, evaluations=2)).loss, abs=1e-5)

    assert launch(capsys, f"{options} --resume --json --model own_network:build")[0] == 0
    started, was = f"must be as the run in {out} was started", plan["own_model"]
    for model, told in (
        ("", f"own_model: {started}, {was}, got None"),
        (
            "--model own_network:Deciding",
            f"own_model.build: {started}, 'own_network:build', got 'own_network:Deciding'",
        ),
    ):
        status, _, said = launch(capsys, f"{options} --resume {model}")
        assert (status, said.splitlines()[-1]) == (2, f"widthwise: error: {told}")
    # The same function, whose bottleneck is now a bias less.
    source = folder / "own_network.py"
    source.write_text(source.read_text().replace("(width, bottleneck)", "(width, bottleneck, bias=False)"))
    del sys.modules["own_network"]
    status, _, said = launch(capsys, f"{options} --resume --model own_network:build")
    told = f"widthwise: error: own_model.table: {started}, {was['table']!r}, got "
    assert (status, said.splitlines()[-1][: len(told)]) == (2, told)
