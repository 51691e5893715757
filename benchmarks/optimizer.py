"""Time a step of AdamHC beside torch's AdamW, all in turn, so that a noisy machine hits them alike.

    python benchmarks/optimizer.py --threads 1 --json result.json

A step reads θ, g, m and v and writes θ, m and v: 28 bytes per float32 parameter, the basis of GB/s here.
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
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import AdamW, Optimizer

from widthwise.kernels import AdamHC
from widthwise.kernels.backends import BACKENDS

BYTES_PER_PARAMETER = 28
COMMON: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
BASELINE = "torch AdamW fused"
Factory = Callable[[list[Tensor]], Optimizer]


def transformer_shapes(width: int, depth: int, vocabulary: int, *, gains: bool) -> list[tuple[int, ...]]:
    """Return the shapes of a GPT's parameters: four matrices a block, the ends and, if asked for, gains."""
    block: list[tuple[int, ...]] = [
        (3 * width, width),
        (width, width),
        (4 * width, width),
        (width, 4 * width),
    ]
    block += [(width,)] * 2 if gains else []
    final: list[tuple[int, ...]] = [(width,)] if gains else []
    return [(vocabulary, width), *block * depth, *final, (vocabulary, width)]


WORKLOADS = {
    "large": transformer_shapes(512, 8, 4800, gains=True),
    "proxy": transformer_shapes(64, 5, 130, gains=False),
}


def contenders(device: torch.device) -> dict[str, Factory]:
    """Return torch's AdamW in two builds, and AdamHC in each back end that is there."""
    named: dict[str, Factory] = {
        BASELINE: lambda params: AdamW(params, **COMMON, fused=True),
        "torch AdamW foreach": lambda params: AdamW(params, **COMMON, foreach=True),
    }
    for backend in BACKENDS:
        if backend in ("cpu", "cuda") and backend != device.type:
            continue
        for decay, corrected in (("l2", False), ("huber", True)):
            label = f"AdamHC {decay}{' corrected' if corrected else ''} ({backend})"
            named[label] = _adamhc(decay=decay, corrected=corrected, backend=backend)
    return named


def _adamhc(**options: Any) -> Factory:
    return lambda params: AdamHC(params, **COMMON, **options)


def measure(shapes: list[tuple[int, ...]], device: torch.device, rounds: int) -> dict[str, float]:
    """Return the median milliseconds per step of each contender; gradients are shared, all else is its own."""
    generator = torch.Generator().manual_seed(0)
    weights = [0.02 * torch.randn(shape, generator=generator) for shape in shapes]
    grads = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    optimizers = {}
    for name, build in contenders(device).items():
        params = [weight.to(device, copy=True).requires_grad_() for weight in weights]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizers[name] = build(params)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(rounds + 2):
        for name, optimizer in optimizers.items():
            elapsed = _time_step(optimizer, device)
            if turn >= 2:  # the first steps make the state and warm up
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def _time_step(optimizer: Optimizer, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    optimizer.step()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(workload: str, milliseconds: dict[str, float]) -> dict[str, Any]:
    """Turn medians into the rows of one workload."""
    shapes = WORKLOADS[workload]
    count = sum(torch.Size(shape).numel() for shape in shapes)
    rows = [
        {
            "optimizer": name,
            "ms_per_step": ms,
            "gb_per_s": BYTES_PER_PARAMETER * count / ms / 1e6,
            "times_torch_fused": ms / milliseconds[BASELINE],
        }
        for name, ms in milliseconds.items()
    ]
    return {"workload": workload, "parameters": count, "tensors": len(shapes), "rows": rows}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the rows of one workload as a table."""
    title = (
        f"{result['workload']}: {result['parameters'] / 1e6:.2f} M parameters in {result['tensors']} tensors"
    )
    table = Table("optimizer", title=title)
    for heading in ("ms/step", "GB/s", "× torch fused"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        numbers = (f"{row['ms_per_step']:.3f}", f"{row['gb_per_s']:.1f}", f"{row['times_torch_fused']:.2f}")
        table.add_row(row["optimizer"], *numbers)
    console.print(table)


def main() -> None:
    """Run the workloads, print the tables, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--rounds", type=int, default=15, help="steps timed on the large workload (default 15)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    results = []
    for workload in arguments.workloads:
        rounds = arguments.rounds * (1 if workload == "large" else 20)
        results.append(report(workload, measure(WORKLOADS[workload], device, rounds)))
        show(results[-1], Console())
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    about = {"torch": torch.__version__, "device": machine, "threads": arguments.threads}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
