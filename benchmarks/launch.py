"""Compare what a target run through Ray Train, with one worker, costs beside a bare training loop.

    OMP_WAIT_POLICY=passive python benchmarks/launch.py [ROUNDS [STEPS]]

Both train the same model on the same batches with AdamHC for as many steps, one after the other, several times.
Seconds of the clock tell little on a machine with other work; seconds of the processor are those of all processes
that a launch starts (driver, Ray, worker), between its first and its last evaluation. A launched run has a
validation batch at each, a bare loop has none. `launch` lets idle threads sleep, and so does the bare loop by the
variable.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from widthwise.kernels import AdamHC
from widthwise.proxies import GPT, GPTConfig, open_tokens, parameter_table
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.schedule import schedule
from widthwise.transfer import LaunchOptions, Plan, Recipe, launch

WIDTH = 128


def main(rounds: str = "3", steps: str = "40") -> None:
    plan = _plan(int(steps))
    pairs = [(_bare(plan), _launched(plan)) for _ in range(int(rounds))]
    figures = {
        "width": WIDTH,
        "steps": plan.horizon.steps,
        "threads": os.cpu_count(),
        "bare": [bare for bare, _ in pairs],
        "launched": [launched for _, launched in pairs],
        **{
            f"median_ratio_{unit}": _ratio(pairs, unit)
            for unit in ("tokens_per_second", "tokens_per_cpu_second")
        },
        "load_average": os.getloadavg(),
    }
    print(json.dumps(figures, indent=2))


def _ratio(pairs: list[tuple[dict[str, int], dict[str, int]]], unit: str) -> float:
    return round(median(launched[unit] / bare[unit] for bare, launched in pairs), 3)


def _speed(tokens: int, seconds: float, cpu_seconds: float) -> dict[str, int]:
    return {
        "tokens_per_second": round(tokens / seconds),
        "tokens_per_cpu_second": round(tokens / cpu_seconds),
    }


def _plan(steps: int) -> Plan:
    tuned = Hyperparameters(lr=0.02, weight_decay=1.0, huber_c=2.0, clip_norm=1.0)
    horizon = Horizon(batch_tokens=2048, tokens=2048 * steps)
    return Recipe(hyperparameters=tuned, proxy=GPTConfig(width=64), horizon=horizon).at(width=WIDTH)


def _bare(plan: Plan) -> dict[str, int]:
    """Return the speed of a loop that does nothing but train, its first steps left out."""
    torch.set_num_threads(os.cpu_count() or 1)
    model, tokens = GPT(plan.model, seed=0), open_tokens("python")
    table = parameter_table(lambda width: GPT(plan.model.model_copy(update={"width": width})), WIDTH, 64)
    optimizer = AdamHC(plan.parameter_groups(model, table), clip_norm=1.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    sequences = plan.horizon.sequences(plan.model.context)
    first = plan.horizon.steps // 4
    for step in range(plan.horizon.steps):
        if step == first:
            began, used = time.perf_counter(), time.process_time()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(plan.horizon, step)
        x, y = tokens.batch(step, seed=0, batch_size=sequences, context=plan.model.context)
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    tokens_seen = (plan.horizon.steps - first) * plan.horizon.batch_tokens
    return _speed(tokens_seen, time.perf_counter() - began, time.process_time() - used)


def _launched(plan: Plan) -> dict[str, int]:
    """Return the speed of `launch` between its first and its last evaluation, all its processes counted."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "target"
        arguments = ["--launch", out, str(plan.horizon.steps)]
        running = subprocess.Popen([sys.executable, __file__, *arguments], start_new_session=True)
        began, first = _at_evaluation(out, 1, running)
        ended, last = _at_evaluation(out, 4, running)
        running.wait()
    tokens = last["tokens"] - first["tokens"]
    return _speed(tokens, last["seconds"] - first["seconds"], ended - began)


def _at_evaluation(out: Path, count: int, running: subprocess.Popen[bytes]) -> tuple[float, dict[str, float]]:
    """Wait for an evaluation; return the processor's seconds until then, and its metrics."""
    path = out / "metrics.jsonl"
    while not path.exists() or len(lines := path.read_text().splitlines()) < count:
        assert running.poll() is None, "the run has ended"
        time.sleep(0.05)
    return _cpu_seconds(running.pid), json.loads(lines[count - 1])


def _cpu_seconds(session: int) -> float:
    """Return what all living processes of a session have used."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            values = (process / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(values[3]) == session:
            ticks += int(values[11]) + int(values[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--launch"]:
        launch(
            _plan(int(sys.argv[3])),
            Path(sys.argv[2]),
            LaunchOptions(evaluations=4, validation_batches=1),
            show_progress=False,
        )
    else:
        main(*sys.argv[1:])
