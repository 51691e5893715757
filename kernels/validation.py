"""Checks of AdamHC's arguments. Every error is a ValueError that reads `field: rule, got value`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DECAYS = ("none", "l2", "huber", "huber-prox")
HUBER = ("huber", "huber-prox")
THRESHOLDS = ("mean", "ema")


def check_options(group: Mapping[str, Any]) -> None:
    """Check the options of one parameter group, with `max_lr` already filled in."""
    for name in ("lr", "eps", "weight_decay", "max_lr"):
        _require(_finite(group[name]) and group[name] >= 0, name, "must be finite and >= 0", group[name])
    betas = group["betas"]
    valid = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    _require(valid, "betas", "must be two numbers in [0, 1)", betas)
    beta = group["threshold_beta"]
    _require(0 <= beta < 1, "threshold_beta", "must be in [0, 1)", beta)
    _require_choice("decay", group["decay"], DECAYS)
    _require_choice("threshold", group["threshold"], THRESHOLDS)
    _check_huber_c(group["huber_c"], group["decay"])
    _require(isinstance(group["corrected"], bool), "corrected", "must be True or False", group["corrected"])
    if group["corrected"]:
        rule = "must be > 0 if corrected (it defaults to the group's lr)"
        _require(group["max_lr"] > 0, "max_lr", rule, group["max_lr"])


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
    if param.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            "params: must be float32 or float64, because weight decay rounds to nothing in half precision "
            "(keep float32 parameters and compute under torch.autocast), "
            f"got {param.dtype} of shape {shape}"
        )
    if param.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"params: must be float32 or float64, got {param.dtype} of shape {shape}")


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


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, f"must be one of {', '.join(map(repr, choices))}", value)


def _require(satisfied: bool | Tensor, name: str, rule: str, value: object) -> None:
    if not satisfied:
        raise ValueError(f"{name}: {rule}, got {value!r}")
