"""Loss against tokens: what a study with two objectives was told, and its Pareto front.

A sweep with ``min_tokens`` minimises the validation loss and log2 of the tokens together. The logarithm, because the
samplers of Optuna weigh a trial by the area (hypervolume) that it adds to the front, where a linear scale would leave
the longest horizons next to none.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial


def loss_of(trial: FrozenTrial) -> float | None:
    """Return the loss that a study was told at the end of `trial`; None before, and where there was none."""
    return trial.values[0] if trial.values else None


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """Return the losses of a trial's evaluations by step; Optuna itself keeps those of a single objective only."""
    return trial.intermediate_values or dict(trial.user_attrs.get("curve", []))


def front(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials that no other beats with as few tokens, from few tokens to many.

    Args:
        records: lines of ``trials.jsonl``. Only proposals that completed count: all have the same seed.

    Returns:
        Of each ``number``, ``tokens``, ``loss`` in nats per token, ``trials`` (that completed with so many tokens) and
        ``hyperparameters``.
    """
    completed = [
        one
        for one in records
        if one["status"] == "completed" and one["confirms"] is None and not one["fitted"]
    ]
    found: list[dict[str, Any]] = []
    for one in sorted(completed, key=lambda one: (one["tokens"], one["loss"])):
        if not found or one["loss"] < found[-1]["loss"]:
            names = ("number", "tokens", "loss", "hyperparameters")
            trials = sum(other["tokens"] == one["tokens"] for other in completed)
            found.append({**{name: one[name] for name in names}, "trials": trials})
    return found
