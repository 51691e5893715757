"""Clusters of several nodes, each a raylet of its own: one is lost in mid-sweep, one has another version."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from widthwise.proxies.validation import ConfigError
from widthwise.search.nodes import NO_ROOM, local_death, refuse_others
from widthwise.search.silence import NO_ANSWER, SILENT

from ..reported import reports

SWEEP = "sweep --width 32 --context 64 --batch-tokens 1024 --trials 3 --seeds 1 --finalists 1"


def test_a_node_with_another_version_is_named() -> None:
    refuse_others({"10.0.0.1 (ab)": "0.1.0"}, "0.1.0")
    for installed, has in ((None, "no widthwise"), ("0.2.0", "widthwise 0.2.0")):
        with pytest.raises(ConfigError) as caught:
            refuse_others({"10.0.0.1 (ab)": "0.1.0", "10.0.0.2 (cd)": installed}, "0.1.0")
        rule = "every node must have widthwise 0.1.0, as this machine has"
        assert str(caught.value) == f"address: {rule}, got {has} on node 10.0.0.2 (cd); install it there"


@pytest.mark.parametrize(
    ("command", "how", "was_asked_for"),
    [
        ("kill -KILL $$", "was killed by SIGKILL", False),
        ("kill -TERM $$", "was killed by SIGTERM", True),
        ("exit 3", "ended with status 3", True),
        (f"kill -{signal.SIGRTMIN + 5} $$", f"was killed by signal {signal.SIGRTMIN + 5}", False),
    ],
)
def test_a_death_of_the_local_rays_is_told(
    monkeypatch: pytest.MonkeyPatch, command: str, how: str, was_asked_for: bool
) -> None:
    processes = [subprocess.Popen(["bash", "-c", line]) for line in ("exit 1", command)]
    for process in processes:
        process.wait()
    # As Ray keeps them: one that it can do without has died too.
    died = list(zip(("log_monitor", "raylet"), processes, strict=True))
    node = SimpleNamespace(dead_processes=lambda: died)
    monkeypatch.setitem(sys.modules, "ray._private.worker", SimpleNamespace(_global_node=node))
    death = local_death()
    assert death is not None
    assert (str(death), death.was_asked_for) == (f"the local Ray's raylet {how}", was_asked_for)
    del died[1:]
    assert local_death() is None


@pytest.fixture
def sweep(cluster: Any, start: Callable[..., Any], real_text: Path, tmp_path: Path) -> Callable[[int], Any]:
    """Return a function that starts a sweep of one trial at a time on the cluster, up to its second trial."""

    def begin(steps: int) -> Any:
        out = tmp_path / "sweep"
        (tmp_path / "config.toml").write_text("prune = false")
        arguments = ["--tokens", 1024 * steps, "--config", tmp_path / "config.toml", "--concurrency", 1]
        arguments += ["--data", real_text]
        running = start(*SWEEP.split(), *arguments, "--address", cluster.address, "--out", out)
        running.until(lambda: reports(out / "study.db", 1))
        return running

    return begin


def require_all_completed(running: Any) -> None:
    status, _, said = running.finish()
    assert status == 0, said
    died, told = [], []
    for line in said.replace(f"widthwise: {NO_ROOM}\n", "").splitlines()[3:]:
        (died if line.startswith("widthwise: trial ") else told).append(line.split(",")[0])
    assert told == [f"trial {number} completed" for number in range(3)], said
    assert [line.partition(": its worker")[1] for line in died] == [": its worker"], said


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_trial(cluster: Any, sweep: Callable[[int], Any]) -> None:
    lost = cluster()
    running = sweep(50)
    lost.kill_all()
    # The head has no core, and nodes may come.
    running.until(lambda: f"widthwise: {NO_ROOM}\n" in running.err.read_text())
    cluster()
    require_all_completed(running)


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_whose_node_is_lost_goes_on_in_a_worker_that_another_node_had_to_spare(
    cluster: Any, sweep: Callable[[int], Any]
) -> None:
    lost = cluster()
    running = sweep(1500)
    other = cluster()
    spare = running.until(lambda: [pid for pid, name in other.processes().items() if name == "ray::IDLE"])
    lost.kill_all()
    running.until(lambda: other.processes()[spare[0]].startswith("ray::ImplicitFunc"))
    require_all_completed(running)


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_that_is_lost_is_told_and_ends_the_sweep(cluster: Any, sweep: Callable[[int], Any]) -> None:
    cluster()
    running = sweep(300)
    [head] = [pid for pid, name in cluster.head.processes().items() if "gcs_server" in name]
    os.kill(head, signal.SIGKILL)
    status, printed, said = running.finish()
    assert (status, printed) == (1, "")
    failed = f"widthwise: failed: {NO_ANSWER}; what has ended is kept: go on with --resume"
    assert said.splitlines()[-2:] == [f"widthwise: {SILENT}", failed]
    running.require_gone()


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_with_another_version_is_refused_before_the_first_trial(
    cluster: Any, start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    metadata = tmp_path / "other" / "widthwise-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: widthwise\nVersion: 9.9.9\n")
    cluster(str(tmp_path / "other"))
    out = tmp_path / "sweep"
    done = start(*SWEEP.split(), "--data", real_text, "--address", cluster.address, "--out", out).finish()
    assert (done[0], done[1]) == (2, "")
    said = done[2].splitlines()[-1]
    assert said.startswith("widthwise: error: address: every node must have widthwise ")
    assert ", got widthwise 9.9.9 on node " in said
    assert (out / "trials.jsonl").read_text() == ""
