"""Module-wise weight decay as `train` takes it: settings that are called before every optimizer step.

Each is a record of settings, so that a run's specification can hold it, and a function
``(step, model, optimizer)``, so that any other training loop can call it between ``backward`` and
``optimizer.step()``. Nothing is kept here: what must survive a restart is the optimizer's own state. All
three multiply the λ of the optimizer's groups, and leave alone what does not decay.

Torch is imported when they are called, so that a command's mistakes are told before that.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from widthwise.proxies.config import Assign, Decay, Threshold, require_range
from widthwise.proxies.validation import ConfigError, Record

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class AlphaDecay(Record):
    """Decay by the heavy-tailedness of each weight's spectrum (arXiv 2506.14562).

    As its code does, it looks at the spectra at the first step and before every `interval`-th one, here at those
    of all named parameters that `widthwise.proxies.spectra.decay_scales` tunes; the options are that
    function's.

    `lag` is the number of steps from a look, but for the first, to the step that uses what it found, during which
    a thread computes it from copies of the weights: 0, as its authors', is at once, with training waiting. If it
    is None, that is 0, but on a CUDA device a tenth of the interval (assumed to be enough, not measured).
    """

    method: Literal["alpha"] = "alpha"
    assign: Assign = "linear"
    low: float = 0.6666
    high: float = 5.0
    mean_preserving: bool = False
    fixed_aspect: bool = False
    interval: int = Field(500, ge=1)
    lag: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _in_range(self) -> "AlphaDecay":
        require_range(self.low, self.high)
        if self.lag is not None and self.lag >= self.interval:
            raise ConfigError(f"lag: must be < interval = {self.interval}, got {self.lag}")
        return self

    def __call__(self, step: int, model: "nn.Module", optimizer: "Optimizer") -> None:
        """Look at the spectra, or use what the last look has found, where `step`, counted from 0, is one to."""
        from widthwise.proxies import decaying

        lag, last = self._lag(optimizer), (step + 1) // self.interval * self.interval - 1
        if step in (0, last):
            options = self.model_dump(exclude={"method", "interval", "lag"})
            weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            decaying.share_by_spectra(weights, optimizer, options, later=lag > 0 and step > 0)
        elif step >= last + lag:
            # Later than that after a resumption with a smaller lag.
            decaying.use_spectra(optimizer)

    def _lag(self, optimizer: "Optimizer") -> int:
        from widthwise.proxies.decaying import is_on_cuda

        if self.lag is not None:
            return self.lag
        return self.interval // 10 if is_on_cuda(optimizer) else 0


class AWD(Record):
    """Adaptive weight decay (arXiv 2210.00094): λ times ‖g‖/‖w‖ over all parameters, smoothed.

    s ← 0.1·s + 0.9·‖g‖/(‖w‖ + 1e-8), from s = 0, with gradients as they are after clipping. s is every
    tensor's decay scale, where the next step finds it again.
    """

    method: Literal["awd"] = "awd"

    def __call__(self, step: int, model: "nn.Module", optimizer: "Optimizer") -> None:
        """Set all decay scales to s; a gradient that is not finite leaves it as it was."""
        from widthwise.proxies.decaying import share_by_gradients

        share_by_gradients(optimizer)


class AdaDecay(Record):
    """AdaDecay (arXiv 1907.08931): each single weight j decays by λ·θ_j, see `decaying.adadecay_factors`.

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

    def __call__(self, step: int, model: "nn.Module", optimizer: "Optimizer") -> None:
        """Pull the weights that decay, and tell the optimizer not to."""
        from widthwise.proxies.decaying import decay_by_weight

        decay_by_weight(optimizer)


ModuleDecay = Annotated[AlphaDecay | AWD | AdaDecay, Field(discriminator="method")]
