"""What `widthwise.proxies.module_decay`'s settings do before an optimizer step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from widthwise.kernels import AdamHC, reference
from widthwise.kernels.sharding import is_sharded
from widthwise.proxies import refreshing
from widthwise.proxies.module_decay import AdaDecay
from widthwise.proxies.parts import as_part, local, whole, whole_abs_means, whole_means
from widthwise.proxies.spectra import decay_scales
from widthwise.proxies.validation import ConfigError


def share_by_spectra(
    weights: Mapping[str, Tensor], optimizer: Optimizer, settings: dict[str, Any], *, later: bool
) -> None:
    """Set `decay_scales` of the named weights, with these settings; or have them computed until `use_spectra`."""
    adamhc = _adamhc(optimizer)
    refreshing.drop(adamhc)
    if later:
        refreshing.begin(weights, adamhc, **settings)
    else:
        scales = decay_scales(weights, **settings)
        adamhc.set_decay_scale({weights[name]: scale for name, scale in scales.items()})


def use_spectra(optimizer: Optimizer) -> None:
    """Set what has been computed since `share_by_spectra`, where that was not done yet."""
    refreshing.end(_adamhc(optimizer))


def is_on_cuda(optimizer: Optimizer) -> bool:
    """Tell whether the first parameter is on a CUDA device."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    first: Tensor = next(parameters)
    return first.is_cuda


@torch.no_grad()
def share_by_gradients(optimizer: Optimizer) -> None:
    """Set all decay scales to AWD's s; a gradient that is not finite leaves it as it was."""
    adamhc = _adamhc(optimizer)
    parameters = [parameter for group in adamhc.param_groups for parameter in group["params"]]
    active = [parameter for parameter in parameters if parameter.grad is not None]
    norm = _total_norm([parameter.grad for parameter in active])
    if adamhc.clip_norm is not None:
        norm = norm * reference.clip_factor(norm, adamhc.clip_norm)
    ratio = float(norm / (_total_norm(active) + 1e-8))
    if math.isfinite(ratio):
        last: float = adamhc.state.get(parameters[0], {}).get("decay_scale", 0.0)
        adamhc.set_decay_scale(dict.fromkeys(parameters, 0.1 * last + 0.9 * ratio))


@torch.no_grad()
def decay_by_weight(optimizer: Optimizer) -> None:
    """Pull the weights that decay by AdaDecay's factors, and tell the optimizer not to."""
    adamhc = _adamhc(optimizer)
    for group in adamhc.param_groups:
        if group["decay"] == "none" or group["weight_decay"] == 0:
            continue
        AdaDecay.require(group["decay"], group["threshold"])
        peak = group["max_lr"] if group["corrected"] else None
        strength = reference.decay_strength(float(group["lr"]), group["weight_decay"], 1.0, peak)
        weights = [one for one in group["params"] if one.grad is not None and one.numel() > 0]
        factors = sharded_adadecay_factors(weights)
        for weight, factor, towards in zip(weights, factors, _towards(weights, group), strict=True):
            weight.sub_(as_part(strength * factor * towards, weight))
        adamhc.set_decay_scale(dict.fromkeys(group["params"], 0.0))


def adadecay_factors(gradient: Tensor) -> Tensor:
    """Return θ = 2/(1 + e^(−4z)) per weight, z the z-score of |g| within the tensor; 1 where all are equal."""
    size = gradient.abs()
    deviation, mean = torch.std_mean(size, correction=0)
    return _factors(size - mean, deviation)


def sharded_adadecay_factors(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the `adadecay_factors` of this worker's parts, by the mean and deviation of |g| over whole tensors."""
    if not any(map(is_sharded, weights)):
        return [
            adadecay_factors(weight.grad.to(weight.dtype)) for weight in weights if weight.grad is not None
        ]
    sizes = [local(one.grad, one).to(one.dtype).abs() for one in weights if one.grad is not None]
    means = whole_means(sizes, weights)
    offsets = [size - mean.to(size.dtype) for size, mean in zip(sizes, means, strict=True)]
    deviations = whole_means([offset.square() for offset in offsets], weights).sqrt()
    pairs = zip(offsets, deviations, strict=True)
    return [_factors(offset, deviation.to(offset.dtype)) for offset, deviation in pairs]


def _factors(offset: Tensor, deviation: Tensor) -> Tensor:
    return 2 * torch.sigmoid(4 * torch.where(deviation == 0, 0.0, offset / deviation))


def _total_norm(tensors: Sequence[Tensor | None]) -> Tensor:
    return whole(torch.nn.utils.get_total_norm([tensor for tensor in tensors if tensor is not None]))


def _towards(weights: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Return what the decay pulls by: θ, or clip(θ, ±δ), of this worker's parts."""
    parts = [local(weight) for weight in weights]
    if group["decay"] == "l2" or not weights:
        return parts
    means = whole_abs_means(weights).to(parts[0].dtype)
    limits = reference.thresholds(means, group["huber_c"])
    return [torch.clamp(part, -limit, limit) for part, limit in zip(parts, limits, strict=True)]


def _adamhc(optimizer: Optimizer) -> AdamHC:
    if not isinstance(optimizer, AdamHC):
        raise ConfigError(f"optimizer: must be AdamHC for module-wise decay, got {type(optimizer).__name__}")
    return optimizer
