"""A target run whose local Ray, or whose folder, goes away ends with one line, and goes on afterwards."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.files import write_json
from widthwise.proxies.validation import RunError
from widthwise.search import cluster
from widthwise.transfer import Recipe, losing
from widthwise.transfer.losing import ended_where_lost, lost

MOVED = "the run in {out} is not there any more; go on with --resume where it is now"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return the folder of a run that has begun."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "plan.json", {})
    return folder


@pytest.fixture
def _session() -> Iterator[None]:
    """Take signals as a session of Ray's does."""
    with cluster._terminated_as_interrupted():
        yield


@pytest.mark.usefixtures("_session")
def test_what_waits_is_ended_when_the_folder_goes(out: Path) -> None:
    assert lost(out) is None

    def wait() -> None:
        out.rename(out.with_name("moved"))
        time.sleep(20)

    with pytest.raises(RunError) as raised, ended_where_lost(lambda: lost(out)):
        wait()
    assert str(raised.value) == MOVED.format(out=out)


@pytest.mark.usefixtures("_session")
def test_an_error_that_comes_of_a_loss_is_told_by_it_and_another_by_itself(out: Path) -> None:
    def fail() -> None:
        raise OSError("what Ray makes of it")

    with pytest.raises(OSError, match=r"^what Ray makes of it$"), ended_where_lost(lambda: lost(out)):
        fail()
    out.rename(out.with_name("moved"))
    with pytest.raises(RunError, match="is not there any more"), ended_where_lost(lambda: lost(out)):
        fail()


@pytest.mark.usefixtures("_session")
def test_who_ends_all_processes_has_interrupted_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losing, "SECONDS_BETWEEN_LOOKS", 0.001)
    seen = Event()

    def found() -> tuple[str, float]:
        seen.set()
        return "the local Ray's raylet ended with status 0", 20.0

    def be_ended() -> None:
        assert seen.wait(20)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), ended_where_lost(found):
        be_ended()


def test_in_another_thread_nothing_is_looked_for() -> None:
    ended: list[str] = []

    def run() -> None:
        with ended_where_lost(lambda: pytest.fail("looked")):
            ended.append("well")

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert ended == ["well"]


@pytest.fixture
def begin(start: Callable[..., Any], real_text: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that starts a target run of so many steps up to its first evaluation."""

    def begin(out: Path, steps: int, *options: object) -> Any:
        tuned = Hyperparameters(lr=0.03, weight_decay=1.0, huber_c=2.0)
        horizon = Horizon(batch_tokens=1024, tokens=1024 * steps)
        proxy = GPTConfig(width=32, context=64)
        Recipe(hyperparameters=tuned, proxy=proxy, horizon=horizon).save(tmp_path / "recipe.json")
        command = ["launch", tmp_path / "recipe.json", "--width", 64, "--data", real_text]
        command += ["--evaluations", steps // 40, "--checkpoint-every", 20]
        return start(*command, "--out", out, *options)

    return begin


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("gcs_server", "gcs/gcs_server"), ("raylet", "raylet/raylet")])
def test_the_death_of_rays_own_process_ends_a_run_with_one_line(
    begin: Callable[..., Any], tmp_path: Path, name: str, file: str
) -> None:
    out = tmp_path / "target"
    running = begin(out, 4000)
    running.until((out / "metrics.jsonl").exists)
    [pid] = [pid for pid, command in running.processes().items() if file in command]
    os.kill(pid, signal.SIGKILL)
    status, printed, said = running.finish()
    told = f"widthwise: failed: the local Ray's {name} was killed by SIGKILL; go on with --resume"
    *before, last = said.splitlines()
    assert (status, printed, last) == (1, "", told)
    assert [line for line in before if "widthwise: " in line and "not watched" not in line] == []
    running.require_gone(but="Agent")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_whose_folder_is_moved_ends_and_goes_on_there(
    begin: Callable[..., Any], tmp_path: Path, workers: int
) -> None:
    out, moved = tmp_path / "target", tmp_path / "moved"
    options = ["--workers", workers, "--parallel", "fsdp"]
    running = begin(out, 800, *options)
    running.until((out / "metrics.jsonl").exists)
    out.rename(moved)
    status, printed, said = running.finish()
    told = f"widthwise: failed: {MOVED.format(out=out)}"
    assert (status, printed, said.splitlines()[-1]) == (1, "", told)
    running.require_gone()
    assert not out.exists()
    status, _, said = begin(moved, 800, *options, "--resume").finish()
    assert status == 0, said
    assert not (moved / ".ray").exists()
