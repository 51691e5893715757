"""The book of mean absolute weights, which saves the Huber thresholds a reading of the weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from widthwise.kernels import reference
from widthwise.kernels.precision import State, weights_of

Measure = Callable[[Sequence[Tensor]], Tensor]  # mean|θ| of each tensor, shape (tensors,)


class WeightMeans:
    """Keeps `abs_mean`, `nonfinite` and `threshold_ema` in the states, and knows when they are stale.

    Parameters that are passed together are non-empty and of one device and dtype.
    """

    def __init__(self) -> None:
        self._fingerprints: dict[Tensor, tuple[int, int]] = {}

    def refresh(
        self, group: dict[str, Any], params: list[Tensor], states: list[State], measure: Measure
    ) -> None:
        """Measure weights that are new or that others have changed, and begin moving averages where used."""
        stale = [
            (param, state)
            for param, state in zip(params, states, strict=True)
            if "abs_mean" not in state or self._fingerprints.get(param) != _fingerprint(param)
        ]
        if stale:
            stale_params, stale_states = zip(*stale, strict=True)
            weights = list(map(weights_of, stale_params, stale_states))
            self.remember(stale_params, stale_states, measure(weights))
        if group["threshold"] == "ema":
            for state in states:
                if "threshold_ema" not in state:
                    state["threshold_ema"] = state["abs_mean"].clone()

    def thresholds(self, group: dict[str, Any], states: list[State]) -> list[Tensor]:
        """Return δ of this step per refreshed state, 0-dim tensors; advances the moving average where used."""
        level = _stacked(states, "abs_mean")
        if group["threshold"] == "ema":
            nonfinite = _stacked(states, "nonfinite") != 0
            level = reference.smooth(
                _stacked(states, "threshold_ema"), level, nonfinite, group["threshold_beta"]
            )
            _store(states, "threshold_ema", level)
        return reference.thresholds(level, group["huber_c"])

    def remember(self, params: Sequence[Tensor], states: Sequence[State], measured: Tensor) -> None:
        """Keep the means of the present weights, shape (parameters,), for the next step."""
        zero = measured.new_zeros(())
        last = torch.stack([state.get("abs_mean", zero) for state in states])
        means, nonfinite = reference.hold(measured, last)
        _store(states, "abs_mean", means)
        # Not a boolean: loading a state dict casts every tensor but `step` to the parameter's dtype.
        _store(states, "nonfinite", nonfinite.to(means.dtype))
        self.trust(params)

    def trust(self, params: Sequence[Tensor]) -> None:
        """Take it that the states have the means of the present weights."""
        self._fingerprints.update(zip(params, map(_fingerprint, params), strict=True))


def _fingerprint(param: Tensor) -> tuple[int, int]:
    """Return what changes when somebody else writes to the weights or replaces them."""
    return param._version, param.data_ptr()


def _stacked(states: Sequence[State], name: str) -> Tensor:
    return torch.stack([state[name] for state in states])


def _store(states: Sequence[State], name: str, values: Tensor) -> None:
    # Copies: views of one storage would tie the states together in a saved file.
    for state, value in zip(states, values.unbind(), strict=True):
        state[name] = value.clone()
