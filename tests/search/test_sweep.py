"""Sweeps of the real program on a real Ray: quiet, local, repeatable, and killed in every way."""

import ipaddress
import json
import os
import random
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.files import replacing
from widthwise.proxies.validation import ConfigError
from widthwise.search.cluster import TOKEN_REFUSED, require_ray
from widthwise.transfer import Recipe, cli
from widthwise.transfer.standing import standing

from ..events import points
from ..reported import reports
from ..small_disk import on_a_small_disk

pytestmark = pytest.mark.ray

# A trial takes a second or two: long enough to be hit before its end.
STEPS = 150
SMALL = (
    f"--width 32 --context 64 --tokens {1024 * STEPS} --batch-tokens 1024 --trials 6 --seeds 3 --finalists 1"
)


def sweep_of(text: Path) -> list[object]:
    return ["sweep", *SMALL.split(), "--concurrency", 1, "--data", text]


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(storage=f"sqlite:///{out / 'study.db'}", study_name="widthwise")
    return study.get_trials()


def is_halfway(out: Path, number: int) -> Callable[[], bool]:
    """Return whether the driver has heard of the trial's first evaluation, and a checkpoint lies there.

    Or those of one of the next two: it may have ended unseen.
    """
    folders = [(one, out / "trials" / f"trial_{one:04d}") for one in range(number, number + 3)]
    return lambda: any(
        (folder / "checkpoint.pt").exists() and reports(out / "study.db", one) > 0 for one, folder in folders
    )


def interrupted(out: Path) -> int:
    """Return the number of the last trial, which nobody has ended, as all others have been.

    Who looks is in no hurry: trials of less than a second may have ended since one was seen halfway.
    """
    *ended, last = trials(out)
    assert all(trial.state.is_finished() for trial in ended)
    assert last.state == TrialState.RUNNING
    return last.number


def checkpoint_of(out: Path, number: int) -> Path:
    return out / "trials" / f"trial_{number:04d}" / "checkpoint.pt"


def set_clock(out: Path, number: int, seconds: float) -> int:
    """Change the time that a checkpoint says its run took; return its step."""
    path = checkpoint_of(out, number)
    state = torch.load(path, weights_only=True)
    with replacing(path) as file:
        torch.save({**state, "seconds": seconds}, file)
    return int(state["step"])


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


def outcomes(out: Path) -> list[dict[str, Any]]:
    """Return the trials without what depends on the machine's speed."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records(out)]


def curves(found: list[dict[str, Any]]) -> list[list[tuple[int, float]]]:
    """Return (tokens, loss) of every trial's evaluations, the losses in single precision."""
    return [[(1024 * step, float(np.float32(loss))) for step, loss in one["curve"]] for one in found]


def tracked(out: Path) -> list[list[tuple[int, float]]]:
    """Return the same as TensorBoard has it."""
    return [points(out, number) for number in range(len(records(out)))]


def listening(pids: dict[int, str]) -> set[str]:
    """Return the addresses on which the processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            except FileNotFoundError:
                continue
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[index] for index in (1, 3, 9))
            if state == "0A" and inode in inodes:
                words = bytes.fromhex(local.partition(":")[0])
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                address = ipaddress.ip_address(packed)
                addresses.add(str(getattr(address, "ipv4_mapped", None) or address))
    return addresses


@pytest.fixture(scope="module")
def failing(
    start: Callable[..., Any], real_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    """Start a sweep of which a trial fails; return it and its folder."""
    out = tmp_path_factory.mktemp("failing") / "sweep"
    (out / "trials").mkdir(parents=True)
    # No checkpoint can be written below a file.
    (out / "trials" / "trial_0000").write_text("in the way")
    return start(*sweep_of(real_text), "--out", out), out


@pytest.fixture(scope="module")
def undisturbed(
    start: Callable[..., Any],
    failing: tuple[Any, Path],
    real_text: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the folder of a sweep that nothing disturbed, having looked at what it said and left behind.

    `failing` runs beside it, because a sweep's start is a chain of processes that wait for each other.
    """
    out = tmp_path_factory.mktemp("undisturbed") / "sweep"
    running = start(*sweep_of(real_text), "--out", out, "--json")
    running.until(is_halfway(out, 0))
    assert listening(running.processes()) == {"127.0.0.1"}
    status, printed, said = running.finish()
    assert status == 0, said
    running.require_gone()
    running.require_clean_folders()
    recipe = Recipe.parse(json.loads(printed)["recipe"])
    document = json.loads(printed)
    assert (document.pop("out"), recipe) == (str(out), Recipe.load(out / "recipe.json"))
    assert document.pop("recipe")
    # And how the sweep stands, as another process sees it.
    assert [document] == standing(out)
    assert document["state"] == "finished"
    tuned = document["recommended"]["hyperparameters"]
    assert tuned == recipe.hyperparameters.model_dump(mode="json", include=set(tuned))
    assert sum(document["counts"].values()) == len(records(out))
    begun, ended = said.splitlines()[:3], said.splitlines()[3:]
    size = f"{real_text.stat().st_size:,} tokens"
    assert begun == [f"data: {real_text}, {size}", "starting Ray", "starting the first trials"]
    trained = [f"trial {one['number']} {one['status']}, loss {one['loss']:.4f}" for one in records(out)]
    assert [re.sub(r" \(.*\)|;.*", "", line) for line in ended] == trained
    assert ended[-1].endswith(f"; {len(ended)}/{len(ended)} trials")
    return out


def test_a_sweep_ends_with_a_recipe_and_its_evidence(undisturbed: Path) -> None:
    assert sorted(path.name for path in undisturbed.iterdir()) == [
        ".lock",
        "recipe.json",
        "study.db",
        "tensorboard",
        "tracked.json",
        "trials",
        "trials.jsonl",
    ]
    assert list((undisturbed / "trials").iterdir()) == []
    found = records(undisturbed)
    completed = [one for one in found if one["status"] == "completed"]
    assert [one["number"] for one in found] == list(range(8))
    assert tracked(undisturbed) == curves(found)
    assert all(one["tokens"] == 1024 * STEPS and len(one["curve"]) == 8 for one in completed)
    assert all(one["tokens"] < 1024 * STEPS for one in found if one["status"] == "stopped")

    recipe = Recipe.load(undisturbed / "recipe.json")
    evidence, provenance = recipe.evidence or {}, recipe.provenance or {}
    [best] = evidence["finalists"]
    assert (evidence["loss"], evidence["seed_spread"]) == (best["mean"], best["spread"])
    tried = [one for one in found if best["number"] in (one["number"], one["confirms"])]
    assert best["losses"] == {str(one["seed"]): one["loss"] for one in tried}
    assert list(best["losses"]) == ["0", "1", "2"]
    assert tried[0]["loss"] == min(one["loss"] for one in completed if one["confirms"] is None)
    assert recipe.hyperparameters == Hyperparameters.parse(best["hyperparameters"])
    assert (recipe.proxy.width, recipe.horizon.steps) == (32, STEPS)
    assert set(provenance) == {
        "data",
        "config",
        "data_fingerprint",
        "seed",
        "seconds",
        "finished",
        "versions",
    }


def test_a_finished_sweep_is_resumed_at_once(capsys: pytest.CaptureFixture[str], undisturbed: Path) -> None:
    before = records(undisturbed)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", "--resume", "--out", str(undisturbed)])
    recipe = undisturbed / "recipe.json"
    captured = capsys.readouterr()
    assert (stop.value.code, captured.err) == (0, "")
    assert captured.out.endswith(f"recipe: {recipe}; next: widthwise scale {recipe} --width 1024\n")
    assert records(undisturbed) == before


def test_a_sweep_killed_in_every_way_ends_as_an_undisturbed_one(
    start: Callable[..., Any], undisturbed: Path, real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"

    running = start(*sweep_of(real_text), "--out", out)
    running.until(is_halfway(out, 0))
    [worker] = [pid for pid, name in running.processes().items() if name.startswith("ray::ImplicitFunc")]
    # Beside other work a trial has its share of a core, as a bare loop would.
    assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, 0)
    os.kill(worker, signal.SIGSTOP)
    damaged = interrupted(out)
    path = checkpoint_of(out, damaged)
    assert path.exists()
    path.write_text("damaged")
    os.kill(worker, signal.SIGKILL)
    running.until(is_halfway(out, 2))
    running.kill()
    told = f"checkpoint: {path} cannot be read (File is not a zip file); begun anew"
    assert f"widthwise: trial {damaged}: {told}" in running.err.read_text().splitlines()
    killed = interrupted(out)
    assert 2 <= killed < 5
    assert 0 < set_clock(out, killed, 1000.0) < STEPS

    # The folder knows what the sweep was.
    running = start("sweep", "--resume", "--out", out)
    running.until(is_halfway(out, killed + 2))
    running.interrupt()
    status, printed, said = running.finish()
    stopped = interrupted(out)
    last = f"widthwise: stopped; {stopped} trials are kept; go on with: widthwise sweep --resume --out {out}"
    assert (status, printed, said.splitlines()[-1]) == (130, "", last)
    running.require_gone()
    assert killed + 2 <= stopped < 8
    assert not (out / "recipe.json").exists()
    assert 0 < set_clock(out, stopped, 2000.0) < STEPS

    status, _, said = start("sweep", "--resume", "--out", out, "--json").finish()
    assert (status, len(said.splitlines())) == (0, 3 + 8 - stopped)
    ended = outcomes(out)
    assert ended[damaged] == outcomes(undisturbed)[damaged] | {"error": told}
    ended[damaged]["error"] = None
    assert ended == outcomes(undisturbed)
    assert tracked(out) == curves(records(out))
    # Only a trial that continued from its checkpoint took over the clock.
    seconds = [record["seconds"] for record in records(out)]
    assert [index for index, value in enumerate(seconds) if value > 1000] == [killed, stopped]
    recipes = [Recipe.load(folder / "recipe.json") for folder in (out, undisturbed)]
    assert recipes[0].hyperparameters == recipes[1].hyperparameters
    assert recipes[0].evidence == recipes[1].evidence


@pytest.mark.slow
def test_sigterm_to_all_processes_is_as_ctrl_c(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    running = start(*sweep_of(real_text), "--out", out)
    running.until(is_halfway(out, 1))
    # As scancel and systemd do: Ray's own processes end under the driver.
    os.killpg(running.process.pid, signal.SIGTERM)
    status, printed, said = running.finish()
    told = f"widthwise: stopped; 1 trial is kept; go on with: widthwise sweep --resume --out {out}"
    assert (status, printed, said.splitlines()[-1]) == (130, "", told)
    running.require_gone()
    assert trials(out)[1].state == TrialState.RUNNING
    assert start("sweep", "--resume", "--out", out, "--trials", 2, "--seeds", 1).finish()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("gcs_server", "gcs/gcs_server"), ("raylet", "raylet/raylet")])
def test_the_death_of_rays_own_process_is_one_line_and_leaves_the_trial_to_be_resumed(
    start: Callable[..., Any], real_text: Path, tmp_path: Path, name: str, file: str
) -> None:
    out = tmp_path / "sweep"
    running = start(*sweep_of(real_text), "--tokens", 512000, "--out", out)
    running.until(is_halfway(out, 0))
    kill_processes(running, file)
    told = f"the local Ray's {name} was killed by SIGKILL; what has ended is kept: go on with --resume"
    status, printed, said = running.finish()
    assert (status, printed, said.splitlines()[3:]) == (1, "", [f"widthwise: failed: {told}"])
    running.require_gone(but="Agent")
    assert [trial.state for trial in trials(out)] == [TrialState.RUNNING]


@pytest.mark.slow
def test_a_sweep_whose_folder_is_moved_ends_and_goes_on_there(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    out, moved = tmp_path / "sweep", tmp_path / "moved"
    running = start(*sweep_of(real_text), "--tokens", 512000, "--trials", 1, "--seeds", 1, "--out", out)
    running.until(is_halfway(out, 0))
    out.rename(moved)
    told = f"the sweep in {out} is not there any more; go on with --resume where it is now"
    status, printed, said = running.finish()
    assert (status, printed, said.splitlines()[-1]) == (1, "", f"widthwise: failed: {told}")
    running.require_gone()
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    assert set_clock(moved, 0, 1000.0) > 0
    status, _, said = start("sweep", "--resume", "--out", moved).finish()
    assert (status, [one["seconds"] > 1000 for one in records(moved)]) == (0, [True]), said


@pytest.mark.slow
def test_a_full_disk_ends_a_sweep_at_once_and_is_no_trials_fault(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    # There is room for the study, and for no checkpoint.
    script = on_a_small_disk("400k", "trials")
    options = ["--trials", 2, "--seeds", 1, "--log", "none", "--json", "--out", out]
    status, printed, said = start(*sweep_of(real_text), *options, script=script).finish()
    assert status == 0, said
    told = f"the disk of {out} is full; make room, and go on with --resume"
    assert said.splitlines()[3] == f"widthwise: failed: {told}"
    full, kept, result, resumed, in_the_end = printed.splitlines()
    assert (full, kept) == ("status 1", "kept ['trial_0000']")
    assert (resumed, in_the_end) == ("status 0", "kept []")
    assert json.loads(result)["counts"] == {"completed": 2}


def kill_processes(running: Any, name: str) -> None:
    for pid in [pid for pid, command in running.processes().items() if name in command]:
        os.kill(pid, signal.SIGKILL)


def disturb(
    start: Callable[..., Any], text: Path, out: Path, *, total: int, kills: int, chance: random.Random
) -> int:
    """Sweep to the end, which has `total` reports, killing at most `kills` times on the way; return how often."""
    running, spared = start(*sweep_of(text), "--out", out), True
    for done in range(kills):
        study = out / "study.db"
        goal = min(reports(study) + chance.randint(1, 3), total)
        running.until(lambda study=study, goal=goal: reports(study) >= goal)
        if goal == total:
            kills = done
            break
        name = chance.choice(["ray::ImplicitFunc", "raylet/raylet", "driver"])
        if name.startswith("ray::") and spared:
            kill_processes(running, name)
            # A trial may lose its worker twice in a session: none is killed again.
            spared = False
            continue
        if name == "raylet/raylet":
            kill_processes(running, name)
            # Workers go on without it until Ray notices, perhaps to the end.
            if running.process.wait(120) == 0:
                return done + 1
            running.require_gone(but="Agent")
        else:
            running.kill()
        running, spared = start("sweep", "--resume", "--out", out), True
    status, _, said = running.finish()
    assert status == 0, said
    return kills


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sweeps_killed_at_random_moments_end_as_an_undisturbed_one(
    start: Callable[..., Any], undisturbed: Path, real_text: Path, tmp_path: Path
) -> None:
    kills, chance, total = 20, random.Random(20), reports(undisturbed / "study.db")
    while kills > 0:
        out = tmp_path / f"sweep-{kills}"
        kills -= disturb(start, real_text, out, total=total, kills=kills, chance=chance)
        assert outcomes(out) == outcomes(undisturbed)


def test_a_trial_that_fails_is_made_up_for(failing: tuple[Any, Path], undisturbed: Path) -> None:
    running, out = failing
    status, _, said = running.finish()
    assert status == 0, said
    assert said.splitlines()[3].startswith("trial 0 failed: FileExistsError: ")
    failed, *others = records(out)
    assert (failed["status"], failed["error"].partition(":")[0]) == ("failed", "FileExistsError")
    assert [(one["hyperparameters"], one["loss"]) for one in others] == [
        (one["hyperparameters"], one["loss"]) for one in records(undisturbed)
    ]


EMBEDDED = """
import sys
from pathlib import Path
from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon
from widthwise.search import SearchSpace, SweepConfig, sweep
from widthwise.transfer import Recipe
config = SweepConfig(
    model=GPTConfig(width=32, context=64),
    horizon=Horizon(batch_tokens=1024, tokens=10240),
    space=SearchSpace(lr=(0.01, 0.05), decay=("l2",)),
    data=sys.argv[2],
    trials=3,
    seeds=1,
    finalists=1,
    betas=(0.8, 0.9),
)
result = sweep(config, Path(sys.argv[1]), show_progress=False)
assert result.finished
assert result.best.spread is None
assert Recipe.from_sweep(result).at(width=128).settings("matrix").lr > 0
Recipe.from_sweep(result).save(Path(sys.argv[1]) / "mine.json")
"""


def test_a_sweep_within_someones_program_says_nothing(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    running = start(tmp_path / "sweep", real_text, script=EMBEDDED)
    assert running.finish() == (0, "", "")
    running.require_gone()
    tuned = Recipe.load(tmp_path / "sweep" / "mine.json").hyperparameters
    assert (tuned.betas, tuned.decay, tuned.huber_c) == ((0.8, 0.9), "l2", None)
    assert [one["status"] for one in records(tmp_path / "sweep")].count("completed") >= 1


HEAD = (
    "--head --node-ip-address 127.0.0.1 --include-dashboard false --num-cpus 2 --disable-usage-stats --block"
)


def test_a_sweep_on_a_cluster_needs_its_token_and_leaves_it_running(
    start: Callable[..., Any],
    real_text: Path,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = f"127.0.0.1:{free_port}"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    # A short name: the paths of Ray's sockets may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        ports = ["--port", address.partition(":")[2], "--temp-dir", folder]
        cluster = start("start", *HEAD.split(), *ports, script="from ray.scripts.scripts import main; main()")
        cluster.until(lambda: "Ray runtime started" in cluster.out.read_text())
        arguments = [*sweep_of(real_text), "--trials", 2, "--seeds", 1, "--address", address]
        assert start(*arguments, "--out", tmp_path / "first").finish()[0] == 0
        for name, value in (("RAY_AUTH_TOKEN", "cd" * 32), ("RAY_AUTH_MODE", "disabled")):
            monkeypatch.setenv(name, value)
            with pytest.raises(ConfigError, match=f"^address: {TOKEN_REFUSED}$"):
                require_ray(address)
        assert cluster.process.poll() is None
        assert any("gcs_server" in name for name in cluster.processes().values())
        cluster.process.terminate()
        cluster.require_gone(but="Agent")
    message = f"address: no Ray answers at {address!r} ([Errno 111] Connection refused)"
    done = start(*sweep_of(real_text), "--address", address, "--out", tmp_path / "second").finish()
    assert done == (2, "", f"widthwise: error: {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
