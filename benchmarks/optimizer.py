"""Time a step of AdamHC beside torch's AdamW, all in turn, so that a noisy machine hits them alike.

    python benchmarks/optimizer.py --threads 2 --json result.json
    python benchmarks/optimizer.py --crowded

A step reads θ, g, m and v and writes θ, m and v: 28 bytes per float32 parameter, the basis of GB/s here.
Ratios are medians of the ratios within one turn. A turn is one step on the large workload; on the proxy, whose
4 MB stay in the caches between the steps of a training, it is ten steps after an untimed one.

The bare stream reads and writes the same and computes nothing. The composed Huber decay is what a user would
write around torch's fused AdamW. `--crowded` runs two optimizers on two cores, each bound to one, alone and then
beside a third process that is always busy, and prints how much longer their steps take, scaled by the 2/3 of
the cores that are left to them.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import AdamW, Optimizer

from widthwise.kernels import AdamHC, backends, library

BYTES_PER_PARAMETER = 28
COMMON: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
BASELINE = "torch AdamW fused"
Factory = Callable[[list[Tensor]], Optimizer]


class Stream(Optimizer):
    """The memory traffic of a step, and nothing else."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, {})
        grads = [param.grad for param in params if param.grad is not None]
        columns = [params, grads, *([torch.zeros_like(p) for p in params] for _ in range(2))]
        self.kept = columns
        self.function = library.load(Path(__file__).parent / "stream.cpp").functions.stream
        count = len(params)
        self.arguments = [(ctypes.c_void_p * count)(*map(Tensor.data_ptr, column)) for column in columns]
        self.sizes = (ctypes.c_int64 * count)(*map(Tensor.numel, params))
        self.count = ctypes.c_int64(count)

    def step(self, closure: None = None) -> None:
        self.function(*self.arguments, self.sizes, self.count, torch.get_num_threads())


class Composed(AdamW):
    """Huber decay in torch operations around torch's fused AdamW, a tensor at a time: the fastest found."""

    def __init__(self, params: list[Tensor], huber_c: float = 2.0) -> None:
        super().__init__(params, **{**COMMON, "weight_decay": 0.0}, fused=True)
        self.huber_c = huber_c

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.decay(self.param_groups[0]["params"], COMMON["lr"] * COMMON["weight_decay"])
        super().step()

    def decay(self, params: list[Tensor], strength: float) -> None:
        for param in params:
            limit = self.huber_c * param.abs().mean().item()
            param.sub_(param.clamp(-limit, limit), alpha=strength)


class ComposedForeach(Composed):
    """The same with an operation for all tensors at once, as torch's own optimizers are written."""

    def decay(self, params: list[Tensor], strength: float) -> None:
        sizes = list(map(Tensor.numel, params))
        norms = torch._foreach_norm(params, 1)
        limits = [self.huber_c * norm.item() / n for norm, n in zip(norms, sizes, strict=True)]
        clipped = torch._foreach_clamp_max(params, limits)
        torch._foreach_clamp_min_(clipped, [-limit for limit in limits])
        torch._foreach_sub_(params, clipped, alpha=strength)


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
STEPS = {"large": 1, "proxy": 10}  # of a turn


def contenders(device: torch.device) -> dict[str, Factory]:
    """Return torch's AdamW in two builds, AdamHC in each back end that is there, and the yardsticks."""
    named: dict[str, Factory] = {
        BASELINE: lambda params: AdamW(params, **COMMON, fused=True),
        "torch AdamW foreach": lambda params: AdamW(params, **COMMON, foreach=True),
        "Huber around torch fused": Composed,
        "Huber around torch fused, foreach": ComposedForeach,
        "AdamHC huber corrected (reference)": _adamhc(corrected=True, backend="reference"),
    }
    if device.type == "cpu" and backends.resolve("auto", []) == "cpu":
        named["bare stream"] = Stream
        for decay, corrected in (("l2", False), ("huber", True)):
            label = f"AdamHC {decay}{' corrected' if corrected else ''} (cpu)"
            named[label] = _adamhc(decay=decay, corrected=corrected, backend="cpu")
    return named


def _adamhc(**options: Any) -> Factory:
    return lambda params: AdamHC(params, **COMMON, **options)


def measure(workload: str, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Return milliseconds per step of each contender, by turn."""
    optimizers, steps = _prepare(WORKLOADS[workload], device), STEPS[workload]
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(rounds + 2):
        for name, optimizer in optimizers.items():
            elapsed = _time_steps(optimizer, device, steps)
            if turn >= 2:  # the first steps make the state and warm up
                times[name].append(elapsed)
    return times


def _prepare(shapes: list[tuple[int, ...]], device: torch.device, only: str = "") -> dict[str, Optimizer]:
    """Build the contenders, or the one; gradients are shared, all else is its own."""
    generator = torch.Generator().manual_seed(0)
    weights = [0.02 * torch.randn(shape, generator=generator) for shape in shapes]
    grads = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    optimizers = {}
    for name, build in contenders(device).items():
        if name == only or not only:
            params = [weight.to(device, copy=True).requires_grad_() for weight in weights]
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizers[name] = build(params)
    return optimizers


def _time_steps(optimizer: Optimizer, device: torch.device, steps: int) -> float:
    if steps > 1:  # bring its memory into the caches, from which the contenders before have driven it
        optimizer.step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    _wait(device)
    return (time.perf_counter() - start) * 1e3 / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def crowded(threads: int, seconds: float) -> dict[str, float]:
    """Return by how much a busy third process slows two optimizers more than by its share of two cores."""
    names = (BASELINE, "AdamHC huber corrected (cpu)")
    slowdowns: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(3):
        for name in names:
            alone = _rate_of_two(name, threads, seconds)
            with _busy():
                slowdowns[name].append(alone / _rate_of_two(name, threads, seconds) * 2 / 3)
    return {name: statistics.median(values) for name, values in slowdowns.items()}


def _rate_of_two(name: str, threads: int, seconds: float) -> float:
    """Return the steps per second of two processes together, each on a core of its own."""
    spawn, cores = get_context("spawn"), sorted(os.sched_getaffinity(0))
    results, processes = [], []
    for core in cores[:2]:
        receiver, sender = spawn.Pipe(duplex=False)
        os.sched_setaffinity(0, {core})  # inherited, so that OpenMP counts one core
        process = spawn.Process(target=_count_steps, args=(name, threads, seconds, sender))
        process.start()
        os.sched_setaffinity(0, cores)
        results.append(receiver)
        processes.append(process)
    rate: float = sum(result.recv() for result in results)
    for process in processes:
        process.join()
    return rate


def _count_steps(name: str, threads: int, seconds: float, result: Connection) -> None:
    torch.set_num_threads(threads)
    optimizer = _prepare(WORKLOADS["proxy"], torch.device("cpu"), name)[name]
    for _ in range(10):
        optimizer.step()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        optimizer.step()
        steps += 1
    result.send(steps / (time.perf_counter() - start))


@contextmanager
def _busy() -> Iterator[None]:
    process = get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    yield
    process.terminate()
    process.join()


def _spin() -> None:
    while True:
        pass


def report(workload: str, milliseconds: dict[str, list[float]]) -> dict[str, Any]:
    """Turn times into the rows of one workload."""
    shapes = WORKLOADS[workload]
    count = sum(torch.Size(shape).numel() for shape in shapes)
    rows = []
    for name, times in milliseconds.items():
        turns = zip(times, milliseconds[BASELINE], strict=True)
        row = {
            "optimizer": name,
            "ms_per_step": statistics.median(times),
            "gb_per_s": BYTES_PER_PARAMETER * count / statistics.median(times) / 1e6,
            "times_torch_fused": statistics.median(own / other for own, other in turns),
        }
        rows.append(row)
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
        "--rounds",
        type=int,
        default=15,
        help="turns on the large workload; five times as many on the proxy (default 15)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--crowded", action="store_true", help="two optimizers beside a busy process")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if arguments.crowded:
        for name, slowdown in crowded(arguments.threads, seconds=2.0).items():
            print(f"{name}: {slowdown:.2f} × of alone, scaled by share")
        return
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    results = []
    for workload in arguments.workloads:
        rounds = arguments.rounds * (1 if workload == "large" else 5)
        results.append(report(workload, measure(workload, device, rounds)))
        show(results[-1], Console())
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    about = {"torch": torch.__version__, "device": machine, "threads": arguments.threads}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
