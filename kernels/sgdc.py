"""SGDC: SGD with momentum, a decoupled decay and the correction of AdamC."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from widthwise.kernels import records, reference, validation
from widthwise.kernels.base import DecayOptimizer
from widthwise.kernels.precision import Precision
from widthwise.kernels.reference import Batch, Decay


class SGDC(DecayOptimizer):
    """SGD with momentum whose decay is decoupled and corrected (AdamC's SGD form, arXiv 2506.02285).

    The update is (9) of `widthwise.kernels.reference`. Of weights that are followed by a
    normalisation the correction keeps ‖g‖/‖θ‖ at √(2λ/η_max)·(1−β) throughout a schedule. All options but
    `clip_norm`, those of precision and `backend` may differ per group.

    State per parameter: as that of `widthwise.kernels.AdamHC`, but for `momentum_buffer` (of its shape) in
    place of Adam's moments; none without momentum.

    Args:
        params: as AdamHC's, like `decay` to `clip_norm` and `master_weights` to `rounding_seed`.
        lr: learning rate η, a float or a 0-dim tensor; may follow any scheduler.
        momentum: β; m ← β·m + g, without dampening.
        nesterov: step along g + β·m.
        weight_decay: λ, multiplied by the learning rate and not by 1/(1−β): `torch.optim.SGD`, whose decay
            passes through the momentum, shrinks weights as much with λ·(1−β).
        decay: "l2", "none", "huber" or "huber-prox".
        huber_c: see AdamHC.
        threshold: see AdamHC.
        threshold_beta: see AdamHC.
        corrected: see AdamHC.
        max_lr: see AdamHC.
        clip_norm: see AdamHC.
        master_weights: see AdamHC.
        state_dtype: see AdamHC.
        rounding_seed: see AdamHC.
        backend: see AdamHC.

    Attributes:
        backend: as AdamHC's.
        grad_norm: as AdamHC's.

    Raises:
        ValueError: as AdamHC.
    """

    _rule = records.SGD

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay: Decay = "l2",
        huber_c: float | None = 2.0,
        threshold: Literal["mean", "ema"] = "mean",
        threshold_beta: float = 0.99,
        corrected: bool = True,
        max_lr: float | None = None,
        clip_norm: float | None = None,
        master_weights: bool = True,
        state_dtype: torch.dtype | None = None,
        rounding_seed: int = 0,
        backend: Literal["auto", "cuda", "cpu", "reference"] = "auto",
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "decay": decay,
            "huber_c": huber_c,
            "threshold": threshold,
            "threshold_beta": threshold_beta,
            "corrected": corrected,
            "max_lr": max_lr,
        }
        validation.check_momentum(defaults)
        precision = Precision(
            master_weights=master_weights, state_dtype=state_dtype, rounding_seed=rounding_seed
        )
        super().__init__(params, defaults, clip_norm=clip_norm, precision=precision, backend=backend)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as AdamHC does."""
        validation.check_momentum({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        reference.update_sgd(batch, group["momentum"], nesterov=group["nesterov"])
