"""A target run on paper: a 7B plan on 64 GPUs, worked out by hand beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.transfer import Recipe, cli

TUNED = Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0, clip_norm=1.0)
SEVEN_BILLION = "--width 4096 --workers 64 --nodes 8"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe of a proxy 16 times narrower than a 7B model, for 69,060 steps of 2²¹ tokens."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    proxy = GPTConfig(width=256, depth=32, head_dim=128, context=2048, vocab_size=32_000)
    horizon = Horizon(batch_tokens=2**21, tokens=144_829_317_120 + 1000)
    Recipe(hyperparameters=TUNED, proxy=proxy, horizon=horizon).save(path)
    return path


def dry_run(capsys: pytest.CaptureFixture[str], recipe: Path, options: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["launch", str(recipe), *options.split()])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_a_7b_plan_on_64_gpus_worked_out_by_hand(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = f"{SEVEN_BILLION} --tflops-per-worker 400 --dry-run --json"
    status, printed, said = dry_run(capsys, recipe, options)
    assert (status, said) == (0, "")
    assert list(tmp_path.iterdir()) == []  # nothing was written
    found = json.loads(printed)
    d, depth, context, vocabulary = 4096, 32, 2048, 32_000
    # A block: four d·d matrices of the attention, three d·3d of the SwiGLU.
    matrices = depth * (4 * d * d + 3 * d * 3 * d)
    parameters = matrices + 2 * vocabulary * d
    assert found["parameters"] == parameters == 7_241_465_856
    assert found["mesh"] == {
        "parallel": "ddp",
        "nodes": 8,
        "workers": 64,
        "min_workers": 64,
        "shards": 1,
        "replicas": 64,
        "passes": 1,
        "sequences_per_pass": 16,
        "recompute": False,
    }
    memory = found["memory_per_worker"]
    activations = memory.pop("activations")
    # fp32: 4 bytes each for weights, gradients and DDP's buckets, 8 for the two moments.
    assert memory == {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "moments": 8 * parameters,
        "buckets": 4 * parameters,
        "gathered": 0,
        "total": 20 * parameters + activations,
    }
    # Of the 16 sequences, at least each block's inputs and hidden layers in bf16, and the fp32 logits.
    tokens_at_once = 16 * context
    at_least = tokens_at_once * (depth * (8 * d + 4 * 3 * d) * 2 + vocabulary * 4) + 2 * matrices
    assert at_least < activations < 2 * at_least
    assert found["checkpoint_bytes"] == 12 * parameters
    # 6 per weight that multiplies (the embedding is looked up), 12·L·d·T for the attention.
    per_token = 6 * (parameters - vocabulary * d) + 12 * depth * d * context
    assert found["flops_per_token"] == per_token == 45_883_588_608
    assert found["tokens"] == 69_060 * 2**21 == 69_060 * found["plan"]["horizon"]["batch_tokens"]
    assert found["steps"] == 69_060
    assert found["flops"] == per_token * found["tokens"]
    assert found["hours"] == pytest.approx(per_token * found["tokens"] / (64 * 400e12) / 3600)
    assert found["hours"] == pytest.approx(72.10, abs=0.01)
    rows = found["table"]
    assert len(rows) == 32 * 7 + 2
    assert rows["blocks.31.feed_forward.down.weight"] == {
        "kind": "matrix",
        "width_multiplier": 16.0,
        "normalised": True,
        "shape": [d, 3 * d],
        "fan_in": 3 * d,
        "size": 3 * d * d,
        "lr": pytest.approx(0.02 / 16),
        "weight_decay": pytest.approx(0.4 * 4),
        "eps": 1e-8,
    }
    assert rows["readout.weight"]["lr"] == 0.02
    assert rows["readout.weight"]["weight_decay"] == 0


@pytest.mark.parametrize(("parallel", "shards"), [("fsdp", 64), ("hsdp", 8)])
def test_a_sharded_7b_plan_by_hand(
    capsys: pytest.CaptureFixture[str], recipe: Path, parallel: str, shards: int
) -> None:
    options = f"{SEVEN_BILLION} --parallel {parallel} --accumulate 4 --recompute --dry-run --json"
    found = json.loads(dry_run(capsys, recipe, options)[1])
    mesh = found["mesh"]
    assert (mesh["shards"], mesh["replicas"], mesh["sequences_per_pass"]) == (shards, 64 // shards, 4)
    d, parameters = 4096, 7_241_465_856
    memory = found["memory_per_worker"]
    assert parameters % shards == 0
    assert [memory[name] for name in ("weights", "gradients", "moments", "buckets")] == [
        4 * parameters // shards,
        4 * parameters // shards,
        8 * parameters // shards,
        0,
    ]
    # In bf16: embedding, readout, and two blocks of 13·d².
    assert memory["gathered"] == 2 * (2 * 32_000 * d + 2 * 13 * d * d)
    # Each block's input in fp32; the logits in bf16 and their log-probabilities in fp32; one block's own.
    tokens_at_once = 4 * 2048
    inputs, logits = tokens_at_once * 32 * d * 4, tokens_at_once * 32_000 * (2 + 4)
    one_block = tokens_at_once * 40 * d * 2
    assert 0.9 * (inputs + logits) < memory["activations"] < 1.1 * (inputs + logits + one_block)


def test_hours_at_a_throughput_in_tokens(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    Recipe(hyperparameters=TUNED, proxy=GPTConfig(), horizon=Horizon(tokens=7_200_000)).save(path)
    status, printed, _ = dry_run(capsys, path, "--width 128 --tokens-per-second 1000 --dry-run --json")
    found = json.loads(printed)
    assert (status, found["tokens"]) == (0, 7_200_000 // 2048 * 2048)
    assert found["hours"] == found["tokens"] / 1000 / 3600
    assert found["memory_per_worker"]["buckets"] == 0
    assert json.loads(dry_run(capsys, path, "--width 128 --dry-run --json")[1])["hours"] is None


def test_the_costs_and_every_parameter_are_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.json"
    Recipe(hyperparameters=TUNED, proxy=GPTConfig(), horizon=Horizon()).save(path)
    status, printed, said = dry_run(capsys, path, "--width 128 --workers 2 --dry-run --verbose")
    assert (status, said) == (0, "")
    # Four d·d and nine d·d per block, two 256·d.
    assert "│ parameters                     │ 491,520 " in printed
    assert "fan-sqrt: width 64 → 128, depth 2 → 2" in printed
    row = "│ blocks.0.attention.query.weight │ 16,384 │ matrix │ ×2 │ 0.01 │ 0.5657 │"
    assert row in " ".join(printed.split())
    assert "unknown: give --tflops-per-worker or" in printed
    states = (
        "every worker holds all 7.50 MiB of weights, gradients and moments; with --parallel fsdp, 3.75 MiB"
    )
    assert states in printed
    assert "2 on 1 node(s), ddp; 1 pass(es) of 8 " in " ".join(printed.split())
    assert "matrix: η ∝ 1/w keeps the update's effect" in printed
    status, printed, _ = dry_run(capsys, path, "--width 128 --dry-run --tokens-per-second 2000")
    assert status == 0
    assert "│ time                           │ 0.1 hours at 2,000 tokens/s" in printed
    assert "blocks.0" not in printed


@pytest.mark.parametrize("terminal", [False, True])
def test_no_parameters_name_is_cut(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    path = tmp_path / "recipe.json"
    Recipe(hyperparameters=TUNED, proxy=GPTConfig(), horizon=Horizon()).save(path)
    _, printed, _ = dry_run(capsys, path, "--width 128 --dry-run --verbose")
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    names = [row[1].strip() for row in rows if len(row) == 8]
    assert "blocks.1.attention.query.weight" in "".join(names)
    assert ("blocks.1.attention.query.weight" in names) is not terminal


def test_a_dry_run_of_an_elastic_run_tells_of_the_fewest(
    capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    options = f"{SEVEN_BILLION} --parallel fsdp --accumulate 4 --dry-run"
    mesh = json.loads(dry_run(capsys, recipe, f"{options} --json --workers 48-64")[1])["mesh"]
    assert (mesh["workers"], mesh["min_workers"]) == (64, 48)
    fewer = json.loads(dry_run(capsys, recipe, f"{options} --json --workers 32 --accumulate 8")[1])
    held = sum(fewer["memory_per_worker"].values()) / 2 / 2**30  # the total is one of them
    alone = dry_run(capsys, recipe, f"{options} --workers 1-64")[1]
    assert "where only 1 worker is left: 256 pass(es) of 4 sequences, " in alone
    printed = " ".join(dry_run(capsys, recipe, f"{options} --workers 32-64")[1].split())
    assert f"where only 32 workers are left: 8 pass(es) of 4 sequences, {held:.2f} GiB per worker" in printed
    assert "are left" not in dry_run(capsys, recipe, options)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--workers 3 --dry-run", "workers: must divide the 1024 sequences of a batch, got 3"),
        (
            "--workers 64 --accumulate 3 --dry-run",
            "accumulate: must divide the 16 sequences of a worker's share of a batch, got 3",
        ),
        ("--workers 64 --nodes 5 --dry-run", "nodes: must be >= 1 and divide the 64 workers, got 5"),
        ("--nodes 0 --dry-run", "nodes: must be >= 1 and divide the 1 workers, got 0"),
        ("--tflops-per-worker 0 --dry-run", "tflops_per_worker: must be > 0, got 0"),
        ("--tokens-per-second -1 --dry-run", "tokens_per_second: must be > 0, got -1"),
        (
            "--tflops-per-worker 1 --tokens-per-second 1 --dry-run",
            "tokens_per_second: must not be given together with tflops_per_worker",
        ),
        ("--nodes 2", "nodes: needs --dry-run or --print"),
        ("--verbose", "verbose: needs --dry-run"),
        ("--tokens-per-second 5", "tokens_per_second: needs --dry-run"),
    ],
)
def test_an_impossible_dry_run_is_one_line(
    capsys: pytest.CaptureFixture[str], recipe: Path, options: str, message: str
) -> None:
    done = dry_run(capsys, recipe, f"--width 4096 {options}")
    assert done == (2, "", f"widthwise: error: {message}\n")
