"""Checks of the optimizers' arguments. Every error is a ValueError that reads `field: rule, got value`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from widthwise.kernels.precision import NARROW, Precision

DECAYS = ("none", "l2", "huber", "huber-prox")
HUBER = ("huber", "huber-prox")
THRESHOLDS = ("mean", "ema")


def check_options(group: Mapping[str, Any]) -> None:
    """Check the options of one parameter group, with `max_lr` already filled in."""
    for name in ("lr", "weight_decay", "max_lr"):
        _require(_finite(group[name]) and group[name] >= 0, name, "must be finite and >= 0", group[name])
    beta = group["threshold_beta"]
    _require(0 <= beta < 1, "threshold_beta", "must be in [0, 1)", beta)
    _require_choice("decay", group["decay"], DECAYS)
    _require_choice("threshold", group["threshold"], THRESHOLDS)
    _check_huber_c(group["huber_c"], group["decay"])
    _require_bool("corrected", group["corrected"])
    if group["corrected"]:
        rule = "must be > 0 if corrected (it defaults to the group's lr)"
        _require(group["max_lr"] > 0, "max_lr", rule, group["max_lr"])


def check_defaults(options: Mapping[str, Any]) -> None:
    """Check the constructor's options, also those that every group has its own of, as torch's optimizers do.

    `max_lr`, which is the group's `lr` where it is None, and a `huber_c` of None are for the groups to fill in.
    """
    max_lr = 1.0 if options["max_lr"] is None else options["max_lr"]
    decay = "none" if options["huber_c"] is None and options["decay"] in HUBER else options["decay"]
    check_options({**options, "max_lr": max_lr, "decay": decay})


def check_adam(group: Mapping[str, Any]) -> None:
    """Check what a group of Adam has beside what all have."""
    betas, eps = group["betas"], group["eps"]
    valid = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    _require(valid, "betas", "must be two numbers in [0, 1)", betas)
    _require(_finite(eps) and eps >= 0, "eps", "must be finite and >= 0", eps)


def check_momentum(group: Mapping[str, Any]) -> None:
    """Check what a group of SGD has beside what all have."""
    _require(0 <= group["momentum"] < 1, "momentum", "must be in [0, 1)", group["momentum"])
    _require_bool("nesterov", group["nesterov"])
    usable = group["momentum"] > 0 or not group["nesterov"]
    _require(usable, "nesterov", "must be False without momentum", group["nesterov"])


def check_precision(precision: Precision) -> None:
    """Check what is to be kept in which dtype."""
    _require_bool("master_weights", precision.master_weights)
    dtype, seed = precision.state_dtype, precision.rounding_seed
    _require(dtype in (None, NARROW), "state_dtype", f"must be None or {NARROW}", dtype)
    _require(isinstance(seed, int), "rounding_seed", "must be an integer", seed)


def check_clip_norm(clip_norm: float | None) -> None:
    """Check the gradient norm at which to clip; infinity means: compute the norm, clip nothing."""
    _require(clip_norm is None or clip_norm > 0, "clip_norm", "must be > 0 or None", clip_norm)


def check_parameter(param: Tensor) -> None:
    """Refuse a parameter that this version cannot update without loss."""
    shape = tuple(param.shape)
    placements = getattr(param, "placements", ())  # a DTensor's
    if any(placement.is_partial() for placement in placements):
        raise ValueError(
            f"params: must not be partial sums, got a DTensor of shape {shape} and placements {placements}"
        )
    if placements and param.dtype is NARROW:
        raise ValueError(
            f"params: must be float32 or float64 where they are sharded, got {NARROW} of shape {shape}"
        )
    if param.dtype not in (torch.float32, torch.float64, NARROW):
        rule = "must be float32, float64 or bfloat16"
        raise ValueError(f"params: {rule}, got {param.dtype} of shape {shape}")


def check_gradient(param: Tensor) -> None:
    """Refuse a gradient that is sparse or complex."""
    gradient = param.grad
    assert gradient is not None
    if gradient.layout != torch.strided or gradient.is_complex():
        kind = f"{gradient.layout} {gradient.dtype}"
        raise ValueError(
            f"gradient: must be dense and real, got {kind} for a parameter of shape {tuple(param.shape)}"
        )


def check_decay_scale(multiplier: float) -> None:
    """Check a per-tensor multiplier of the weight decay."""
    _require(_finite(multiplier) and multiplier >= 0, "decay_scale", "must be finite and >= 0", multiplier)


def _check_huber_c(huber_c: float | None, decay: str) -> None:
    if huber_c is None:
        _require(decay not in HUBER, "huber_c", f"must be > 0 if decay is {decay!r}", huber_c)
    else:
        _require(huber_c > 0, "huber_c", "must be > 0", huber_c)


def _finite(value: Any) -> bool:
    return math.isfinite(float(value))


def _require_bool(name: str, value: object) -> None:
    _require(isinstance(value, bool), name, "must be True or False", value)


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, f"must be one of {', '.join(map(repr, choices))}", value)


def _require(satisfied: bool | Tensor, name: str, rule: str, value: object) -> None:
    if not satisfied:
        raise ValueError(f"{name}: {rule}, got {value!r}")
