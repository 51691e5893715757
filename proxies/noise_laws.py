"""What becomes of weights that only noise moves (arXiv 2305.17212); imports no torch."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def advance_variance(variance: float, lr: float, strength: float) -> float:
    """Return V_t, the mean square of weights that only noise moves, from V_{t−1}.

        V_t = (1−τ)²·V_{t−1} + (1−τ/2)·η²

    With constant η and τ = ηλ this is V_t = (1−τ)^{2t}·V_0 + (1−(1−τ)^{2t})·η/(2λ), with √(η/(2λ)) its
    equilibrium (arXiv 2305.17212); step by step it holds for any schedule. That β1 is not in it is no
    approximation: momentum correlates the steps, and the sum of T of them has variance T·η² all the same.

    Args:
        variance: V_{t−1}.
        lr: η_t.
        strength: τ_t·κ̂, with κ̂ of `decay_fraction` where the decay clips.
    """
    kept = 1 - strength
    return kept * kept * variance + max(0.0, 1 - strength / 2) * lr * lr


def advance_variance_by_steps(variance: float, lrs: Array, strengths: Array) -> float:
    """Return `advance_variance` applied once for each pair of η and τ·κ̂, in their order."""
    kept = np.square(1 - strengths)
    added = np.maximum(0.0, 1 - strengths / 2) * np.square(lrs)
    # What is there at first is kept by all steps, what a step added by those after it.
    amounts = np.append(variance, added)
    # A decay of τ > 2 lets weights grow without bound, but of nothing comes nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        since = np.append(np.cumprod(kept[::-1])[::-1], 1.0)
        return float(np.sum(amounts * since, where=amounts != 0))


def update_ratio_law(variance: float, lr: float, beta1: float) -> float:
    """Return ‖ηu‖/‖θ‖ of noise, η·√((1−β1)/(1+β1))/√V with V of `advance_variance`.

    In equilibrium it is √(2ηλ·(1−β1)/(1+β1)) (arXiv 2305.17212); out of it, under a schedule, it follows V.
    Infinite where V is 0.
    """
    return lr * math.sqrt((1 - beta1) / (1 + beta1) / variance) if variance > 0 else math.inf
