"""Module-wise weight decay as `train` takes it: settings that are called before every optimizer step.

Each is a record of settings, so that a run's specification can hold it, and a function
``(step, model, optimizer)``, so that any other training loop can call it between ``backward`` and
``optimizer.step()``. Nothing is kept here: what must survive a restart is the optimizer's own state. All
three multiply the λ of the optimizer's groups, and leave alone what does not decay.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from widthwise.kernels import AdamHC, reference
from widthwise.kernels.sharding import is_sharded
from widthwise.proxies.config import Decay, Threshold
from widthwise.proxies.parts import as_part, local, whole, whole_abs_means, whole_means
from widthwise.proxies.spectra import Assign, decay_scales, require_range
from widthwise.proxies.validation import ConfigError, Record


class AlphaDecay(Record):
    """Decay by the heavy-tailedness of each weight's spectrum (arXiv 2506.14562).

    As its code does, it assigns at the first step and before every `interval`-th one, here to the weights
    of all named parameters that `widthwise.proxies.spectra.decay_scales` tunes; the options are that
    function's.
    """

    method: Literal["alpha"] = "alpha"
    assign: Assign = "linear"
    low: float = 0.6666
    high: float = 5.0
    mean_preserving: bool = False
    fixed_aspect: bool = False
    interval: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _in_range(self) -> "AlphaDecay":
        require_range(self.low, self.high)
        return self

    def __call__(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Set the decay scales where `step`, counted from 0, is one to refresh at."""
        if step > 0 and (step + 1) % self.interval:
            return
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        scales = decay_scales(weights, **self.model_dump(exclude={"method", "interval"}))
        _adamhc(optimizer).set_decay_scale({weights[name]: scale for name, scale in scales.items()})


class AWD(Record):
    """Adaptive weight decay (arXiv 2210.00094): λ times ‖g‖/‖w‖ over all parameters, smoothed.

    s ← 0.1·s + 0.9·‖g‖/(‖w‖ + 1e-8), from s = 0, with gradients as they are after clipping. s is every
    tensor's decay scale, where the next step finds it again.
    """

    method: Literal["awd"] = "awd"

    @torch.no_grad()
    def __call__(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Set all decay scales to s; a gradient that is not finite leaves it as it was."""
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


class AdaDecay(Record):
    """AdaDecay (arXiv 1907.08931): each single weight j decays by λ·θ_j, see `adadecay_factors`.

    AdamHC knows one strength per tensor, so the decay is done here, before the step, on the same old weights
    and with the same τ and δ that AdamHC takes; AdamHC's own is switched off by a decay scale of 0. That is
    exact for ``l2`` and for ``huber`` with ``threshold="mean"``; others are refused.
    """

    method: Literal["adadecay"] = "adadecay"

    @staticmethod
    def require(decay: Decay, threshold: Threshold) -> None:
        """Raise a ConfigError for a form of decay that cannot be done outside the optimizer."""
        if decay == "huber-prox" or (decay == "huber" and threshold != "mean"):
            rule = "module_decay: adadecay needs decay 'l2', or 'huber' with threshold 'mean'"
            raise ConfigError(f"{rule}, got decay {decay!r} and threshold {threshold!r}")

    @torch.no_grad()
    def __call__(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Pull the weights that decay, and tell the optimizer not to."""
        adamhc = _adamhc(optimizer)
        for group in adamhc.param_groups:
            if group["decay"] == "none" or group["weight_decay"] == 0:
                continue
            self.require(group["decay"], group["threshold"])
            peak = group["max_lr"] if group["corrected"] else None
            strength = reference.decay_strength(float(group["lr"]), group["weight_decay"], 1.0, peak)
            weights = [one for one in group["params"] if one.grad is not None and one.numel() > 0]
            factors = sharded_adadecay_factors(weights)
            for weight, factor, towards in zip(weights, factors, _towards(weights, group), strict=True):
                weight.sub_(as_part(strength * factor * towards, weight))
            adamhc.set_decay_scale(dict.fromkeys(group["params"], 0.0))


ModuleDecay = Annotated[AlphaDecay | AWD | AdaDecay, Field(discriminator="method")]


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
