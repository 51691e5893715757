"""Target runs of the real program on a real Ray: equal for any number of workers, and killed in every way."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.transfer import Recipe, cli

from ..events import scalars

pytestmark = pytest.mark.ray

# Long enough, and looked at often enough, for a signal to arrive in the middle.
WIDTH, STEPS, EVALUATIONS = 128, 160, 20
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a good recipe and a bad one."""
    made = tmp_path_factory.mktemp("runs")
    proxy, horizon = GPTConfig(width=32, context=64), Horizon(batch_tokens=1024, tokens=1024 * STEPS)
    for name, lr in (("recipe", 0.03), ("bad", 1e3)):
        tuned = Hyperparameters(lr=lr, weight_decay=1.0, huber_c=2.0, clip_norm=1.0)
        Recipe(hyperparameters=tuned, proxy=proxy, horizon=horizon).save(made / f"{name}.json")
    return made


def run_of(recipe: Path, text: Path) -> list[object]:
    options = ["--width", WIDTH, "--data", text, "--evaluations", EVALUATIONS, "--diagnostics"]
    return ["launch", recipe, *options]


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learnt(out: Path) -> list[dict[str, Any]]:
    """Return the metrics without what depends on the machine's speed."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines(out)]


def has_evaluated(out: Path, times: int) -> Callable[[], bool]:
    return lambda: len(lines(out)) >= times


@pytest.fixture(scope="module")
def runs(start: Callable[..., Any], folder: Path, real_text: Path) -> dict[str, tuple[int, str, str]]:
    """Return how runs by one worker ended, of which one is stopped: folder → status and what was printed."""
    recipes = {"stopped": "recipe.json", "undisturbed": "recipe.json", "diverged": "bad.json"}
    # All at a time, because a run's start is a chain of processes that wait for each other.
    running = {
        name: start(*run_of(folder / recipe, real_text), "--out", folder / name, "--json")
        for name, recipe in recipes.items()
    }
    running["stopped"].until(has_evaluated(folder / "stopped", 2))
    running["stopped"].process.terminate()  # as a scheduler ends a job: taken as Ctrl-C
    ended = {name: one.finish() for name, one in running.items()}
    for one in running.values():
        one.require_gone()
    running["diverged"].require_clean_folders()
    return ended


@pytest.fixture
def undisturbed(runs: dict[str, tuple[int, str, str]], folder: Path) -> Path:
    """Return the folder of the run that nothing disturbed."""
    return folder / "undisturbed"


UNWATCHED = "widthwise: not watched: the recipe has no bands; a sweep measures them with three seeds or more"
BEGUN = f"target of width {WIDTH}, rule fan-sqrt: {STEPS} steps of 1,024 tokens on 1 worker, in {{}}"


def test_a_target_run_leaves_its_result_metrics_and_plan(
    runs: dict[str, tuple[int, str, str]], undisturbed: Path
) -> None:
    status, printed, said = runs["undisturbed"]
    assert status == 0, said
    unwatched, begun, training, *steps = said.splitlines()
    assert unwatched == UNWATCHED
    assert begun == BEGUN.format(undisturbed)
    assert training == "training on 1 worker, from step 0"
    assert [line.partition(":")[0] for line in steps] == [
        f"step {line['step']}" for line in lines(undisturbed)
    ]
    names = [".lock", "checkpoints", "metrics.jsonl", "plan.json", "recipe.json", "result.json"]
    names.append("tensorboard")
    assert sorted(path.name for path in undisturbed.iterdir()) == names
    result = json.loads((undisturbed / "result.json").read_text())
    assert json.loads(printed) == result
    metrics = lines(undisturbed)
    assert [line["step"] for line in metrics] == list(range(8, 161, 8))
    last = metrics[-1]
    assert result == {
        "status": "completed",
        "loss": last["loss"],
        "steps": STEPS,
        "tokens": 1024 * STEPS,
        "seconds": result["seconds"],
        "parameters": result["parameters"],
        "flops": last["flops"],
        "rule": "fan-sqrt",
        "width": WIDTH,
    }
    drawn = [step for step, _ in scalars(undisturbed / "tensorboard" / "target", "loss")]
    assert drawn == [line["tokens"] for line in metrics]
    assert last["seconds"] <= result["seconds"]
    assert last["loss"] < metrics[0]["loss"] < 5.6
    assert list(last["diagnostics"]["kinds"]) == ["matrix", "embedding", "readout"]
    assert last["diagnostics"]["gradient_norm"] == pytest.approx(last["grad_norm"], rel=0.5)


def test_a_finished_run_is_not_repeated(
    capsys: pytest.CaptureFixture[str], folder: Path, undisturbed: Path, real_text: Path
) -> None:
    def again(*options: object) -> tuple[Any, str, str]:
        command = [*run_of(folder / "recipe.json", real_text), "--out", undisturbed, *options]
        with pytest.raises(SystemExit) as stop:
            cli.main([str(part) for part in command])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("metrics.jsonl")}
    result = json.loads((undisturbed / "result.json").read_text())
    outcome = f"validation loss {result['loss']:.4f} nats per token after 163,840 tokens"
    assert again("--resume") == (
        0,
        f"width {WIDTH}, rule fan-sqrt: {outcome}, {result['seconds']:.1f} s\n"
        f"files: {undisturbed}/result.json, {undisturbed}/metrics.jsonl\n",
        "",
    )
    holds = f"widthwise: error: out: {undisturbed} holds"
    choice = "add --resume to go on with it, or name another folder"
    assert again() == (2, "", f"{holds} a target run already; {choice}\n")
    started = f"must be as the run in {undisturbed} was started"
    for other, field, was, now in (
        (["--rule", "sp"], "rule", "'fan-sqrt'", "'sp'"),
        (["--seed", 1], "seed", 0, 1),
        (["--tokens", 10240], "tokens", 163840, 10240),
    ):
        told = f"widthwise: error: {field}: {started}, {was}, got {now}\n"
        assert again("--resume", *other) == (2, "", told)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("metrics.jsonl")} == before


@pytest.mark.slow
def test_two_workers_with_a_part_each_one_of_them_killed_learn_what_one_learns(
    start: Callable[..., Any], folder: Path, undisturbed: Path, real_text: Path
) -> None:
    out, sharded = folder / "two", ["--workers", 2, "--parallel", "fsdp", "--accumulate", 2]
    running = start(*run_of(folder / "recipe.json", real_text), "--out", out, *sharded)
    running.until(has_evaluated(out, 3))
    workers = [pid for pid, name in running.processes().items() if "RayTrainWorker" in name]
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    status, printed, said = running.finish()
    assert (status, len(printed.splitlines())) == (0, 2), said
    running.require_gone()
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == ["step_000000152", "step_000000160"]
    assert [line["step"] for line in lines(out)] == [line["step"] for line in lines(undisturbed)]
    for one, other in zip(lines(out), lines(undisturbed), strict=True):
        # Sums in another order differ by a rounding, which training then amplifies.
        tolerance = 1e-5 if one["step"] <= 24 else 5e-3
        assert one["loss"] == pytest.approx(other["loss"], abs=tolerance)
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=tolerance)


def test_a_run_stopped_and_killed_ends_as_an_undisturbed_one(
    start: Callable[..., Any],
    runs: dict[str, tuple[int, str, str]],
    folder: Path,
    undisturbed: Path,
    real_text: Path,
) -> None:
    out = folder / "stopped"
    command = [*run_of(folder / "recipe.json", real_text), "--out", out]
    status, printed, said = runs["stopped"]
    told = f"widthwise: stopped; go on with the same command and --resume ({out})"
    assert (status, printed, said.splitlines()[-1]) == (130, "", told)
    done = len(lines(out))
    assert 2 <= done < EVALUATIONS

    running = start(*command, "--resume")
    running.until(has_evaluated(out, done + 2))
    running.kill()
    assert len(lines(out)) < EVALUATIONS
    assert not (out / "result.json").exists()

    status, _, said = start(*command, "--resume").finish()
    assert status == 0, said
    _, _, first, training, *told = [line.partition(":")[0] for line in said.splitlines()]
    from_step = int(first.removeprefix("going on from step "))
    assert training == f"training on 1 worker, from step {from_step}"
    assert told == [f"step {step}" for step in range(from_step + 8, STEPS + 1, 8)]
    assert learnt(out) == learnt(undisturbed)
    results = [json.loads((run / "result.json").read_text()) for run in (out, undisturbed)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_a_run_that_diverges_says_so(runs: dict[str, tuple[int, str, str]], folder: Path) -> None:
    status, printed, said = runs["diverged"]
    result = json.loads(printed)
    told = f"the run diverged at step {result['steps']}; there is no checkpoint"
    assert status == 1
    turned = "from 1 on, a step's decay turns weights' signs"
    note = f"widthwise: note: ηλ of kind matrix reaches 500 at width 128 with fan-sqrt: {turned}"
    begun = [note, UNWATCHED, BEGUN.format(folder / "diverged"), "training on 1 worker, from step 0"]
    assert said.splitlines() == [*begun, f"widthwise: failed: {told}"]
    assert result == json.loads((folder / "diverged" / "result.json").read_text())
    assert (result["status"], result["loss"]) == ("diverged", None)
    assert 0 < result["steps"] < STEPS
