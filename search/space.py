"""The search space: learning rate, weight decay and the Huber coefficient, with plain AdamW as an arm of its own."""

import math
from itertools import product
from typing import Any, Self

import numpy as np
from optuna.trial import BaseTrial
from pydantic import Field, model_validator

from widthwise.proxies.config import Decay, Hyperparameters
from widthwise.proxies.validation import Record

Range = tuple[float, float]


class Point(Record):
    """One setting in a search space."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(gt=0)
    decay: Decay
    huber_c: float | None = None

    @classmethod
    def of(cls, hyperparameters: Hyperparameters) -> Self:
        """Return what a space searches of `hyperparameters`."""
        return cls(**hyperparameters.model_dump(include=set(cls.model_fields)))

    def parameters(self) -> dict[str, Any]:
        """Return the point as `SearchSpace.suggest` draws it."""
        return self.model_dump(exclude_none=True)


class SearchSpace(Record):
    """What a sweep searches; ranges are log-uniform.

    Attributes:
        lr: range of the peak learning rate η.
        weight_decay: range of λ.
        huber_c: range of the Huber coefficient c, drawn only where the decay is a Huber one.
        decay: the forms of weight decay to choose from; ``l2`` is AdamW, the limit c → ∞.
    """

    lr: Range = (0.005, 0.2)
    weight_decay: Range = (0.2, 20.0)
    huber_c: Range = (0.75, 4.0)
    decay: tuple[Decay, ...] = ("huber", "l2")

    @model_validator(mode="after")
    def _ordered(self) -> "SearchSpace":
        for name in ("lr", "weight_decay", "huber_c"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: 0 < low <= high must hold, got low={low:g}, high={high:g}")
        if not self.decay:
            raise ValueError("decay: must name at least one form of decay, got none")
        return self

    def require(self, point: Point) -> None:
        """Raise a ValueError where `point` is not in the space."""
        if point.decay not in self.decay:
            raise ValueError(f"decay: must be one of {', '.join(self.decay)}, got {point.decay}")
        for name in ("lr", "weight_decay", "huber_c"):
            (low, high), value = getattr(self, name), getattr(point, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: must be in the space's range [{low:g}, {high:g}], got {value:g}")

    def grid(self, trials: int) -> list[dict[str, Any]]:
        """Return the largest grid of at most `trials` points, as `suggest` draws them: η × λ × forms of decay.

        η and λ have as many values as each other, or η has one more, from one end of their ranges to the other, evenly
        in the logarithm. Where the decay has a c, it is the middle of its range.
        """
        counts = _sides(
            trials // len(self.decay), free=[low < high for low, high in (self.lr, self.weight_decay)]
        )
        axes = _values(self.lr, counts[0]), _values(self.weight_decay, counts[1])
        [middle] = _values(self.huber_c, 1)
        return [
            {"lr": lr, "weight_decay": weight_decay, "decay": decay}
            | ({"huber_c": middle} if has_c(decay) else {})
            for lr, weight_decay, decay in product(*axes, self.decay)
        ]

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Draw ``lr``, ``weight_decay``, ``decay`` and ``huber_c`` (None where the decay has none)."""
        drawn: dict[str, Any] = {
            "lr": trial.suggest_float("lr", *self.lr, log=True),
            "weight_decay": trial.suggest_float("weight_decay", *self.weight_decay, log=True),
            "decay": trial.suggest_categorical("decay", self.decay),
            "huber_c": None,
        }
        if has_c(drawn["decay"]):
            drawn["huber_c"] = trial.suggest_float("huber_c", *self.huber_c, log=True)
        return drawn


def has_c(decay: Decay) -> bool:
    """Return whether a form of decay has a Huber coefficient."""
    return decay.startswith("huber")


def _values(ends: Range, count: int) -> list[float]:
    """Return values from end to end, evenly in the logarithm; of one value the middle."""
    return [math.sqrt(math.prod(ends))] if count == 1 else np.geomspace(*ends, count).tolist()


def _sides(cells: int, free: list[bool]) -> tuple[int, int]:
    """Return the numbers of values of two axes, of which those that are not free have one; at most `cells` in all."""
    if all(free):
        side = math.isqrt(cells)
        return side + (side * (side + 1) <= cells), side
    first, second = (cells if one else 1 for one in free)
    return first, second
