"""Measure how long a sweep waits when a node crashes, or is cut off from the others (a partition). Needs root.

    python benchmarks/node_loss.py

Every node is a network namespace of its own on a bridge. A node with one CPU runs the sweep's trials while an empty
one stands by; then it is killed, or its link goes down. Counted are the seconds until a trial reports again, on a
cluster as docs/clusters.md advises and on one with Ray's own settings. At the end every trial must be there once,
completed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import optuna

HEAD, LOST, SPARE = "ww-head", "ww-lost", "ww-spare"
ADDRESSES = {HEAD: "10.77.0.1", LOST: "10.77.0.2", SPARE: "10.77.0.3"}
BRIDGE = "ww-bridge"
# What docs/clusters.md advises.
ADVISED = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_preload_python_modules": "ray.tune,widthwise.search.trial,torch._dynamo",
}
SWEEP = (
    "sweep --width 32 --context 64 --tokens 409600 --batch-tokens 1024 --trials 4 --seeds 1 --finalists 1"
    " --concurrency 1 --config config.toml --out sweep --address 10.77.0.1:6379"
)


def main() -> None:
    for settings, name in ((ADVISED, "advised"), ({}, "Ray's own")):
        for lose in (crash, partition):
            seconds = measure(lose, settings)
            told = {"loss": lose.__name__, "settings": name, "seconds_to_resume": seconds}
            print(json.dumps(told), flush=True)


def measure(lose: Callable[[subprocess.Popen[bytes]], None], settings: dict[str, str]) -> float:
    """Return the seconds from the loss of the node that trains to the next report of a trial."""
    joining = ("--address", "10.77.0.1:6379", "--num-cpus", "1")
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ww", ignore_cleanup_errors=True))
        )
        (folder / "config.toml").write_text("prune = false")
        stack.enter_context(network())
        head = "--head --port 6379 --num-cpus 0 --include-dashboard false"
        stack.enter_context(node(HEAD, folder, settings, *head.split()))
        lost = stack.enter_context(node(LOST, folder, settings, *joining))
        sweep = stack.enter_context(inside(HEAD, folder, {}, "widthwise", *SWEEP.split()))
        wait_for(lambda: reports(folder / "sweep") >= 2, sweep)
        stack.enter_context(node(SPARE, folder, settings, *joining))
        # By then the spare node has stood by for some seconds, and a trial, the third, is in its middle.
        wait_for(lambda: reports(folder / "sweep") >= 19, sweep)
        began = time.monotonic()
        lose(lost)
        # What was on its way is not of a trial that goes on.
        time.sleep(0.5)
        before = reports(folder / "sweep")
        wait_for(lambda: reports(folder / "sweep") > before, sweep)
        seconds = time.monotonic() - began
        assert sweep.wait() == 0
        lines = [json.loads(line) for line in (folder / "sweep" / "trials.jsonl").read_text().splitlines()]
        assert [line["status"] for line in lines] == ["completed"] * 4, lines
    return round(seconds, 1)


def crash(node: subprocess.Popen[bytes]) -> None:
    """Kill every process of the node at once."""
    kill_all(LOST)


def partition(node: subprocess.Popen[bytes]) -> None:
    """Cut the node's cable; its processes go on."""
    ip(f"link set {LOST} down")


def kill_all(name: str) -> None:
    """Kill the processes of a namespace until there are none: some start others meanwhile."""
    while pids := subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, check=True
    ).stdout.split():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def reports(out: Path) -> int:
    """Return how many evaluations the study knows, 0 where there is none yet."""
    if not (out / "trials.jsonl").exists():
        return 0
    study = optuna.load_study(storage=f"sqlite:///{out / 'study.db'}", study_name="widthwise")
    return sum(len(trial.intermediate_values) for trial in study.get_trials(deepcopy=False))


def wait_for(look: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not look():
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        time.sleep(0.05)


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


@contextmanager
def network() -> Iterator[None]:
    """A bridge with a namespace per node behind it, each with its address and loopback."""
    try:
        ip(f"link add {BRIDGE} type bridge")
        ip(f"link set {BRIDGE} up")
        for name, address in ADDRESSES.items():
            ip(f"netns add {name}")
            ip(f"link add {name} type veth peer name eth0 netns {name}")
            ip(f"link set {name} master {BRIDGE} up")
            for command in (f"address add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                ip(f"-n {name} {command}")
        yield
    finally:
        # A namespace lives on, and keeps its end of the cable, until the last of its processes is gone.
        for link in (*ADDRESSES, BRIDGE):
            subprocess.run(["ip", "link", "delete", link], check=False)
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextmanager
def node(
    name: str, folder: Path, settings: dict[str, str], *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray node in its namespace, up when this is entered."""
    temporary = folder / name.removeprefix("ww-")
    fixed = ["--node-ip-address", ADDRESSES[name], "--disable-usage-stats", "--block"]
    fixed += ["--temp-dir", str(temporary)] if name == HEAD else []
    with inside(name, folder, settings, "ray", "start", *arguments, *fixed) as process:
        log = folder / f"{name}.ray.log"
        wait_for(lambda: "Ray runtime started" in log.read_text(), process)
        yield process


@contextmanager
def inside(
    name: str, folder: Path, settings: dict[str, str], script: str, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A script of this environment in a namespace, killed with all that came of it at the end."""
    command = ["ip", "netns", "exec", name, str(Path(sys.executable).with_name(script)), *arguments]
    with (folder / f"{name}.{script}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        kill_all(name)
        process.wait()


if __name__ == "__main__":
    main()
