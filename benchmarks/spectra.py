"""Time AlphaDecay's refresh and the diagnostics beside training steps of the same model, in turn.

    python benchmarks/spectra.py --threads 1 --json result.json

A refresh comes every 500 steps, so its share of the training time is refresh / (500 · step + refresh). Diagnostics
are taken every 100 steps: one look at the weights, eight sampled steps, and the laws at every step. The batch
is small, which makes steps cheap and the shares upper bounds for larger ones.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from widthwise.kernels import AdamHC
from widthwise.proxies import GPT, AlphaDecay, GPTConfig, Recorder
from widthwise.proxies.observing import SEQUENCES
from widthwise.proxies.outcome import SAMPLED_STEPS

CONTEXT = 256
# How often each comes in how many steps.
PLACES = {
    "refresh": (1, AlphaDecay().interval),
    "refresh, fixed aspect": (1, AlphaDecay().interval),
    "diagnostics: laws": (100, 100),
    "diagnostics: sampled step": (SAMPLED_STEPS, 100),
    "diagnostics: look": (1, 100),
}


def model_of(width: int, depth: int, device: torch.device) -> GPT:
    config = GPTConfig(width=width, depth=depth, head_dim=64, context=CONTEXT, vocab_size=4800)
    return GPT(config, seed=0).to(device)


def measure(model: GPT, device: torch.device, sequences: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a training step and of what comes beside it."""
    optimizer = AdamHC([{"params": list(model.parameters()), "kind": "matrix"}], lr=1e-3, corrected=True)
    recorder = Recorder(model, optimizer)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4800, (sequences, CONTEXT + 1), generator=generator).to(device)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    work: dict[str, Callable[[], object]] = {
        "step": step,
        "refresh": lambda: AlphaDecay()(0, model, optimizer),
        "refresh, fixed aspect": lambda: AlphaDecay(fixed_aspect=True)(0, model, optimizer),
        "diagnostics: laws": lambda: recorder.after_step(sample=False),
        "diagnostics: sampled step": recorder.after_step,
        "diagnostics: look": lambda: recorder.diagnostics(tokens[:SEQUENCES, :-1]),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, function in work.items():
            elapsed = _seconds(function, device)
            if turn > 0:  # the first step makes the optimizer's state
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Add the share of the training time that each takes."""
    rows = []
    for name, value in seconds.items():
        times, steps = PLACES.get(name, (1, 1))
        spent = times * value
        share = None if name == "step" else spent / (steps * seconds["step"] + spent)
        rows.append({"work": name, "seconds": value, "times": times, "steps": steps, "share": share})
    return rows


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table("work", title=title)
    table.add_column("ms", justify="right")
    table.add_column("times per steps", justify="right")
    table.add_column("share", justify="right")
    for row in rows:
        share = "" if row["share"] is None else f"{row['share']:.3%}"
        table.add_row(row["work"], f"{1e3 * row['seconds']:.1f}", f"{row['times']} per {row['steps']}", share)
    Console().print(table)


def main() -> None:
    """Measure, print the table, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--width", type=int, default=512, help="width of the GPT (default 512)")
    parser.add_argument("--depth", type=int, default=8, help="blocks of the GPT (default 8)")
    parser.add_argument("--sequences", type=int, default=2, help=f"of {CONTEXT} tokens, a step (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="times that everything is timed (default 5)")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    model = model_of(arguments.width, arguments.depth, device)
    count = sum(parameter.numel() for parameter in model.parameters())
    rows = report(measure(model, device, arguments.sequences, arguments.rounds))
    show(rows, f"{count / 1e6:.1f} M parameters, {arguments.sequences * CONTEXT} tokens a step")
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    about = {"torch": torch.__version__, "device": machine, "threads": arguments.threads, "parameters": count}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
