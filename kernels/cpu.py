"""The CPU back end: packs a record per tensor and does the step of all of them in one call of `csrc/cpu.cpp`.

It takes contiguous float32 and bfloat16 parameters on CPU; `widthwise.kernels.adamhc` leaves any other to the
reference.
The results are the same bits for any number of threads, compiler and processor. They differ from the
reference's by roundings: torch fuses multiply-adds where it likes, and divides by √(1−β2^t) where the library
multiplies.
"""

import ctypes
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.kernels import library, plan
from widthwise.kernels.library import Library
from widthwise.kernels.plan import Work
from widthwise.kernels.precision import NARROW, Precision, State
from widthwise.kernels.records import Rule


@cache
def library_or_reason() -> Library | str:
    """Return the library, built if need be, or the reason why this machine has none."""
    try:
        return library.load()
    except library.BuildError as error:
        return str(error)


def fits(param: Tensor) -> bool:
    """Tell whether this back end takes the parameter."""
    plain = type(param) is nn.Parameter or type(param) is Tensor
    return plain and param.is_cpu and param.dtype in (torch.float32, NARROW) and param.is_contiguous()


def abs_means(weights: Sequence[Tensor]) -> Tensor:
    """Return mean|θ| of each tensor, shape (tensors,), summed as a step sums them."""
    count = len(weights)
    means = torch.empty(count, dtype=torch.float32)
    _function("adamhc_abs_means")(*_arrays(weights), count, means.data_ptr(), torch.get_num_threads())
    return means


def _arrays(tensors: Sequence[Tensor]) -> tuple[bytes, bytes, bytes]:
    """Return addresses, sizes, and which are narrow."""
    count = len(tensors)
    return (
        struct.pack(f"={count}Q", *map(Tensor.data_ptr, tensors)),
        struct.pack(f"={count}q", *map(Tensor.numel, tensors)),
        bytes([tensor.dtype is NARROW for tensor in tensors]),
    )


class Plan(plan.Plan):
    """Parameters that are updated in one call."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, State],
        work: list[Work],
        rule: Rule,
        precision: Precision,
        *,
        complete: bool,
    ) -> None:
        super().__init__(groups, state, work, rule, precision, complete=complete)
        self._packed = b"".join(self._records())

    def grad_norm(self, grads: list[Tensor]) -> Tensor:
        """Return ‖g‖₂ over these gradients, a 0-dim float32 tensor; reads them once, and writes nothing."""
        squares = _function("adamhc_square_sum")(*_arrays(grads), len(grads), torch.get_num_threads())
        return torch.tensor(math.sqrt(squares))

    def run(self, grads: list[Tensor], factor: Tensor | None, found_inf: Tensor | None = None) -> None:
        """Do one step in place; `found_inf` is 0, because the host has looked."""
        options = b"".join([self._rule.pack_options(item.group, item.group["lr"]) for item in self._work])
        pointers = struct.pack(f"={len(grads)}Q", *map(Tensor.data_ptr, grads))
        grad_factor, threads = 1.0 if factor is None else factor.item(), torch.get_num_threads()
        _function("adamhc_step")(options, self._packed, pointers, len(grads), grad_factor, threads)
        self._count_step()


_ARRAYS, _COUNT, _THREADS = [ctypes.c_char_p] * 3, ctypes.c_int64, ctypes.c_int
_ARGUMENTS: dict[str, list[Any]] = {
    "adamhc_step": [*_ARRAYS, _COUNT, ctypes.c_float, _THREADS],
    "adamhc_abs_means": [*_ARRAYS, _COUNT, ctypes.c_void_p, _THREADS],
    "adamhc_square_sum": [*_ARRAYS, _COUNT, _THREADS],
}
_RESULTS = {"adamhc_square_sum": ctypes.c_double}


@cache
def _function(name: str) -> Callable[..., Any]:
    """Return a function of the library; ctypes lets other Python threads run while it does."""
    found = library_or_reason()
    assert isinstance(found, Library), found
    function = found.functions[name]
    function.argtypes, function.restype = _ARGUMENTS[name], _RESULTS.get(name)
    return function
