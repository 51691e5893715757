"""AdamHC's options for tests of a back end: none is zero, none is a default."""

from typing import Any

OPTIONS: dict[str, Any] = {
    "lr": 0.02,
    "betas": (0.8, 0.9),
    "eps": 1e-5,
    "weight_decay": 0.6,
    "huber_c": 1.2,
    "threshold": "ema",
    "threshold_beta": 0.7,
    "corrected": True,
    "max_lr": 0.03,
}
