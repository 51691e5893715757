"""Proxy sweeps: Ray Tune executes, an Optuna study remembers."""

from typing import TYPE_CHECKING

from widthwise.proxies._lazy import exported

if TYPE_CHECKING:
    from widthwise.search.config import SweepConfig
    from widthwise.search.space import SearchSpace
    from widthwise.search.storage import Storage
    from widthwise.search.sweeping import SweepResult, sweep

__all__ = ["SearchSpace", "Storage", "SweepConfig", "SweepResult", "sweep"]

__getattr__, __dir__ = exported(
    __name__,
    {
        "config": "SweepConfig",
        "space": "SearchSpace",
        "storage": "Storage",
        "sweeping": "SweepResult sweep",
    },
)
