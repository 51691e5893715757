"""What a target run's workers do: train, and, in the first of them, write the run's files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import train

from widthwise.proxies.files import write_atomic, write_json
from widthwise.proxies.outcome import Metrics, RunOptions, finite
from widthwise.proxies.runs import RunSpec, device_options, run
from widthwise.transfer.failures import explained
from widthwise.transfer.launch_options import passes


def train_worker(config: dict[str, Any]) -> None:
    """Train in one of Ray Train's workers; whatever ends it is told as `explained` does."""
    out = Path(config["out"])
    with explained(out):
        _train(config, out)


def _train(config: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(config["threads"])
    context = train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    chosen = dict(config["options"])
    chosen["accumulate"] = passes(chosen["accumulate"], wanted=config["workers"], there=workers)
    if chosen["parallel"] == "hsdp":
        chosen |= {"parallel": "fsdp", "shards": context.get_local_world_size()}
    options = RunOptions(
        checkpoint=out / "checkpoints",
        rank=rank,
        world_size=workers,
        **chosen,
        **device_options(),
    )
    on_metrics = MetricsFile(out / "metrics.jsonl").add if rank == 0 else None
    result = run(RunSpec.model_validate_json(config["spec"]), options, on_metrics)
    if rank == 0:
        ending = {name: getattr(result, name) for name in _ENDING}
        write_json(out / "result.json", {**ending, "loss": finite(result.loss), **config["outcome"]})


_ENDING = ("status", "loss", "steps", "tokens", "seconds", "parameters", "flops")


class MetricsFile:
    """``metrics.jsonl``: a line per evaluation, each step once, also after a resumption."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, metrics: Metrics) -> None:
        """Append an evaluation, in place of any that a lost stretch of the run left behind."""
        self.lines = [line for line in self.lines if line["step"] < metrics.step] + [asdict(metrics)]
        write_atomic(self.path, "".join(f"{json.dumps(line)}\n" for line in self.lines))
