"""AdamHC: Adam with a decoupled Huber decay and the AdamC correction, in one pass over memory where it can be."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from widthwise.kernels import records, reference, validation
from widthwise.kernels.base import DecayOptimizer
from widthwise.kernels.precision import Precision
from widthwise.kernels.reference import Batch, Decay


class AdamHC(DecayOptimizer):
    """AdamW with Huber weight decay (AdamHD, arXiv 2511.14721) and the AdamC correction (arXiv 2506.02285).

    A drop-in for `torch.optim.AdamW`: with ``decay="l2"`` it is AdamW. The update, with its equation
    numbers, is in the docstring of `widthwise.kernels.reference`. All options but `clip_norm` and `backend`
    may differ per group.

    State per parameter, after its first step: `step` (0-dim float32 on CPU), `exp_avg` and `exp_avg_sq` (of
    its shape); `master` (float32, of its shape) of a bfloat16 one with `master_weights`; with a Huber decay,
    0-dim in the working dtype, `abs_mean` (the last finite mean of the absolute weights), `nonfinite` (1
    while that of the present weights is NaN or infinite, so that the threshold is held) and, with
    ``threshold="ema"``, `threshold_ema`; and `decay_scale`, a float, where `set_decay_scale` set one. The
    working dtype is the parameter's, but float32 for bfloat16 ones.

    The mean of the updated weights serves the next step. It is measured anew at a parameter's first step,
    after `load_state_dict`, a copy or unpickling, and after an edit of the weights from outside, which
    shows in the tensor's version counter or its address. An edit *through* ``param.data`` in place shows in
    neither: call `remeasure` after it.

    `grad_scale` and `found_inf`, which `torch.amp.GradScaler` sets, are honoured; a skipped step advances
    nothing.

    Args:
        params: dense float32, float64 or bfloat16 parameters, named or not, or groups of them; empty ones are passed
            over.
        lr: learning rate η, a float or a 0-dim tensor; may follow any scheduler.
        betas: β1 and β2.
        eps: ε, added after the bias-corrected square root.
        weight_decay: λ, multiplied by the learning rate as in `torch.optim.AdamW`.
        decay: "none", "l2", "huber" (the old weights are clipped) or "huber-prox" (the proximal step).
        huber_c: the threshold in units of the mean absolute weight; infinity is no threshold. May be None
            where `decay` is not a Huber one.
        threshold: "mean", or "ema" to smooth the mean with `threshold_beta`.
        threshold_beta: β0.
        corrected: multiply the decay by lr/max_lr; for weights that are followed by a normalisation.
        max_lr: the group's peak learning rate; defaults to its `lr` at construction.
        clip_norm: scale the gradients down to this global norm over all groups, leaving `param.grad` as it
            is. Infinity computes `grad_norm` and clips nothing.
        master_weights: keep a float32 copy of bfloat16 parameters, and round it to them; False rounds them
            stochastically instead, with 4 bytes less each (`widthwise.kernels.precision`).
        state_dtype: `torch.bfloat16` keeps both moments so, rounded stochastically; None keeps them in the
            working dtype.
        rounding_seed: of the stochastic rounding. The same in every process that holds a replica.
        backend: "auto", "cuda", "cpu" or "reference". The first two are compiled at their first use on a
            machine; "auto" is "cuda" or "cpu" where all parameters are there and that succeeds, else the
            reference. They take contiguous float32 and bfloat16 parameters; any other is always updated by the
            reference.

    Attributes:
        backend: the back end in use, "cuda", "cpu" or "reference".
        grad_norm: norm of the (unscaled) gradients before clipping at the last step, a 0-dim tensor; None
            where it was not computed, that is without `clip_norm` or, but for "cuda", after a skipped step.

    Raises:
        ValueError: if an argument is outside its range, or a parameter is float16, complex, sharded bfloat16 or
            not summed yet (a DTensor with `Partial` placements), or `backend` cannot be had.
    """

    _rule = records.ADAM

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay: Decay = "huber",
        huber_c: float | None = 2.0,
        threshold: Literal["mean", "ema"] = "mean",
        threshold_beta: float = 0.99,
        corrected: bool = False,
        max_lr: float | None = None,
        clip_norm: float | None = None,
        master_weights: bool = True,
        state_dtype: torch.dtype | None = None,
        rounding_seed: int = 0,
        backend: Literal["auto", "cuda", "cpu", "reference"] = "auto",
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decay": decay,
            "huber_c": huber_c,
            "threshold": threshold,
            "threshold_beta": threshold_beta,
            "corrected": corrected,
            "max_lr": max_lr,
        }
        validation.check_adam(defaults)
        precision = Precision(
            master_weights=master_weights, state_dtype=state_dtype, rounding_seed=rounding_seed
        )
        super().__init__(params, defaults, clip_norm=clip_norm, precision=precision, backend=backend)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not give are the constructor's, and `max_lr` None is its own `lr`.

        Raises:
            ValueError: if an option or a parameter is refused; no group is added then.
        """
        validation.check_adam({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        reference.update(batch, group["betas"], group["eps"])
