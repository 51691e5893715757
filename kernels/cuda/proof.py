"""The proof that the kernels do on a device what the reference does there, at their first use in a process.

Compilers, drivers and devices differ, and a step that is wrong would look like bad hyperparameters. So two steps,
and one between them that is skipped, are done by both on a few small tensors, for AdamHC and SGDC and for each way
of keeping weights and moments: every decay, corrected and clipped, with decay scales, and with the means that the
first step leaves.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from widthwise.kernels import validation
from widthwise.kernels.cuda import driver
from widthwise.kernels.cuda.batch import CHUNK
from widthwise.kernels.library import BuildError
from widthwise.kernels.precision import NARROW

OPTIONS: dict[str, Any] = {
    "lr": 0.02,
    "max_lr": 0.03,
    "weight_decay": 0.6,
    "huber_c": 1.2,
    "threshold": "ema",
    "threshold_beta": 0.7,
    "corrected": True,
    "clip_norm": 0.5,
}
RULES: dict[str, dict[str, Any]] = {
    "adamhc": {"betas": (0.8, 0.9), "eps": 1e-3},
    "sgdc": {"momentum": 0.8, "nesterov": True},
}
# The dtype of parameters and the options that make each of the kernels' ways of keeping.
KEPT: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32_float32": (torch.float32, {}),
    "float32_bfloat16": (torch.float32, {"state_dtype": NARROW}),
    "master_float32": (NARROW, {}),
    "master_bfloat16": (NARROW, {"state_dtype": NARROW}),
    "bfloat16_float32": (NARROW, {"master_weights": False}),
    "bfloat16_bfloat16": (NARROW, {"master_weights": False, "state_dtype": NARROW}),
}
SIZES = (3, 1025, CHUNK + 5)  # less than an access, half a tile, a second chunk that is cut off
# assumed: of a tensor's largest value. Ten times the contract's tolerance, because another device's roundings must
# not cost the kernels, and far below what a mistake makes of these numbers.
TOLERANCE = 1e-5
# assumed: of the elements, and two more, how many such a difference may round to another bfloat16. A difference of
# TOLERANCE does that to 1 in 400; of the kernels' roundings, it is 1 in 10,000.
TIPPED, STEP = 0.01, 2**-7


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
    with torch.device(device):  # whatever the default is
        found = (_difference(device, rule, kept) for rule in RULES for kept in KEPT)
        return next(filter(None, found), None)


def _difference(device: torch.device, rule: str, kept: str) -> str | None:
    own, other = (_stepped(device, rule, kept, backend) for backend in ("cuda", "reference"))
    for name, tensor in own.items():
        error = (tensor - other[name]).abs()
        scale = other[name].abs()
        allowed = TOLERANCE * scale.max()
        right = error.max() <= allowed
        if "bfloat16" in kept or "master" in kept:
            near = error <= STEP * (scale + scale.square().mean().sqrt()) + allowed
            right = near.all() & ((error > allowed).sum() <= TIPPED * error.numel() + 2)
        if not right:  # NaN is an error too
            what = f"{name.partition('.')[0]} of {rule}_{kept}"
            return (
                f"on {device} {what} differ from the reference's by {error.max():.1e}, of {scale.max():.1e}"
            )
    return None


def _stepped(device: torch.device, rule: str, kept: str, backend: str) -> Mapping[str, Tensor]:
    """Do the steps, and return what they leave, in float64, by name and place."""
    from widthwise.kernels import SGDC, AdamHC  # which import this

    dtype, precision = KEPT[kept]
    groups: list[dict[str, Any]] = [
        {"params": [(0.1 * x**3).to(dtype) for x in _random(device, 100 + seed)], "decay": decay}
        for seed, decay in enumerate(validation.DECAYS)
    ]
    params = [param for group in groups for param in group["params"]]
    options = {**OPTIONS, **RULES[rule], **precision, "backend": "reference"}
    optimizer: Any = (AdamHC if rule == "adamhc" else SGDC)(groups, **options)
    optimizer.backend = backend  # past the proof, which this is
    optimizer.set_decay_scale({param: 0.5 + index for index, param in enumerate(params)})
    for t, found_inf in enumerate((0.0, 1.0, 0.0)):
        optimizer.found_inf = torch.tensor(found_inf)
        for seed, group in enumerate(groups):
            for param, grad in zip(group["params"], _random(device, 10 * t + seed), strict=True):
                param.grad = grad.to(dtype)
        optimizer.step()
    return dict(_results(optimizer, params))


def _results(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    for index, param in enumerate(params):
        yield f"weights.{index}", param.double()
        for name, value in optimizer.state[param].items():
            if isinstance(value, Tensor):
                yield f"{name}.{index}", value.double()


def _random(device: torch.device, seed: int) -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return [
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(device) for size in SIZES
    ]
