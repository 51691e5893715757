"""A check's runs as plain records: what was set, and what came of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, Self

_KEY = re.compile(r"width(\d+)_lr(.+)_decay(.+)_seed(\d+)")

Axis = Literal["lr", "decay"]
AXES: tuple[Axis, ...] = ("lr", "decay")


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """What one run is given: a width, a seed, and how far η and λ are off the rule's values there.

    Attributes:
        width: of the model.
        seed: decides initialisation and batches.
        lr_octaves: log₂ of η over the rule's, the same for every parameter kind.
        decay_octaves: log₂ of λ over the rule's.
    """

    width: int
    seed: int
    lr_octaves: float = 0.0
    decay_octaves: float = 0.0

    @property
    def key(self) -> str:
        """The run's name in a folder."""
        return f"width{self.width}_lr{self.lr_octaves:g}_decay{self.decay_octaves:g}_seed{self.seed}"

    @classmethod
    def of(cls, key: str) -> Self:
        """Return the setting that a run's name stands for."""
        width, lr, decay, seed = _KEY.fullmatch(key).groups()  # type: ignore[union-attr]
        return cls(width=int(width), seed=int(seed), lr_octaves=float(lr), decay_octaves=float(decay))

    @property
    def is_transferred(self) -> bool:
        """Whether η and λ are the rule's own."""
        return self.lr_octaves == self.decay_octaves == 0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What came of one run.

    Attributes:
        setting: what it was given.
        lr: the matrices' peak η.
        weight_decay: the matrices' λ.
        loss: last validation loss in nats per token; None where the run diverged.
        top_singular_values: of each matrix at the end, by parameter name.
        spectra: of each matrix at the end, by parameter name, at `widthwise.proxies.outcome.SPECTRUM_SHARES`.
        kappa: κ̂ of the matrices, size-weighted: the share of the weight decay that Huber's clipping leaves.
        rms_ratio: the matrices' RMS over what noise alone would make it, √(η/2λ) for a constant η.
        update_ratio: the matrices' relative update over what noise alone would make it.
        coordinates: layer → rms of the change of its output on fixed tokens after each of the first steps.
    """

    setting: Setting
    lr: float
    weight_decay: float
    loss: float | None
    top_singular_values: Mapping[str, float] = field(default_factory=dict)
    spectra: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kappa: float | None = None
    rms_ratio: float | None = None
    update_ratio: float | None = None
    coordinates: Mapping[str, Sequence[float]] = field(default_factory=dict)


def observed(
    setting: Setting,
    lr: float,
    weight_decay: float,
    loss: float | None,
    measured: Mapping[str, Any],
) -> Observation:
    """Return what a finished run says.

    Args:
        setting: what it was given.
        lr: the matrices' η.
        weight_decay: the matrices' λ.
        loss: its last validation loss, or None.
        measured: as `widthwise.search.grid.Outcome` has it.
    """
    diagnostics = measured.get("diagnostics") or {}
    matrices = diagnostics.get("kinds", {}).get("matrix", {})
    named = {name: one for name, one in diagnostics.get("parameters", {}).items() if one["kind"] == "matrix"}
    sizes = {name: one["top_singular_value"] for name, one in named.items()}
    coordinates: Mapping[str, Sequence[float | None]] = measured.get("coordinate_deltas") or {}
    return Observation(
        setting=setting,
        lr=lr,
        weight_decay=weight_decay,
        loss=loss if loss is not None and isfinite(loss) else None,
        top_singular_values={name: value for name, value in sizes.items() if value},
        # Runs of before it was recorded have none.
        spectra={name: one["spectrum"] for name, one in named.items() if one.get("spectrum")},
        kappa=matrices.get("kappa"),
        rms_ratio=matrices.get("rms_ratio"),
        update_ratio=matrices.get("update_ratio_over_law"),
        coordinates={name: [step or 0.0 for step in steps] for name, steps in coordinates.items()},
    )


def line(observations: Iterable[Observation], width: int, axis: Axis) -> dict[float, dict[int, float | None]]:
    """Return the losses along one axis at a width, the other at the rule's own value: offset → seed → loss."""
    losses: dict[float, dict[int, float | None]] = {}
    for one in observations:
        at = one.setting
        here, other = at.lr_octaves, at.decay_octaves
        if axis == "decay":
            here, other = other, here
        if at.width == width and other == 0:
            losses.setdefault(here, {})[at.seed] = one.loss
    return losses
