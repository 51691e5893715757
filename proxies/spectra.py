"""Heavy-tailed spectra of weights, and the weight decay that AlphaDecay assigns by them (arXiv 2506.14562).

Eigenvalues λ_j, ascending, n of them, are the squared singular values of a weight, that is the eigenvalues of
its smaller Gram matrix. The Hill estimate takes their upper half, x_min = λ_i with i = ⌊n/2⌋ included:

    α = 1 + (n − i) / Σ_{j≥i} ln(λ_j/λ_i)

as AlphaDecay's code does; `docs/module-decay.md` says what else that code does. α does not depend on a
weight's scale, so that the code's factor √½ on convolutions is not needed here.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import get_args

import torch
from torch import Tensor

from widthwise.kernels.sharding import is_sharded
from widthwise.proxies.config import Assign, require_range
from widthwise.proxies.parts import share_out, summed_over_workers, whole
from widthwise.proxies.validation import ConfigError, nearest

# Eigenvalues below which a weight is not tuned: AlphaDecay's own limit.
FEWEST = 50
# measured: float32 is off by 1.5e-6 in α below this λ_max/λ_median, and by up to 3e-2 above it
ILL_CONDITIONED = 1e5
# assumed: what rounding leaves of a mean log ratio of 0 (an orthogonal matrix) or of a difference of α
ROUNDING = 1e-5
# Elements that are stacked at a time.
TOGETHER = 1 << 24


def hill_alpha(weight: Tensor, *, fixed_aspect: bool = False) -> float:
    """Return the Hill estimate α of a weight's spectrum; small where the spectrum is heavy-tailed.

    Args:
        weight: a matrix, or a convolution's weight (out, in, *kernel*): a matrix per place of the kernel,
            their eigenvalues pooled, as AlphaDecay does. Computed in float32, in float64 where need be.
        fixed_aspect: pool the eigenvalues of square sub-matrices instead, as FARMS does (arXiv 2506.06280):
            windows as wide as the smaller side, evenly spaced along the larger one. Otherwise α of a random
            matrix measures its aspect ratio: 2.12 where square, 3.45 at 1:4.

    Returns:
        α > 1; NaN for weights that are all zero or not finite; infinity where all upper eigenvalues are
        equal, as those of an orthogonal matrix.

    Raises:
        ConfigError: for a tensor with fewer than two dimensions or no elements.
    """
    if weight.ndim < 2 or weight.numel() == 0:
        raise ConfigError(
            f"weight: must have two dimensions or more and no empty one, got shape {tuple(weight.shape)}"
        )
    return hill_alphas([weight], fixed_aspect=fixed_aspect)[0]


@torch.no_grad()
def hill_alphas(weights: Sequence[Tensor], *, fixed_aspect: bool = False) -> list[float]:
    """Return α of each weight; those of one shape are worked on together, which a GPU needs to be fast.

    Of sharded weights each worker takes some, one whole matrix at a time, and all learn every α.
    """
    if any(map(is_sharded, weights)):
        own = own_matrices(weights)
        return of_all_workers(
            {place: hill_alphas([one], fixed_aspect=fixed_aspect)[0] for place, one in own}, weights
        )
    stacks = [_matrices(weight, fixed_aspect) for weight in weights]
    alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for place, stack in enumerate(stacks):
        alike.setdefault((stack.shape, stack.dtype, stack.device), []).append(place)
    alphas = [math.nan] * len(weights)
    for (shape, _, _), places in alike.items():
        count = max(1, TOGETHER // shape.numel())
        for start in range(0, len(places), count):
            some = places[start : start + count]
            estimates = _hill(_eigenvalues(torch.stack([stacks[place] for place in some])))
            for place, alpha in zip(some, estimates.tolist(), strict=True):
                alphas[place] = alpha
    return alphas


@torch.no_grad()
def own_matrices(weights: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield this worker's share of weights, whole, and their places; all of them where none is sharded.

    Collective: every worker that holds parts of them must take all, in turn with the others.
    """
    is_own = share_out(len(weights), weights[0]) if any(map(is_sharded, weights)) else repeat(True)
    for place, (weight, own) in enumerate(zip(weights, is_own, strict=False)):
        matrix = whole(weight)
        if own:
            yield place, matrix.detach()


def of_all_workers(alphas: Mapping[int, float], weights: Sequence[Tensor]) -> list[float]:
    """Return α of each weight, from α by place of this worker's `own_matrices`; collective as that is."""
    found = [alphas.get(place, 0.0) for place in range(len(weights))]
    if not any(map(is_sharded, weights)):
        return found
    sums = torch.tensor(found, dtype=torch.float64, device=weights[0].device)
    everyones: list[float] = summed_over_workers(sums, weights[0]).tolist()
    return everyones


def decay_scales(
    weights: Mapping[str, Tensor],
    assign: Assign = "linear",
    low: float = 0.6666,
    high: float = 5.0,
    mean_preserving: bool = False,
    fixed_aspect: bool = False,
) -> dict[str, float]:
    """Return AlphaDecay's multiplier of λ for each named weight: the smaller α, the less decay.

    Tuned are weights with two dimensions or more and at least 50 eigenvalues. A weight's block is its name
    up to the first part that is a number (``model.layers.3``); where any weight lies in a block, those that
    lie in none, such as embedding and readout, are not tuned. All that are not tuned get 1, and so do
    weights that are zero, not finite or orthogonal, and those whose α are all equal.

    Args:
        weights: weights by name; a model's ``dict(model.named_parameters())`` will do.
        assign: see `assigned`.
        low: multiplier of the smallest α (``linear`` only).
        high: multiplier of the largest α (``linear`` only).
        mean_preserving: divide the tuned multipliers by their mean over modules; AlphaDecay's ``linear``
            raises the total decay otherwise.
        fixed_aspect: see `hill_alpha`.

    Raises:
        ConfigError: where an option is out of its range.
    """
    require_range(low, high)
    tuned = tuned_names(weights, fixed_aspect)
    alphas = hill_alphas([weights[name] for name in tuned], fixed_aspect=fixed_aspect)
    multipliers = multipliers_of(dict(zip(tuned, alphas, strict=True)), assign, low, high, mean_preserving)
    return {**dict.fromkeys(weights, 1.0), **multipliers}


def multipliers_of(
    alphas: Mapping[str, float], assign: Assign, low: float, high: float, mean_preserving: bool
) -> dict[str, float]:
    """Return the multipliers of the weights with a finite α; see `decay_scales`."""
    usable = {name: alpha for name, alpha in alphas.items() if math.isfinite(alpha)}
    multipliers = assigned(usable, assign, low, high)
    if mean_preserving and multipliers:
        mean = math.fsum(multipliers.values()) / len(multipliers)
        multipliers = {name: multiplier / mean for name, multiplier in multipliers.items()}
    return multipliers


def assigned(
    scores: Mapping[str, float], assign: Assign, low: float = 0.6666, high: float = 5.0
) -> dict[str, float]:
    """Return the multipliers that AlphaDecay's code assigns to finite scores by name.

    ``linear`` interpolates between `low` and `high`; ``sqrt`` and ``log2`` are f(α) over the mean of f(α);
    ``sigmoid`` is 2/(1 + e^(−4z)), z the z-score within the block that a name lies in. Equal scores get 1.
    """
    if assign not in get_args(Assign):
        known = list(get_args(Assign))
        raise ConfigError(
            f"assign: must be one of {', '.join(known)}, got {assign!r}{nearest(str(assign), known)}"
        )
    if assign == "sigmoid":
        blocks: dict[str | None, dict[str, float]] = {}
        for name, score in scores.items():
            blocks.setdefault(block_name(name), {})[name] = score
        standard = [_standardised(block) for block in blocks.values()]
        return {name: 2 * _logistic(4 * z) for block in standard for name, z in block.items()}
    if _equal(scores):
        return dict.fromkeys(scores, 1.0)
    if assign == "linear":
        least, most = min(scores.values()), max(scores.values())
        slope = (high - low) / (most - least)
        return {name: low + (score - least) * slope for name, score in scores.items()}
    function = math.sqrt if assign == "sqrt" else math.log2
    values = {name: function(score) for name, score in scores.items()}
    mean = math.fsum(values.values()) / len(values)
    return {name: value / mean for name, value in values.items()}


def _matrices(weight: Tensor, fixed_aspect: bool) -> Tensor:
    """Return a weight as matrices of shape (matrices, longer side, shorter side)."""
    stack = weight[None] if weight.ndim == 2 else weight.flatten(2).permute(2, 0, 1)
    if stack.shape[1] < stack.shape[2]:
        stack = stack.mT
    if not fixed_aspect:
        return stack
    length, side = stack.shape[1:]
    last = math.ceil(length / side) - 1
    starts = [round(place * (length - side) / max(last, 1)) for place in range(last + 1)]
    return torch.cat([stack[:, start : start + side] for start in starts])


def _eigenvalues(stacked: Tensor) -> Tensor:
    """Return eigenvalues, ascending, pooled over matrices, up to a factor: (weights, matrices · shorter side).

    Args:
        stacked: shape (weights, matrices, longer side, shorter side).
    """
    stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
    largest = stacked.abs().amax((1, 2, 3), keepdim=True)
    usable = largest.isfinite() & (largest > 0)
    # Scaled, so that no square overflows or vanishes; eigvalsh raises where a number is not finite.
    scaled = torch.where(usable, stacked / largest, 0.0).float()
    values = _spectra(scaled)
    count = values.shape[1]
    ill = values[:, -1] > ILL_CONDITIONED * values[:, count // 2]
    if ill.any():
        values[ill] = _spectra(scaled[ill].double())
    # What is lower is rounding: a matrix of low rank has no smaller eigenvalue that could be told.
    return values.clamp(min=values[:, -1:] * (count * torch.finfo(torch.float64).eps))


def _spectra(scaled: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(scaled.mT @ scaled)
    return values.double().flatten(1).sort(dim=1).values


def _hill(values: Tensor) -> Tensor:
    """Return α per row of ascending eigenvalues, shape (weights, eigenvalues)."""
    logs = values[:, values.shape[1] // 2 :].log()
    mean = (logs - logs[:, :1]).mean(dim=1)
    return torch.where(mean < ROUNDING, math.inf, 1 + 1 / mean)


def tuned_names(weights: Mapping[str, Tensor], fixed_aspect: bool) -> list[str]:
    """Return the names of the weights that have a say and get one; see `decay_scales`."""
    matrices = [name for name, weight in weights.items() if weight.ndim >= 2 and weight.numel() > 0]
    in_blocks = [name for name in matrices if block_name(name) is not None]
    return [name for name in in_blocks or matrices if _count(weights[name], fixed_aspect) >= FEWEST]


def _count(weight: Tensor, fixed_aspect: bool) -> int:
    """Return how many eigenvalues are pooled."""
    short, long = sorted(weight.shape[:2])
    kernel = weight.shape[2:].numel()
    return kernel * short * (math.ceil(long / short) if fixed_aspect else 1)


def block_name(name: str) -> str | None:
    """Return the name up to its first part that is a number; None where there is none."""
    found = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", name)
    return None if found is None else found[0]


def _standardised(scores: Mapping[str, float]) -> dict[str, float]:
    if _equal(scores):
        return dict.fromkeys(scores, 0.0)
    mean = math.fsum(scores.values()) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores.values()) / len(scores))
    return {name: (score - mean) / deviation for name, score in scores.items()}


def _equal(scores: Mapping[str, float]) -> bool:
    """Tell whether scores differ by no more than rounding, which must not be spread over the whole range."""
    values = scores.values()
    return not values or max(values) - min(values) <= ROUNDING * max(values)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
