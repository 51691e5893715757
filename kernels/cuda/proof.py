"""The proof that the kernels do on a device what the reference does there, at their first use in a process.

Compilers, drivers and devices differ, and a step that is wrong would look like bad hyperparameters. So two steps,
and one between them that is skipped, are done by both on a few small tensors: every decay, corrected and clipped,
with decay scales, and with the means that the first step leaves.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from widthwise.kernels import reference, validation
from widthwise.kernels.cuda import driver
from widthwise.kernels.cuda.batch import CHUNK
from widthwise.kernels.cuda.plan import Plan, abs_means
from widthwise.kernels.library import BuildError
from widthwise.kernels.means import Measure
from widthwise.kernels.plan import Work

OPTIONS: dict[str, Any] = {
    "lr": 0.02,
    "max_lr": 0.03,
    "betas": (0.8, 0.9),
    "eps": 1e-3,
    "weight_decay": 0.6,
    "huber_c": 1.2,
    "threshold": "ema",
    "threshold_beta": 0.7,
    "corrected": True,
}
CLIP_NORM = 0.5
SIZES = (3, 1025, CHUNK + 5)  # less than an access, half a tile, a second chunk that is cut off
# assumed: of a tensor's largest value. Ten times the contract's tolerance, because another device's roundings must
# not cost the kernels, and far below what a mistake makes of these numbers.
TOLERANCE = 1e-5


@cache
def unavailable(device: torch.device) -> str | None:
    """Return why the kernels cannot be used on the device, or None; they are compiled, loaded and tried here.

    Raises:
        ValueError: if a graph is being captured, which trying the kernels would break.
    """
    if not driver.is_present():
        return "torch has no CUDA device"
    if driver.is_capturing():
        raise ValueError("backend: must have been used on the device before a graph is captured there")
    try:
        driver.load(device)
        return difference(device)
    except (BuildError, OSError, RuntimeError) as error:  # torch's errors of a device are RuntimeErrors
        return str(error).partition("\n")[0]


@torch.inference_mode(False)
@torch.no_grad()
def difference(device: torch.device) -> str | None:
    """Return what the kernels leave otherwise than the reference, or None; waits for the device."""
    work, expected = (list(_work(device, measure)) for measure in (abs_means, reference.abs_means))
    groups = [item.group for item in work]
    states = {param: state for item in work for param, state in zip(item.params, item.states, strict=True)}
    plan = Plan(groups, states, work, complete=True)
    for t, found_inf in ((1, 0.0), (2, 1.0), (2, 0.0)):
        grads = _random(device, [param.numel() for param in states], seed=t)
        factor = reference.clip_factor(plan.grad_norm(grads), CLIP_NORM)
        plan.run(grads, factor, torch.full((), found_inf, dtype=torch.float32, device=device))
        if not found_inf:
            clipped = iter(torch._foreach_mul(grads, factor))
            for item in expected:
                _reference_step(item, [next(clipped) for _ in item.params], t)
    pairs = zip(
        chain.from_iterable(map(_results, work)), chain.from_iterable(map(_results, expected)), strict=True
    )
    for (name, own), (_, other) in pairs:
        error, scale = (own - other).abs().max().item(), other.abs().max().item()
        if not error <= TOLERANCE * scale:  # NaN is an error too
            return f"on {device} its {name} differ from the reference's by {error:.1e}, of {scale:.1e}"
    return None


def _work(device: torch.device, measure: Measure) -> Iterator[Work]:
    for seed, decay in enumerate(validation.DECAYS):
        params = [0.1 * values**3 for values in _random(device, SIZES, seed=100 + seed)]
        means = measure(params)
        states = [
            {
                "exp_avg": torch.zeros_like(param),
                "exp_avg_sq": torch.zeros_like(param),
                "step": mean.new_zeros(()),
                "abs_mean": mean.clone(),
                "nonfinite": mean.new_zeros(()),
                "threshold_ema": mean.clone(),
                "decay_scale": 0.5 + index,
            }
            for index, (param, mean) in enumerate(zip(params, means.unbind(), strict=True))
        ]
        yield Work(group={**OPTIONS, "decay": decay, "params": params}, params=params, states=states)


def _reference_step(item: Work, grads: list[Tensor], t: int) -> None:
    """Do a step by the reference, which measures the weights where the kernels keep their means."""
    group, states = item.group, item.states
    means = reference.abs_means(item.params)
    averages = torch.stack([state["threshold_ema"] for state in states])
    averages = reference.smooth(averages, means, means.isnan(), group["threshold_beta"])
    scales = [state["decay_scale"] for state in states]
    batch = reference.Batch(
        params=item.params,
        grads=grads,
        moments=[(state["exp_avg"], state["exp_avg_sq"]) for state in states],
        steps=[t] * len(states),
        lr=group["lr"],
        decay=group["decay"],
        strengths=[
            reference.decay_strength(group["lr"], group["weight_decay"], scale, group["max_lr"])
            for scale in scales
        ],
        thresholds=reference.thresholds(averages, group["huber_c"]),
    )
    reference.update(batch, group["betas"], group["eps"])
    for state, average, mean in zip(states, averages, reference.abs_means(item.params), strict=True):
        state.update(step=average.new_tensor(t), threshold_ema=average, abs_mean=mean)


def _results(item: Work) -> Iterator[tuple[str, Tensor]]:
    """Yield what a step leaves, by name."""
    names = {"exp_avg": "first moments", "exp_avg_sq": "second moments", "step": "step counts"}
    if item.group["decay"] in validation.HUBER:
        names |= {"abs_mean": "means", "threshold_ema": "averaged means"}
    for param, state in zip(item.params, item.states, strict=True):
        yield "weights", param
        yield from ((name, state[key]) for key, name in names.items())


def _random(device: torch.device, sizes: Sequence[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(device) for size in sizes
    ]
