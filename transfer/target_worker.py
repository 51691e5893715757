"""What each of Ray Train's workers does in a target run."""

from typing import Any

from widthwise.proxies.files import write_json
from widthwise.proxies.outcome import Metrics, RunOptions, finite
from widthwise.proxies.storage import place
from widthwise.transfer.peaks import peak_tflops
from widthwise.transfer.run_files import Log
from widthwise.transfer.watching.records import Watch


def train_worker(config: dict[str, Any]) -> None:
    """Train in one of Ray Train's workers; rank 0 writes the run's files."""
    import torch
    from ray import train

    from widthwise.proxies.runs import RunSpec, device_options, run

    torch.set_num_threads(config["threads"])
    context, out = train.get_context(), place(config["out"])
    rank = context.get_world_rank()
    chosen = config["options"]
    in_nodes = {"parallel": "fsdp", "shards": context.get_local_world_size()}
    options = RunOptions(
        checkpoint=out / "checkpoints",
        rank=rank,
        world_size=context.get_world_size(),
        **(chosen | in_nodes if chosen["parallel"] == "hsdp" else chosen),
        **device_options(),
    )
    # Every worker watches, and one writes.
    log = Log(
        out if rank == 0 else None,
        None if config["watch"] is None else Watch.model_validate_json(config["watch"]),
        peak=_peak(config["peak_tflops"], options),
        abort=config["abort_on_alarm"],
    )

    def add(metrics: Metrics) -> bool:
        stop = log.add(metrics)
        return _agreed(stop, options) if config["abort_on_alarm"] else stop

    result = run(RunSpec.model_validate_json(config["spec"]), options, add)
    if rank == 0:
        ending = {name: getattr(result, name) for name in _ENDING}
        told = {**ending, "loss": finite(result.loss), **config["outcome"], **log.ending()}
        write_json(out / "result.json", told)


_ENDING = ("status", "loss", "steps", "tokens", "seconds", "parameters", "flops")


def _agreed(stop: bool, options: RunOptions) -> bool:
    """Return what rank 0 decides: workers that stopped at different steps would wait for each other for ever."""
    import torch
    import torch.distributed as dist

    if options.world_size == 1:
        return stop
    decision = torch.tensor(float(stop), device=options.device)
    dist.broadcast(decision, 0)
    return bool(decision)


def _peak(tflops: float | None, options: RunOptions) -> float | None:
    """Return the floating-point operations a second that all workers' devices could do, where it is known."""
    import torch

    if tflops is None and options.device == "cuda":
        tflops = peak_tflops(torch.cuda.get_device_name())
    return None if tflops is None else tflops * 1e12 * options.world_size
