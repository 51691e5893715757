"""The back ends that do AdamHC's update, and the choice among them.

A back end is anything, a module for one, with the functions of `Backend`. To add one: write it, put it into
`BACKENDS`, and let `resolve` prefer it where it works.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from widthwise.kernels import reference
from widthwise.kernels.reference import Batch

NAMES = ("auto", "cuda", "cpu", "reference")


class Backend(Protocol):
    """What an optimizer needs of a back end; `widthwise.kernels.reference` says what it computes."""

    def update(self, batch: Batch, /) -> Tensor | None:
        """Do one step in place; return the mean |θ'| per tensor, shape (tensors,), for a Huber decay."""
        ...

    def abs_means(self, params: Sequence[Tensor], /) -> Tensor:
        """Return mean|θ| per tensor, shape (tensors,)."""
        ...


BACKENDS: dict[str, Backend] = {"reference": reference}


def resolve(name: str) -> str:
    """Return the key in `BACKENDS` that `name` stands for.

    Raises:
        ValueError: if there is no such back end, or this version does not ship it.
    """
    if name not in NAMES:
        raise ValueError(f"backend: must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    if name == "auto":
        return "reference"
    if name not in BACKENDS:
        raise ValueError(f"backend: this version ships only 'reference' (and 'auto'), got {name!r}")
    return name
