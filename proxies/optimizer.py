"""From hyperparameters and parameter groups to AdamHC."""

from typing import Any

from widthwise.kernels import AdamHC
from widthwise.proxies.config import Hyperparameters


def adamhc(groups: list[dict[str, Any]], hyperparameters: Hyperparameters) -> AdamHC:
    """Build AdamHC: per-group values come from `groups`, everything else from `hyperparameters`."""
    return AdamHC(
        groups,
        betas=hyperparameters.betas,
        decay=hyperparameters.decay,
        huber_c=hyperparameters.huber_c,
        threshold=hyperparameters.threshold,
        clip_norm=hyperparameters.clip_norm,
    )
