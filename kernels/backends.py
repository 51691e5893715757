"""The back ends that do AdamHC's and SGDC's update, and the choice among them.

`reference` takes every parameter. `cpu` and `cuda` take those that they say `fits`, and leave the rest to the
reference.
"""

import logging
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from widthwise.kernels import cpu, cuda
from widthwise.kernels.library import Library

NAMES = ("auto", "cuda", "cpu", "reference")

_logger = logging.getLogger("widthwise")


class Backend(Protocol):
    """What a fast back end has, as a module."""

    Plan: Any  # a `plan.Plan`

    def fits(self, param: Tensor, /) -> bool:
        """Tell whether it takes the parameter."""
        ...

    def abs_means(self, params: Sequence[Tensor], /) -> Tensor:
        """Return mean|θ| of each tensor, shape (tensors,), summed as a step sums them."""
        ...


FAST: dict[str, Backend] = {"cpu": cpu, "cuda": cuda}


def resolve(name: str, params: Iterable[Tensor]) -> str:
    """Return "cuda", "cpu" or "reference": what `name` stands for with these parameters on this machine.

    "auto" is the back end of the device type that all parameters are on, where the machine can build it and, on
    CUDA, its steps are right, which is tried here once; else the reference, which is announced once where the
    trial is what failed.

    Raises:
        ValueError: if there is no such back end, or it cannot be had.
    """
    if name not in NAMES:
        raise ValueError(f"backend: must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    devices = list(dict.fromkeys(param.device for param in params)) or [torch.device("cpu")]
    kind = devices[0].type if name == "auto" else name
    elsewhere = next((device for device in devices if device.type != kind), None)
    if kind not in FAST or (name == "auto" and elsewhere is not None):
        return "reference"
    if elsewhere is not None:
        raise ValueError(
            f"backend: {name!r} must have all parameters on {kind.upper()}, got one on {elsewhere}"
        )
    reason = _reason(kind, devices)
    if reason is None:
        return kind
    if name != "auto":
        raise ValueError(f"backend: {name!r} must work on this machine, and does not: {reason}")
    _announce(reason)
    return "reference"


def describe(kind: str = "cpu") -> tuple[str, str | None]:
    """Return the back end that parameters on "cpu" or "cuda" get here, and why it is not the fast one if so."""
    device = torch.device(kind, 0)
    reason = _reason(kind, [device])
    if reason is not None:
        return "reference", reason
    if kind == "cuda":
        return f"cuda (built with {cuda.origin(device)}, agrees with the reference)", None
    found = cpu.library_or_reason()
    assert isinstance(found, Library)
    return f"cpu (built with {found.origin})", None


def _reason(kind: str, devices: list[torch.device]) -> str | None:
    """Return why a fast back end cannot be had on these devices, or None; it is built and tried here."""
    if kind == "cuda":
        return next(filter(None, map(cuda.unavailable, devices)), None)
    found = cpu.library_or_reason()
    return None if isinstance(found, Library) else found


@cache
def _announce(reason: str) -> None:
    _logger.warning("AdamHC runs on its slow reference back end: %s", reason)
