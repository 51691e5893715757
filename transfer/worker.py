"""What a target run's workers do: train, and, in the first of them, write the run's files."""

from typing import Any

import torch
import torch.distributed as dist
from ray import train

from widthwise.proxies.files import write_json
from widthwise.proxies.outcome import Metrics, RunOptions, finite
from widthwise.proxies.runs import RunSpec, device_options, run
from widthwise.proxies.storage import Place, place
from widthwise.transfer.failures import explained
from widthwise.transfer.launch_options import passes
from widthwise.transfer.peaks import peak_tflops
from widthwise.transfer.run_files import Log
from widthwise.transfer.watching.records import Watch


def train_worker(config: dict[str, Any]) -> None:
    """Train in one of Ray Train's workers; whatever ends it is told as `explained` does."""
    out = place(config["out"])
    with explained(out):
        _train(config, out)


def _train(config: dict[str, Any], out: Place) -> None:
    torch.set_num_threads(config["threads"])
    options = _options(config, out)
    log = _log(config, out, options) if options.rank == 0 else None

    def add(metrics: Metrics) -> bool:
        stop = log is not None and log.add(metrics)
        return _agreed(stop, options) if config["abort_on_alarm"] else stop

    result = run(RunSpec.model_validate_json(config["spec"]), options, add)
    if log is not None:
        ending = {name: getattr(result, name) for name in _ENDING}
        told = {**ending, "loss": finite(result.loss), **config["outcome"], **log.ending()}
        write_json(out / "result.json", told)


def _log(config: dict[str, Any], out: Place, options: RunOptions) -> Log:
    return Log(
        out,
        None if config["watch"] is None else Watch.model_validate_json(config["watch"]),
        peak=_peak(config["peak_tflops"], options),
        abort=config["abort_on_alarm"],
    )


_ENDING = ("status", "loss", "steps", "tokens", "seconds", "parameters", "flops")


def _options(config: dict[str, Any], out: Place) -> RunOptions:
    """Return how this worker trains, being one of so many."""
    context = train.get_context()
    workers = context.get_world_size()
    chosen = dict(config["options"])
    chosen["accumulate"] = passes(chosen["accumulate"], wanted=config["workers"], there=workers)
    if chosen["parallel"] == "hsdp":
        chosen |= {"parallel": "fsdp", "shards": context.get_local_world_size()}
    return RunOptions(
        checkpoint=out / "checkpoints",
        rank=context.get_world_rank(),
        world_size=workers,
        **chosen,
        **device_options(),
    )


def _agreed(stop: bool, options: RunOptions) -> bool:
    """Return what rank 0 decides: workers that stopped at different steps would wait for each other for ever."""
    if options.world_size == 1:
        return stop
    decision = torch.tensor(float(stop), device=options.device)
    dist.broadcast(decision, 0)
    return bool(decision)


def _peak(tflops: float | None, options: RunOptions) -> float | None:
    """Return the floating-point operations a second that all workers' devices could do, where it is known."""
    if tflops is None and options.device == "cuda":
        tflops = peak_tflops(torch.cuda.get_device_name())
    return None if tflops is None else tflops * 1e12 * options.world_size
