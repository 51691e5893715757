"""The updates of AdamHC and SGDC in plain torch: slow, exact, and the one place where its formulas stand.

Notation, per tensor: θ weights, g gradient, η_t the group's learning rate at step t (counted from 1), η_max
the group's own peak learning rate, λ weight decay in the convention of `torch.optim.AdamW`, s the tensor's
own decay scale (1 unless set), c the Huber coefficient, n the number of elements.

(1)  m ← β1·m + (1−β1)·g ;  v ← β2·v + (1−β2)·g²
(2)  u = (m / (1−β1^t)) / (√v / √(1−β2^t) + ε)        Adam (arXiv 1412.6980), with ε outside the correction
(3)  θ̃ = θ − η_t·u
(4)  τ_t = η_t·λ·s·r_t, with r_t = η_t/η_max if corrected (AdamC, arXiv 2506.02285), else r_t = 1
(5)  the decay, one of
     none        θ' = θ̃
     l2          θ' = θ̃ − τ·θ                          AdamW (arXiv 1711.05101)
     huber       θ' = θ̃ − τ·clip(θ, −δ, +δ)            AdamHD (arXiv 2511.14721) eq. 12: clips the *old* θ
     huber-prox  θ' = θ̃/(1+τ) where |θ̃| ≤ (1+τ)·δ, else θ̃ − τ·δ·sign(θ̃)
                                                       AdamHD eq. 14 and 18; computed in the equal form
                 θ' = θ̃ − τ·clip(θ̃/(1+τ), −δ, +δ)
(6)  the threshold, AdamHD (arXiv 2511.14721) eq. 7–9
     mean        δ_t = c·mean|θ_t|
     ema         δ_t = c·μ_t, with μ_t = β0·μ_{t−1} + (1−β0)·mean|θ_t| and μ_0 = mean|θ_0|
(7)  δ → ∞ makes huber the same as l2, bit for bit; δ → 0 is no decay
(8)  with a clip norm G, all gradients are first scaled by min(1, G / (‖g‖₂ + 1e-6)), with ‖g‖₂ over all
     tensors, as `torch.nn.utils.clip_grad_norm_` does
(9)  SGDC: m ← β·m + g ; u = m, or g + β·m with Nesterov's momentum; then (3) to (8) as they stand. The decay is
     decoupled: m holds none of it   (AdamC, arXiv 2506.02285, whose SGD has τ_t = η_t·λ·η_t/η_max too)

The mean of the updated weights is the next step's mean|θ_t|: a fused back end sums it in the
same pass. Every function here takes dense tensors of float32 or float64 on one device (those that only measure,
bfloat16 too), and works on whole lists of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from widthwise.kernels.precision import widened

Decay = Literal["none", "l2", "huber", "huber-prox"]

# Elements per float32 sum. Measured on CPU with 30 M weights: `torch.linalg.vector_norm(ord=1)` of all of
# them is 5.8 % off; sums of CHUNK, combined in float64, are 1e-9 off, and 2e-7 where all weights are equal.
CHUNK = 4096

# Elements up to which tensors are worked on together. Measured on CPU with 30 M weights: temporaries of this
# size are reused, which makes a step over twice as fast as with temporaries of the model's size.
PIECE = 1 << 18

PER_TENSOR = ("params", "grads", "moments", "steps", "strengths", "thresholds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Tensors of one group, device and dtype, and the numbers of one step; lists have one entry per tensor.

    `params` and `moments` ((m, v) of Adam, (m,) of SGD) are changed in place; `grads` only read, in any
    strides. `steps` are t, counted from 1; `strengths` are τ_t; `thresholds` are δ_t, 0-dim tensors, for a
    Huber decay only.
    """

    params: list[Tensor]
    grads: list[Tensor]
    moments: list[tuple[Tensor, ...]]
    steps: list[int]
    lr: float
    decay: Decay
    strengths: list[float]
    thresholds: list[Tensor] = field(default_factory=list)


def update(batch: Batch, betas: tuple[float, float], eps: float) -> None:
    """Do (1) to (5) in place."""
    for piece in _pieces(batch):
        exp_avgs, exp_avg_sqs = map(list, zip(*piece.moments, strict=True))
        _advance_moments(piece.grads, exp_avgs, exp_avg_sqs, betas)
        _step_weights(piece, partial(_descend, piece, exp_avgs, exp_avg_sqs, betas, eps))


def update_sgd(batch: Batch, momentum: float, *, nesterov: bool) -> None:
    """Do (9) in place."""
    for piece in _pieces(batch):
        directions = piece.grads
        if momentum != 0:
            buffers = [buffer for (buffer,) in piece.moments]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, piece.grads)
            ahead = torch._foreach_add(piece.grads, buffers, alpha=momentum) if nesterov else buffers
            directions = list(ahead)
        _step_weights(piece, partial(torch._foreach_add_, piece.params, directions, alpha=-piece.lr))


def decay_strength(lr: float, weight_decay: float, scale: float, max_lr: float | None) -> float:
    """Return τ_t of (4); `max_lr` is η_max of a corrected group and None for any other."""
    correction = 1.0 if max_lr is None else lr / max_lr
    return lr * weight_decay * scale * correction


def abs_means(params: Sequence[Tensor]) -> Tensor:
    """Return mean|θ| of each non-empty tensor, shape (tensors,), in their dtype, or float32 of bfloat16 ones.

    Chunks are summed in the tensors' dtype and combined in float64, in a fixed order: the result is
    repeatable and right for tensors of any size.
    """
    means = [_abs_sum(param.reshape(-1)) / param.numel() for param in params]
    return torch.stack(means).to(torch.promote_types(params[0].dtype, torch.float32))


def hold(measured: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Put the last finite mean where the measured one is NaN or infinite; return the means and that mask."""
    nonfinite = ~measured.isfinite()
    return torch.where(nonfinite, last, measured), nonfinite


def smooth(level: Tensor, mean: Tensor, nonfinite: Tensor, beta: float) -> Tensor:
    """Return μ_t of (6) from μ_{t−1} (`level`) and mean|θ_t|; it stays where the mean was not finite."""
    return torch.where(nonfinite, level, level.lerp(mean, 1 - beta))


def thresholds(level: Tensor, huber_c: float) -> list[Tensor]:
    """Return δ_t of (6) as 0-dim tensors, from the mean or μ_t of each tensor, shape (tensors,)."""
    # Weights that are all zero have level 0, and ∞·0 is NaN.
    delta = torch.full_like(level, math.inf) if math.isinf(huber_c) else huber_c * level
    return list(delta.unbind())


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """Return ‖g‖₂ over all tensors, 0-dim, on the first one's device and at least in float32.

    Summed in float64, unlike `torch.nn.utils.get_total_norm`: in float32 squares overflow above 2e19, and a
    million of them are 1e-6 off.
    """
    if not grads:
        return torch.zeros(())
    device = grads[0].device
    norms = [norm.to(device) for norm in torch._foreach_norm(list(grads), dtype=torch.float64)]
    dtype = torch.promote_types(grads[0].dtype, torch.float32)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total.to(dtype)


def clip_factor(norm: Tensor, clip_norm: float) -> Tensor:
    """Return the factor of (8), a 0-dim tensor, from the norm of all gradients; NaN stays NaN."""
    return torch.clamp(clip_norm / (norm + 1e-6), max=1.0)


def _pieces(batch: Batch) -> Iterator[Batch]:
    """Cut a batch into runs of whole tensors, so that temporaries are as large as a piece and not as the model."""
    start, size = 0, 0
    for stop, param in enumerate(batch.params, start=1):
        size += param.numel()
        if size >= PIECE or stop == len(batch.params):
            per_tensor = {name: getattr(batch, name)[start:stop] for name in PER_TENSOR}
            yield replace(batch, **per_tensor)
            start, size = stop, 0


def _step_weights(batch: Batch, descend: Callable[[], None]) -> None:
    """Do (5); `descend` does (3)."""
    if batch.decay == "huber-prox":
        descend()
        shrunk = _scaled(batch.params, [1 / (1 + tau) for tau in batch.strengths])
        _pull(batch, _clip(shrunk, batch.thresholds))
        return
    # (3) and (5) commute here, because both read the old θ: pulling first needs no copy of it.
    if batch.decay == "huber":
        _pull(batch, _clip(batch.params, batch.thresholds))
    elif batch.decay == "l2":
        _pull(batch, batch.params)
    descend()


def _advance_moments(
    grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], betas: tuple[float, float]
) -> None:
    """Do (1)."""
    beta1, beta2 = betas
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)


def _descend(
    batch: Batch,
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Do (2) and (3); the bias corrections are Python floats, that is float64."""
    beta1, beta2 = betas
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, [math.sqrt(1 - beta2**t) for t in batch.steps])
    torch._foreach_add_(denominators, eps)
    step_sizes = [-batch.lr / (1 - beta1**t) for t in batch.steps]
    torch._foreach_addcdiv_(batch.params, exp_avgs, denominators, step_sizes)


def _pull(batch: Batch, towards: Sequence[Tensor]) -> None:
    """Subtract τ·`towards`: one sequence of operations for every decay, so that (7) holds bit for bit."""
    torch._foreach_sub_(batch.params, _scaled(towards, batch.strengths))


def _scaled(tensors: Sequence[Tensor], factors: list[float]) -> list[Tensor]:
    return list(torch._foreach_mul(list(tensors), factors))


def _clip(tensors: Sequence[Tensor], limits: Sequence[Tensor]) -> list[Tensor]:
    # torch.clamp with bounds on the device does the same three times slower on CPU.
    upper = torch._foreach_minimum(list(tensors), list(limits))
    return list(torch._foreach_maximum(upper, [-limit for limit in limits]))


def _abs_sum(flat: Tensor) -> Tensor:
    """Return Σ|θ| of a flat tensor as a 0-dim float64 tensor."""
    sums = [_chunk_sums(widened(piece).abs()) for piece in flat.split(PIECE)]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def _chunk_sums(values: Tensor) -> Tensor:
    whole = values.numel() - values.numel() % CHUNK
    rest = values[whole:].sum(dtype=torch.float64)
    if whole == 0:
        return rest
    return rest + values[:whole].view(-1, CHUNK).sum(dim=1).sum(dtype=torch.float64)
