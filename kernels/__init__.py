"""Optimizers: AdamHC, which is AdamW with decoupled Huber decay and the AdamC correction."""

from widthwise.kernels.adamhc import AdamHC

__all__ = ["AdamHC"]
