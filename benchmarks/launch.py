"""Compare a target run's speed through Ray Train, with one worker, with a bare training loop's.

    python benchmarks/launch.py

Both train the same model on the same batches with AdamHC for as many steps, one after the other, several times.
A run's seconds are its workers' own, with its validation and checkpoints; a bare loop has neither.
"""

import json
import os
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

WIDTH, STEPS, ROUNDS = 256, 120, 5


def main() -> None:
    plan = _plan()
    pairs = [(_bare(plan), _launched(plan)) for _ in range(ROUNDS)]
    ratios = [launched / bare for bare, launched in pairs]
    figures = {
        "width": WIDTH,
        "steps": plan.horizon.steps,
        "threads": os.cpu_count(),
        "bare_tokens_per_second": [round(bare) for bare, _ in pairs],
        "launched_tokens_per_second": [round(launched) for _, launched in pairs],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(median(ratios), 3),
        "load_average": os.getloadavg(),
    }
    print(json.dumps(figures, indent=2))


def _plan() -> Plan:
    tuned = Hyperparameters(lr=0.02, weight_decay=1.0, huber_c=2.0, clip_norm=1.0)
    horizon = Horizon(batch_tokens=2048, tokens=2048 * STEPS)
    return Recipe(hyperparameters=tuned, proxy=GPTConfig(width=64), horizon=horizon).at(width=WIDTH)


def _bare(plan: Plan) -> float:
    """Return the tokens per second of a loop that does nothing but train."""
    torch.set_num_threads(os.cpu_count() or 1)
    model, tokens = GPT(plan.model, seed=0), open_tokens("python")
    table = parameter_table(lambda width: GPT(plan.model.model_copy(update={"width": width})), WIDTH, 64)
    optimizer = AdamHC(plan.parameter_groups(model, table), clip_norm=1.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    sequences = plan.horizon.sequences(plan.model.context)
    began = time.perf_counter()
    for step in range(plan.horizon.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(plan.horizon, step)
        x, y = tokens.batch(step, seed=0, batch_size=sequences, context=plan.model.context)
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return plan.horizon.tokens / (time.perf_counter() - began)


def _launched(plan: Plan) -> float:
    """Return the tokens per second of `launch`, without the start of Ray and of its worker."""
    options = LaunchOptions(evaluations=2, validation_batches=2)
    with tempfile.TemporaryDirectory() as folder:
        result = launch(plan, Path(folder) / "target", options, show_progress=False)
    return float(result["tokens"] / result["seconds"])


if __name__ == "__main__":
    main()
