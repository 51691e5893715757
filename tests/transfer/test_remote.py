"""A target run on an S3 server: records and checkpoints there, resumed from there, read from there."""

import json
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.storage import RemotePath, place
from widthwise.transfer import Recipe, cli

STEPS = 120


@pytest.fixture
def run_of(tmp_path: Path, real_text: Path) -> list[object]:
    """Return a command without its folder."""
    tuned = Hyperparameters(lr=0.03, weight_decay=1.0, huber_c=2.0, clip_norm=1.0)
    horizon = Horizon(batch_tokens=1024, tokens=1024 * STEPS)
    proxy = GPTConfig(width=32, context=64)
    Recipe(hyperparameters=tuned, proxy=proxy, horizon=horizon).save(tmp_path / "recipe.json")
    return ["launch", tmp_path / "recipe.json", "--width", 64, "--data", real_text, "--evaluations", 20]


def command(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(part) for part in argv])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def metrics(out: RemotePath | Path) -> list[tuple[int, float]]:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_killed_on_s3_goes_on_there_and_ends_as_an_undisturbed_one(
    s3: Callable[[], str],
    start: Callable[..., Any],
    run_of: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = [*run_of, "--workers", 2, "--parallel", "fsdp"]
    undisturbed = start(*two, "--out", tmp_path / "here")
    uri = f"{s3()}/runs/target"
    out = place(uri)
    assert isinstance(out, RemotePath)
    sharded = [*two, "--out", uri, "--checkpoint-every", 2]
    running = start(*sharded)
    # An object store tells nobody, and one that is asked without a pause does nothing else.
    running.until(lambda: sleep(0.2) or len(metrics(out)) > 3)
    running.kill()
    assert len(metrics(out)) < 20
    [part] = json.loads(command(capsys, "status", uri, "--json")[1])["parts"]
    assert (part["folder"], part["state"], part["status"]) == (uri, "unfinished", None)

    status, printed, said = start(*sharded, "--resume", "--json").finish()
    assert status == 0, said
    assert any(line.startswith("going on from step ") for line in said.splitlines())
    result = json.loads((out / "result.json").read_text())
    assert json.loads(printed) == result
    assert (result["status"], result["steps"]) == ("completed", STEPS)
    files = out.sizes()
    places = {name.rpartition("/")[0] for name in files} - {""}
    assert places == {f"checkpoints/step_{step:09d}" for step in (STEPS - 2, STEPS)}
    assert {name for name in files if "/" not in name} == {
        "metrics.jsonl",
        "plan.json",
        "recipe.json",
        "result.json",
    }
    assert undisturbed.finish()[0] == 0
    assert metrics(out) == metrics(tmp_path / "here")

    for folder in (uri, uri.rpartition("/")[0]):
        [part] = json.loads(command(capsys, "status", folder, "--json")[1])["parts"]
        assert (part["folder"], part["state"], part["loss"]) == (uri, "finished", result["loss"])
    page = tmp_path / "page.html"
    assert command(capsys, "report", uri, "--out", page) == (0, f"{page}\n", "")
    assert f"{result['loss']:.4f}" in page.read_text()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            "s3://name:hidden@b/r",
            "s3://…: must hold no credentials; they belong into the environment of every process",
        ),
        ("nowhere://host/r", "nowhere://host: cannot be reached (Protocol not known: nowhere)"),
        ("s3://bucket/r --print slurm", "out: must be a path with --print, got 's3://bucket/r'"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(
    capsys: pytest.CaptureFixture[str], run_of: list[object], out: str, message: str
) -> None:
    code, printed, said = command(capsys, *run_of, "--out", *out.split())
    assert (code, printed) == (2, "")
    assert said.endswith(f"{message}\n")
    assert "hidden" not in said


def test_a_bucket_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], run_of: list[object], s3: Callable[[], str]
) -> None:
    absent = f"{s3()}-absent"
    code, _, said = command(capsys, *run_of, "--out", f"{absent}/run")
    head = f"widthwise: error: out: {absent}/run cannot be written ("
    assert (code, said.count("\n"), said[: len(head)]) == (2, 1, head)
    code, _, said = command(capsys, "status", f"{absent}/run")
    assert (code, said) == (2, f"widthwise: error: folder: {absent}/run holds no target run\n")
    code, _, said = command(capsys, "report", f"{absent}/run")
    assert (code, said) == (2, "widthwise: error: out: is required for the report of a URI\n")
