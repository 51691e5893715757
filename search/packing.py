"""How many trials share a GPU: chosen from what one of them was seen to take.

Ray counts shares of a GPU and enforces none of them; what does not fit ends in an out-of-memory error. So the choice
leaves room, and a trial that runs out of memory all the same lowers the number of trials at a time.
"""

import math
from typing import Any

from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.runs import RunSpec, device_options, run
from widthwise.proxies.validation import RunError, last_line

# assumed: what may be handed out of a GPU's memory; the rest is for fragments and for trials that take a little more.
USABLE = 0.9
# assumed: beyond this the processes only take turns.
MOST = 16
# Enough for every buffer that a trial ever has: the optimizer's, the validation's, the allocator's own.
STEPS = 3
# Ray counts shares in ten-thousandths.
_UNIT = 10_000

OUT_OF_MEMORY = "OutOfMemoryError"
"""How the error of a trial begins that found its GPU full."""


def trials_per_gpu(taken: int, total: int, cores: int) -> int:
    """Return how many trials share a GPU: floor(0.9·total / taken), at most `MOST` and a core for each.

    Args:
        taken: bytes of the device that are in use while one trial runs, also by others.
        total: bytes of the device.
        cores: CPU cores for each GPU.

    Returns:
        1 or more; 1 also where the trial leaves less than a tenth free, because then it may fit alone.
    """
    if not 0 < taken <= total:
        raise ValueError(f"taken: must be in (0, {total}], got {taken}")
    return max(1, min(math.floor(USABLE * total / taken), MOST, cores))


def share(trials: int) -> float:
    """Return the share of a GPU that lets so many trials have one, as Ray counts it."""
    return math.floor(_UNIT / trials) / _UNIT


def taken_by(spec: RunSpec, seed: int, evaluation: dict[str, Any]) -> tuple[int, int]:
    """Train a few steps and evaluate, on this process's GPU; return the bytes in use on it then, and its size.

    It is to run in a process of its own, whose end gives the memory back. The driver's own count is read, because it
    knows the context and the allocator's reserve, which other processes cannot have; both are kept until the end.

    Raises:
        torch.cuda.OutOfMemoryError: a trial does not fit.
    """
    import torch

    horizon = spec.horizon.model_copy(
        update={"tokens": min(STEPS * spec.horizon.batch_tokens, spec.horizon.tokens)}
    )
    options = RunOptions(seed=seed, **{**evaluation, "evaluations": 1}, **device_options())
    run(spec.model_copy(update={"horizon": horizon}), options)
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free, total


def measured_share(
    ray: Any, spec: RunSpec, evaluation: dict[str, Any], *, cores: float, gpus: float
) -> float:
    """Measure one trial on a GPU of the cluster; return the share of a GPU that each trial is to have.

    The cluster's GPUs are taken to be alike.

    Args:
        ray: connected.
        spec: a trial; memory does not depend on η, λ and c.
        evaluation: its `RunOptions` of evaluation.
        cores: CPU cores of the cluster.
        gpus: GPUs of the cluster, 1 or more.

    Raises:
        RunError: the trial failed; the message ends with its error.
    """
    # A worker that ends after one call: an actor's or a pool's would keep the memory.
    measuring = ray.remote(num_gpus=1, num_cpus=1, max_calls=1, max_retries=0)(_taken)
    try:
        taken, total = ray.get(measuring.remote(spec.model_dump_json(), evaluation))
    except ray.exceptions.RayError as error:
        failed = f"a trial that was to be measured failed ({last_line(error)})"
        raise RunError(f"gpus_per_trial: {failed}") from error
    return share(trials_per_gpu(taken, total, int(cores // gpus)))


def _taken(spec: str, evaluation: dict[str, Any]) -> tuple[int, int]:
    return taken_by(RunSpec.model_validate_json(spec), 0, evaluation)
