"""The back ends that do AdamHC's update, and the choice among them.

`reference` takes every parameter. `cpu` takes those that `widthwise.kernels.cpu.fits`, and leaves the rest to
the reference.
"""

import logging
from collections.abc import Iterable
from functools import cache

from torch import Tensor

from widthwise.kernels import cpu
from widthwise.kernels.library import Library

NAMES = ("auto", "cuda", "cpu", "reference")

_logger = logging.getLogger("widthwise")


def resolve(name: str, params: Iterable[Tensor]) -> str:
    """Return "cpu" or "reference": what `name` stands for with these parameters on this machine.

    "auto" is the CPU back end where all parameters are on CPU and the machine can build it, which is tried
    here; else the reference, which is announced once where the build is what failed.

    Raises:
        ValueError: if there is no such back end, or it cannot be had.
    """
    if name not in NAMES:
        raise ValueError(f"backend: must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    if name == "cuda":
        raise ValueError("backend: this version ships only 'cpu' and 'reference' (and 'auto'), got 'cuda'")
    elsewhere = next((param.device for param in params if not param.is_cpu), None)
    if name == "reference" or (name == "auto" and elsewhere is not None):
        return "reference"
    if elsewhere is not None:
        raise ValueError(f"backend: 'cpu' must have all parameters on CPU, got one on {elsewhere}")
    return _cpu(required=name == "cpu")


def describe() -> tuple[str, str | None]:
    """Return the back end that CPU parameters get here, and why it is not the fast one if it is not."""
    found = cpu.library_or_reason()
    if isinstance(found, Library):
        return f"cpu (built with {found.origin})", None
    return "reference", found


def _cpu(*, required: bool) -> str:
    found = cpu.library_or_reason()
    if isinstance(found, Library):
        return "cpu"
    if required:
        raise ValueError(f"backend: 'cpu' must be built first, and cannot be: {found}")
    _announce(found)
    return "reference"


@cache
def _announce(reason: str) -> None:
    _logger.warning("AdamHC runs on its slow reference back end: %s", reason)
