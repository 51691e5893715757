"""Optimizers whose decay is decoupled, Huber's or corrected: AdamHC on AdamW's ground, SGDC on SGD's."""

from widthwise.kernels.adamhc import AdamHC
from widthwise.kernels.sgdc import SGDC

__all__ = ["SGDC", "AdamHC"]
