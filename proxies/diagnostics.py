"""What a training run tells about its weights: norms against the laws of weight decay, spectra, gains, κ̂.

Notation as in `widthwise.kernels.reference`: θ weights, g gradient, u Adam's step, η_t learning rate,
τ_t = η_t·λ·s·r_t strength of the decay, β1 and β2 Adam's. The laws hold where gradients are noise: where a
measured value leaves its law, the gradients had a direction, ε was not small, or the decay was not what it seems.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widthwise.proxies.parallel import let_go

# Elements of one float32 sum. measured: the norm of 2 M weights is up to 4e-4 off where they are summed at once,
# 2e-6 in chunks, and seven times faster to have (CPU)
CHUNK = 4096
# Elements up to which temporaries are made.
PIECE = 1 << 18
POWER_ITERATIONS = 8


@torch.no_grad()
def norm(tensor: Tensor) -> Tensor:
    """Return the 2-norm, a 0-dim float64 tensor, within 1e-5 of it at any size."""
    flat = tensor.reshape(-1)
    whole = flat.numel() - flat.numel() % CHUNK
    chunks = torch.linalg.vector_norm(flat[:whole].view(-1, CHUNK), dim=1)
    norms = torch.cat((chunks, torch.linalg.vector_norm(flat[whole:])[None]))
    total: Tensor = torch.linalg.vector_norm(norms, dtype=torch.float64)
    return total


@torch.no_grad()
def update_norm(state: Mapping[str, Any], betas: tuple[float, float], eps: float) -> Tensor:
    """Return ‖u‖ of Adam's last step, a 0-dim float64 tensor, from its moments as the step left them.

    u = (m / (1−β1^t)) / (√v / √(1−β2^t) + ε) is the step itself, before η and without the decay, so that no
    copy of the weights is needed.

    Args:
        state: the parameter's ``step``, ``exp_avg`` and ``exp_avg_sq``.
        betas: β1 and β2.
        eps: ε.
    """
    step = float(state["step"])
    correction1, correction2 = 1 - betas[0] ** step, math.sqrt(1 - betas[1] ** step)
    moments = (state[name].reshape(-1).split(PIECE) for name in ("exp_avg", "exp_avg_sq"))
    pieces = (m / v.sqrt().div_(correction2).add_(eps) for m, v in zip(*moments, strict=True))
    norms = torch.stack([norm(piece) for piece in pieces])
    total: Tensor = torch.linalg.vector_norm(norms) / correction1
    return total


@torch.no_grad()
def decay_fraction(weight: Tensor, threshold: Tensor | float) -> float:
    """Return κ̂ = Σθ·clip(θ, ±δ)/Σθ², the share of a decay of τθ that is left of it; NaN for zero weights.

    For Gaussian weights and δ = c·mean|θ| it is erf(c/√π) (arXiv 2511.14721 has the clipping; the fraction is ours).
    """
    clipped, whole = decay_sums(weight, threshold).tolist()
    return clipped / whole if whole else math.nan


@torch.no_grad()
def decay_sums(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """Return Σθ·clip(θ, ±δ) and Σθ², shape (2,), float64; of a sharded tensor, over the part that is given."""
    pieces = weight.reshape(-1).split(PIECE)
    sums = [
        (torch.dot(piece, piece.clamp(-threshold, threshold)), torch.dot(piece, piece)) for piece in pieces
    ]
    return torch.stack([torch.stack(one).sum(dtype=torch.float64) for one in zip(*sums, strict=True)])


@torch.no_grad()
def singular_values(weight: Tensor) -> Tensor:
    """Return the singular values of a matrix, the largest first, by the eigenvalues of its smaller Gram matrix.

    Those below some 1e-3 of the largest are lost in its roundings; all are NaN where the matrix is not finite.
    """
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    gram = tall.mT @ tall
    if not gram.isfinite().all():
        return gram.new_full((len(gram),), math.nan)
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp(min=0).sqrt().flip(0)


def spectrum(values: Tensor, shares: Sequence[float]) -> list[float]:
    """Return the singular values that these shares of all exceed, linear between neighbours."""
    quantiles: list[float] = values.quantile(1 - torch.tensor(shares).to(values)).tolist()
    return quantiles


@torch.no_grad()
def power_iteration(
    weight: Tensor,
    start: Tensor | None = None,
    *,
    iterations: int = POWER_ITERATIONS,
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> Tensor:
    """Return a unit vector v, shape (columns,), near the first right singular vector of a matrix.

    ‖Wv‖ is a lower bound of σ₁. It is close where σ₁ stands apart from σ₂, or where `start` comes from a look
    at nearly the same weights; for a random matrix and a random start it is some per cent low.

    Args:
        weight: shape (rows, columns), or this worker's rows of it.
        start: v of an earlier look; a random vector, always the same one, where there is none.
        iterations: applications of WᵀW.
        total: adds up WᵀWv over the workers that hold other rows.
    """
    if start is None or not start.any():
        start = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    vector = F.normalize(start.to(weight), dim=0)
    for _ in range(iterations):
        vector = F.normalize(total(weight.mT @ (weight @ vector)), dim=0)
    return vector


@torch.no_grad()
def gains(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Return rms(Wx)/rms(x) of each `nn.Linear` by its weight's name, over all positions of `inputs`.

    Without the bias; NaN where x is zero. The forward pass is one of evaluation, in the weights' precision.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    sums: dict[str, list[float]] = {}
    # Known before the pass, in which sharded weights are others.
    layers = {
        module: names[module.weight]
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight in names  # not where a parametrisation makes it
    }

    def look(module: nn.Linear, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        product = output if module.bias is None else output - module.bias
        place = sums.setdefault(layers[module], [0.0, 0.0])
        for index, values in enumerate((arguments[0], product)):
            place[index] += float(norm(values).square()) / values.shape[-1]

    # Before FSDP2's own hook, which takes the bias away.
    handles = [layer.register_forward_hook(look, prepend=True) for layer in layers]
    try:
        forward(model, inputs)
    finally:
        let_go(model)
        for handle in handles:
            handle.remove()
    return {name: math.sqrt(after / before) if before else math.nan for name, (before, after) in sums.items()}


@torch.no_grad()
def forward(model: nn.Module, inputs: Tensor) -> Any:
    """Return the model's output in evaluation mode, and leave every module's mode as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return model(inputs)
    finally:
        for module, training in modes:
            module.training = training
