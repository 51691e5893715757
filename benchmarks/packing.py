"""Count the proxies that one GPU trains in an hour, one at a time and several, each in a process of its own.

    python benchmarks/packing.py                                   # 1, 4, 8 and 16 at a time
    python benchmarks/packing.py --together 1 2 --device cpu --steps 20

It needs torch, numpy and pydantic, not Ray: the processes are plain ones, with a core each, as a sweep's trials have.
They build their model, take a step, wait for each other, and then train; the slowest one's time counts.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

from widthwise.kernels import AdamHC
from widthwise.proxies.config import GPTConfig, Horizon
from widthwise.proxies.data import open_tokens
from widthwise.proxies.model import GPT
from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.training import train

MODEL = GPTConfig(width=128, depth=4, context=256)
BATCH_TOKENS = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 8, 16], help="processes at a time")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a trial")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.device, arguments.steps)
        return
    print(
        f"# Trials on one {name(arguments.device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n"
    )
    print(
        f"width {MODEL.width}, depth {MODEL.depth}, {BATCH_TOKENS} tokens a step, {arguments.steps} steps\n"
    )
    print("| at a time | seconds of a trial | trials per hour | times one alone | GiB in use |")
    print("|---|---|---|---|---|")
    alone = None
    for count in arguments.together:
        taken, memory = together(count, arguments)
        rate = 3600 * count / taken
        alone = alone or rate / count
        cells = (count, f"{taken:.2f}", f"{rate:.0f}", f"{rate / alone:.2f}", f"{memory / 2**30:.2f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else device


def together(count: int, arguments: argparse.Namespace) -> tuple[float, int]:
    """Train `count` trials at the same time; return the slowest one's seconds, and the device's bytes in use."""
    command = [sys.executable, __file__, "--worker", "--device", arguments.device]
    command += ["--steps", str(arguments.steps)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(count)]
    for worker in workers:
        answer(worker)
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    found = [json.loads(answer(worker)) for worker in workers]
    for worker in workers:
        # Memory is read while all are there, so none leaves before the last one is done.
        worker.communicate("done\n")
    return max(one["seconds"] for one in found), max(one["memory"] for one in found)


def answer(worker: Any) -> str:
    """Return the worker's next line, or end with its failure, which it has printed."""
    line: str = worker.stdout.readline()
    if not line:
        sys.exit(f"a process ended with status {worker.wait()}; out of memory, or see above")
    return line


def work(device: str, steps: int) -> None:
    """Train one trial between two lines on standard input, saying when it is ready, and what it took."""
    torch.set_num_threads(1)
    trial(device, 1)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    trial(device, steps)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "memory": in_use(device)}), flush=True)
    sys.stdin.readline()


def trial(device: str, steps: int) -> None:
    tokens = open_tokens("python", vocab_size=MODEL.vocab_size)
    model = GPT(MODEL, seed=0).to(device)
    optimizer = AdamHC(model.parameters(), lr=0.01, weight_decay=0.1, clip_norm=1.0)
    options = RunOptions(
        device=device, precision="bf16" if device == "cuda" else "fp32", evaluations=2, validation_batches=2
    )
    horizon = Horizon(batch_tokens=BATCH_TOKENS, tokens=BATCH_TOKENS * steps)
    train(model, optimizer, tokens, horizon, context=MODEL.context, options=options)


def in_use(device: str) -> int:
    """Return the bytes in use on the device, by all processes."""
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


if __name__ == "__main__":
    main()
