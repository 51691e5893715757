"""Narrow µP GPTs, the parameter table that mup's shapes yield, token data and the training loop."""

from typing import TYPE_CHECKING

from widthwise.proxies._lazy import exported
from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters, KindSettings

if TYPE_CHECKING:
    from widthwise.proxies.data import Tokens, open_tokens
    from widthwise.proxies.model import GPT
    from widthwise.proxies.module_decay import AWD, AdaDecay, AlphaDecay
    from widthwise.proxies.shapes import ParameterTable, parameter_groups, parameter_table
    from widthwise.proxies.training import RunOptions, TrainResult, train

__all__ = [
    "AWD",
    "GPT",
    "AdaDecay",
    "AlphaDecay",
    "GPTConfig",
    "Horizon",
    "Hyperparameters",
    "KindSettings",
    "ParameterTable",
    "RunOptions",
    "Tokens",
    "TrainResult",
    "open_tokens",
    "parameter_groups",
    "parameter_table",
    "train",
]

__getattr__ = exported(
    __name__,
    {
        "AWD": "module_decay",
        "AdaDecay": "module_decay",
        "AlphaDecay": "module_decay",
        "GPT": "model",
        "ParameterTable": "shapes",
        "RunOptions": "training",
        "Tokens": "data",
        "TrainResult": "training",
        "open_tokens": "data",
        "parameter_groups": "shapes",
        "parameter_table": "shapes",
        "train": "training",
    },
)
