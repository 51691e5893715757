"""Time AdamHC and SGDC on a CUDA device beside torch's fused AdamW and SGD, all in turn, and print Markdown.

    python benchmarks/gpu.py                 # 1 billion parameters, and a proxy of 1 million in 50 tensors
    python benchmarks/gpu.py --steps 5       # only these steps, on a small case, for a checker or a profiler

It needs torch alone. `benchmarks/gpu.sh` runs it with the tests, compute-sanitizer and ncu.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

from widthwise.kernels import SGDC, AdamHC
from widthwise.kernels.cuda.compiler import nvrtc
from widthwise.kernels.cuda.report import report

NARROW = torch.bfloat16
BASELINE, CLIPPED, PLAIN = "torch AdamW fused", "torch AdamW fused, clip_grad_norm_", "torch SGD fused"
ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MOMENTUM: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1}
NO_LIMIT = 1e30  # a norm that clips nothing takes the same time

Step = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """A step, the bytes per parameter that it must read and write, and whom it is compared with."""

    step: Step
    bytes: int
    rival: str = BASELINE


def transformer(width: int, depth: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Return the shapes of a GPT's parameters."""
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,), (width,)]
    return [(vocabulary, width), *block * depth, (width,), (vocabulary, width)]


WORKLOADS = {
    "1 billion": transformer(2048, 17, 35_200),
    "proxy": transformer(96, 8, 256)[:-1],  # 50 tensors
    "small": [(300, 257), (5,), (1,), (1 << 15,)],
}


def contenders(
    shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> dict[str, Contender]:
    """Build those of a dtype of parameters; gradients are shared, all else is their own."""
    generator = torch.Generator(device).manual_seed(0)
    grads = [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]

    def params() -> list[Tensor]:
        own = [torch.full(shape, 0.02, dtype=dtype, device=device, requires_grad=True) for shape in shapes]
        for param, grad in zip(own, grads, strict=True):
            param.grad = grad
        return own

    def adam(**options: Any) -> Step:
        return AdamHC(params(), **{**ADAM, "corrected": True, **options}, backend="cuda").step

    def sgd(**options: Any) -> Step:
        return SGDC(params(), **MOMENTUM, decay="huber", **options, backend="cuda").step

    baselines = {
        BASELINE: Contender(AdamW(params(), **ADAM, fused=True).step, 7 * dtype.itemsize),
        PLAIN: Contender(SGD(params(), **MOMENTUM, fused=True).step, 5 * dtype.itemsize, PLAIN),
    }
    if dtype is NARROW:
        bare: dict[str, Any] = {"master_weights": False}
        return baselines | {
            "AdamHC huber corrected": Contender(adam(), 28),
            "AdamHC, bfloat16 moments": Contender(adam(state_dtype=NARROW), 20),
            "AdamHC, no master": Contender(adam(**bare), 22),
            "AdamHC, no master, bfloat16 moments": Contender(adam(**bare, state_dtype=NARROW), 14),
            "SGDC huber corrected": Contender(sgd(), 20, PLAIN),
            "SGDC, no master, bfloat16 momentum": Contender(sgd(**bare, state_dtype=NARROW), 10, PLAIN),
        }
    clipped = _clipped(AdamW(own := params(), **ADAM, fused=True), own)
    return baselines | {
        CLIPPED: Contender(clipped, 40, CLIPPED),
        "AdamHC l2": Contender(adam(decay="l2", corrected=False), 28),
        "AdamHC huber corrected": Contender(adam(), 28),
        "AdamHC huber-prox corrected": Contender(adam(decay="huber-prox"), 28),
        "AdamHC huber corrected, clip_norm": Contender(adam(clip_norm=NO_LIMIT), 32, CLIPPED),
        "AdamHC, bfloat16 moments": Contender(adam(state_dtype=NARROW), 20),
        "SGDC huber corrected": Contender(sgd(), 20, PLAIN),
        "SGDC, bfloat16 momentum": Contender(sgd(state_dtype=NARROW), 16, PLAIN),
    }


def _clipped(optimizer: Optimizer, params: list[Tensor]) -> Step:
    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, NO_LIMIT)
        optimizer.step()

    return step


def measure(steps: dict[str, Step], rounds: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return, by contender and turn: `device` and `wall` milliseconds a step, and `host` microseconds of its call."""
    times: dict[str, dict[str, list[float]]] = {
        name: {"device": [], "wall": [], "host": []} for name in steps
    }
    for turn in range(rounds + 2):
        for name, step in steps.items():
            taken = _time(step, repeats)
            if turn >= 2:  # the first steps make the state and warm up
                for what, value in taken.items():
                    times[name][what].append(value)
    return times


def _time(step: Step, repeats: int) -> dict[str, float]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    for _ in range(repeats):
        step()
    end.record()
    called = time.perf_counter()
    torch.cuda.synchronize()
    wall = time.perf_counter()
    return {
        "device": begin.elapsed_time(end) / repeats,
        "wall": (wall - start) / repeats * 1e3,
        "host": (called - start) / repeats * 1e6,
    }


def launches(step: Step) -> int:
    """Count the kernels and copies of a step."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiled.events() or [])


def copy_rate(device: torch.device) -> float:
    """Return GB/s, read and written, of a device-to-device copy: what no step can exceed by much."""
    source = torch.empty(1 << 30, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    milliseconds = [_time(lambda: target.copy_(source), 3)["device"] for _ in range(7)]
    return 2 * source.nbytes / statistics.median(milliseconds) / 1e6


def table(name: str, dtype: torch.dtype, device: torch.device, rounds: int, repeats: int) -> list[str]:
    """Return the Markdown of one workload: medians, and ratios to torch's within a turn."""
    shapes = WORKLOADS[name]
    count = sum(torch.Size(shape).numel() for shape in shapes)
    present = contenders(shapes, device, dtype)
    times = measure({own: contender.step for own, contender in present.items()}, rounds, repeats)
    lines = [f"## {name}: {count / 1e6:.2f} M {dtype} parameters in {len(shapes)} tensors", ""]
    lines += ["| optimizer | B/param | device ms | GB/s | wall ms | host µs | launches | torch ÷ it (wall) |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for own, taken in times.items():
        contender = present[own]
        device_ms, wall, host = (statistics.median(taken[what]) for what in ("device", "wall", "host"))
        pairs = zip(times[contender.rival]["wall"], taken["wall"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        rate = contender.bytes * count / device_ms / 1e6
        cells = (contender.bytes, f"{device_ms:.4f}", f"{rate:.0f}", f"{wall:.4f}", f"{host:.0f}")
        lines.append(
            "| " + " | ".join(map(str, (own, *cells, launches(contender.step), f"{ratio:.2f}"))) + " |"
        )
    if "AdamHC l2" in times:
        huber, l2 = (times[f"AdamHC {decay}"]["device"] for decay in ("huber corrected", "l2"))
        cost = statistics.median(a / b for a, b in zip(huber, l2, strict=True))
        lines += ["", f"AdamHC(huber) ÷ AdamHC(l2), on the device: {cost:.3f}"]
    return [*lines, ""]


def kernels(device: torch.device) -> list[str]:
    """Return the Markdown of what the compiler makes of the kernels here."""
    major, minor = torch.cuda.get_device_capability(device)
    found = report(nvrtc(torch.version.cuda), f"sm_{major}{minor}")["kernels"]
    columns = list(next(iter(found.values())))
    lines = ["## Kernels", "", "| kernel | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(str(numbers[column]) for column in columns) + " |"
        for name, numbers in found.items()
    ]
    return [*lines, ""]


def main() -> None:
    """Print the tables, or do the steps that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, help="do this many steps of each on a small case, and print nothing"
    )
    parser.add_argument(
        "--workload", choices=list(WORKLOADS), help="only this one (with --steps: instead of small)"
    )
    arguments = parser.parse_args()
    device = torch.device("cuda", 0)
    if arguments.steps:
        for dtype in (torch.float32, NARROW):
            present = contenders(WORKLOADS[arguments.workload or "small"], device, dtype)
            for name in present.keys() - {BASELINE, CLIPPED, PLAIN}:
                for _ in range(arguments.steps):
                    present[name].step()
        torch.cuda.synchronize()
        return
    about = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    print("\n".join([f"# AdamHC on {about}", "", f"device-to-device copy: {copy_rate(device):.0f} GB/s", ""]))
    torch.cuda.empty_cache()
    for name, rounds, repeats in (("1 billion", 15, 3), ("proxy", 40, 50)):
        if arguments.workload in (None, name):
            for dtype in (torch.float32, NARROW):
                print("\n".join(table(name, dtype, device, rounds, repeats)))
                torch.cuda.empty_cache()
    print("\n".join(kernels(device)))


if __name__ == "__main__":
    main()
