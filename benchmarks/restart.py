"""Kill a target run's workers three times and then the command itself; compare its curve with an undisturbed run's.

    python benchmarks/restart.py TEXT OUT

trains on the file TEXT, and writes OUT/restart.json and OUT/restart.png.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.transfer import Recipe

STEPS, EVALUATIONS, DEATHS = 240, 60, 3
SHARDED = ("--workers", "2", "--parallel", "fsdp", "--accumulate", "2")


def main(text: str, out: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tuned = Hyperparameters(lr=0.03, weight_decay=1.0, huber_c=2.0, clip_norm=1.0)
        horizon = Horizon(batch_tokens=1024, tokens=1024 * STEPS)
        proxy = GPTConfig(width=32, context=64)
        Recipe(hyperparameters=tuned, proxy=proxy, horizon=horizon).save(folder / "recipe.json")
        command = ["launch", folder / "recipe.json", "--width", 128, "--data", text]
        command += ["--evaluations", EVALUATIONS]
        _start(*command, "--out", folder / "undisturbed").wait()
        recovery = _disturbed([*command, "--out", folder / "disturbed", *SHARDED], folder / "disturbed")
        curves = {name: _lines(folder / name) for name in ("undisturbed", "disturbed")}
    figures = {
        **recovery,
        "final_losses": {name: lines[-1]["loss"] for name, lines in curves.items()},
        "largest_difference": max(
            abs(one["loss"] - other["loss"]) for one, other in zip(*curves.values(), strict=True)
        ),
        "load_average": os.getloadavg(),
        "curves": {name: [[line["step"], line["loss"]] for line in lines] for name, lines in curves.items()},
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "restart.json").write_text(json.dumps(figures, indent=1) + "\n")
    _draw(figures, Path(out) / "restart.png")


def _disturbed(command: list[Any], folder: Path) -> dict[str, Any]:
    """Kill a worker, again and again, and the command, evenly spaced; say what that cost."""
    running = _start(*command)
    interval = EVALUATIONS // (DEATHS + 2)
    deaths = [_killed_worker(folder, (death + 1) * interval, running) for death in range(DEATHS)]
    later = _wait(folder, (DEATHS + 1) * interval, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    # The rest of the cluster is in sessions of its own, and leaves when it notices.
    resumed = _start(*command, "--resume")
    status = resumed.wait()
    return {
        "worker_killed_after_step": [step for step, _, _ in deaths],
        "seconds_to_the_next_evaluation": [round(seconds, 1) for _, seconds, _ in deaths],
        "cpu_seconds_to_the_next_evaluation": [round(used, 1) for _, _, used in deaths],
        "command_killed_after_step": later,
        "status_of_the_resumed_command": status,
    }


def _killed_worker(
    folder: Path, evaluations: int, running: subprocess.Popen[bytes]
) -> tuple[int, float, float]:
    """Kill one of the workers after so many evaluations.

    Returns:
        The step, the seconds to the next evaluation, and what all processes used of the processor in them.
    """
    step = _wait(folder, evaluations, running)
    before = _processes(running.pid)
    os.kill(max(_workers(running.pid)), signal.SIGKILL)
    killed = time.monotonic()
    # The evaluations after the death are new lines, or old ones once more.
    _wait_for_change(folder, running)
    seconds = time.monotonic() - killed
    used = sum(now - before.get(pid, ("", 0.0))[1] for pid, (_, now) in _processes(running.pid).items())
    return step, seconds, used


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from widthwise.transfer.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, start_new_session=True)


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wait(folder: Path, evaluations: int, running: subprocess.Popen[bytes]) -> int:
    while len(lines := _lines(folder)) < evaluations:
        assert running.poll() is None, "the run has ended"
        time.sleep(0.02)
    return int(lines[-1]["step"])


def _wait_for_change(folder: Path, running: subprocess.Popen[bytes]) -> None:
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    while (folder / "metrics.jsonl").stat().st_mtime_ns == before:
        assert running.poll() is None, "the run has ended"
        time.sleep(0.02)


def _workers(session: int) -> list[int]:
    """Return the process ids of the command's training workers."""
    return [pid for pid, (name, _) in _processes(session).items() if "RayTrainWorker" in name]


def _processes(session: int) -> dict[int, tuple[str, float]]:
    """Return command line and seconds of the processor of everything that the command has started, by process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            values = (process / "stat").read_text().rpartition(")")[2].split()
            if int(values[3]) == session:
                seconds = (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
                found[int(process.name)] = (process / "cmdline").read_text(), seconds
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _draw(figures: dict[str, Any], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (name, curve), style in zip(figures["curves"].items(), ("-", "--"), strict=True):
        axes.plot(*zip(*curve, strict=True), style, label=name)
    killed = [("worker", step) for step in figures["worker_killed_after_step"]]
    for who, step in [*killed, ("command", figures["command_killed_after_step"])]:
        axes.axvline(step, color="grey", linewidth=0.8)
        axes.annotate(f"{who} killed", (step, axes.get_ylim()[1] * 0.95))
    axes.set(xlabel="step", ylabel="validation loss, nats per token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
