"""Narrow µP GPTs, the parameter table that mup's shapes yield, token data and the training loop."""

from typing import TYPE_CHECKING

from widthwise.proxies._lazy import exported
from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters, KindSettings

if TYPE_CHECKING:
    from widthwise.proxies.coordinates import Coordinates
    from widthwise.proxies.data import Tokens, open_tokens
    from widthwise.proxies.model import GPT
    from widthwise.proxies.module_decay import AWD, AdaDecay, AlphaDecay
    from widthwise.proxies.outcome import Diagnostics, RunOptions, TrainResult
    from widthwise.proxies.recorder import Recorder
    from widthwise.proxies.shapes import parameter_table
    from widthwise.proxies.table import ParameterEntry, ParameterTable, parameter_groups
    from widthwise.proxies.training import train

__all__ = [
    "AWD",
    "GPT",
    "AdaDecay",
    "AlphaDecay",
    "Coordinates",
    "Diagnostics",
    "GPTConfig",
    "Horizon",
    "Hyperparameters",
    "KindSettings",
    "ParameterEntry",
    "ParameterTable",
    "Recorder",
    "RunOptions",
    "Tokens",
    "TrainResult",
    "open_tokens",
    "parameter_groups",
    "parameter_table",
    "train",
]

__getattr__, __dir__ = exported(
    __name__,
    {
        "coordinates": "Coordinates",
        "data": "Tokens open_tokens",
        "model": "GPT",
        "module_decay": "AWD AdaDecay AlphaDecay",
        "outcome": "Diagnostics RunOptions TrainResult",
        "recorder": "Recorder",
        "shapes": "parameter_table",
        "table": "ParameterEntry ParameterTable parameter_groups",
        "training": "train",
    },
)
