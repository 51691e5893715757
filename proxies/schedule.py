"""The learning rate's shape over a run, in plain Python, so that the calculator can sum it."""

from math import cos, pi

from widthwise.proxies.config import Horizon


def schedule(horizon: Horizon, step: int) -> float:
    """Return η at `step` (0-based) divided by its peak, in [0, 1].

    Warm-up is linear and reaches 1 at the first step after it; the last step is the first at which
    the decay is as good as complete (progress is measured to the end of the step).
    """
    warmup = round(horizon.warmup_fraction * horizon.steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = warmup
    if horizon.schedule == "wsd":
        start = max(warmup, horizon.steps - round(horizon.decay_fraction * horizon.steps))
        if step < start:
            return 1.0
    progress = min(1.0, (step - start) / max(1, horizon.steps - start))
    remaining = (1 + cos(pi * progress)) / 2 if horizon.schedule == "cosine" else 1 - progress
    return horizon.final_fraction + (1 - horizon.final_fraction) * remaining


def decay_horizon(horizon: Horizon, lr: float, weight_decay: float, *, corrected: bool) -> float:
    """Return Σ_t τ_t = Σ_t η_t·λ·r_t: how many decay times 1/(ηλ) the run lasts.

    1.5 means that 95 % of the initial variance is forgotten; below it weight decay has little time
    to act. r_t = η_t/η_max where the decay is corrected (AdamC, arXiv 2506.02285), 1 otherwise.
    """
    power = 2 if corrected else 1
    return lr * weight_decay * sum(schedule(horizon, step) ** power for step in range(horizon.steps))
