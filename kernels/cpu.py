"""The CPU back end: packs a record per tensor and does the step of all of them in one call of `csrc/cpu.cpp`.

It takes contiguous float32 parameters on CPU; `widthwise.kernels.adamhc` leaves any other to the reference.
The results are the same bits for any number of threads, compiler and processor. They differ from the
reference's by roundings: torch fuses multiply-adds where it likes, and divides by √(1−β2^t) where the library
multiplies.
"""

import ctypes
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, repeat
from operator import attrgetter, is_, is_not, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.kernels import library, validation
from widthwise.kernels.library import Library

# The structs of csrc/adamhc.h.
OPTIONS = struct.Struct("=8d3q")
POINTERS = 7
RECORD = struct.Struct(f"={POINTERS}Qd2q")

State = dict[str, Any]
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Parameters of one group that fit, with their states, which have all that the group's options need."""

    group: dict[str, Any]
    params: list[Tensor]
    states: list[State]


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
    return plain and param.is_cpu and param.dtype is torch.float32 and param.is_contiguous()


def abs_means(params: Sequence[Tensor]) -> Tensor:
    """Return mean|θ| of each tensor, shape (tensors,), summed as a step sums them."""
    count = len(params)
    means = torch.empty(count, dtype=torch.float32)
    pointers = struct.pack(f"={count}Q", *map(Tensor.data_ptr, params))
    sizes = struct.pack(f"={count}q", *map(Tensor.numel, params))
    _function("adamhc_abs_means")(pointers, sizes, count, means.data_ptr(), torch.get_num_threads())
    return means


class Plan:
    """Parameters that are updated in one call, with all that stays the same from one step to the next.

    A plan `holds` while that is so, which costs far less to find out than a new plan. `complete` says that
    the work is all that the groups have to do.
    """

    def __init__(
        self, groups: list[dict[str, Any]], state: Mapping[Tensor, State], work: list[Work], *, complete: bool
    ) -> None:
        self._groups, self._state, self._work, self._complete = groups, state, work, complete
        self._params = [param for item in work for param in item.params]
        self._huber = [item.group["decay"] in validation.HUBER for item in work for _ in item.params]
        self._idle = [param for group in groups for param in group["params"] if param.grad is None]
        for item in work:
            for param, own in zip(item.params, item.states, strict=True):
                _settle(param, own, _names(item.group))
        self._kinds = self._present_kinds()
        self._objects = self._present_objects()
        self._tensors = [*self._params, *chain.from_iterable(map(_tensors, work))]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._sizes = list(map(Tensor.numel, self._params))
        self._grads: list[Tensor] = list(map(_grad, self._params))
        self._versions, self._steps = [param._version for param in self._params], 0
        self._records = b"".join(chain.from_iterable(map(_records, range(len(work)), work)))

    def holds(self, groups: list[dict[str, Any]], state: Mapping[Tensor, State]) -> bool:
        """Tell whether nothing has changed but gradients and the numbers in the groups."""
        if not self._complete or groups is not self._groups or state is not self._state:
            return False
        objects, params = self._present_objects(), self._params
        self._grads = list(map(_grad, params))
        return (
            len(objects) == len(self._objects)
            and all(map(is_, objects, self._objects))
            and self._kinds == self._present_kinds()
            and all(map(is_, map(_grad, self._idle), repeat(None)))
            and all(map(is_not, self._grads, repeat(None)))
            # Each of the plan's steps counts one on, and counters never go back.
            and sum(map(_version, params)) == sum(self._versions) + self._steps * len(params)
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and list(map(Tensor.numel, params)) == self._sizes
            and all(map(Tensor.is_contiguous, params))
        )

    def gradients(self) -> list[Tensor]:
        """Return the gradients in the layout and dtype of the parameters, copied where theirs is another.

        Raises:
            ValueError: if one is sparse, complex or of another size.
        """
        grads, self._grads = self._grads, []  # which may be freed after the step
        single = torch.float32
        plain = [g.dtype is single and g.is_cpu and g.is_contiguous() for g in grads]  # sparse is never that
        if all(plain) and list(map(Tensor.numel, grads)) == self._sizes:
            return grads
        for param, grad in zip(self._params, grads, strict=True):
            validation.check_gradient(param)
            if grad.shape != param.shape:
                shapes = f"{tuple(param.shape)}, got {tuple(grad.shape)}"
                raise ValueError(f"gradient: must have the shape of its parameter, {shapes}")
        return [grad.to("cpu", torch.float32).contiguous() for grad in grads]

    def run(self, grads: list[Tensor], factor: Tensor | None, found_inf: Tensor | None = None) -> None:
        """Do one step in place: parameters, moments, step counts, and what the thresholds need.

        Gradients are multiplied by `factor`; `found_inf` is 0, because the host has looked.
        """
        options = b"".join([_options(item.group) for item in self._work])
        pointers = struct.pack(f"={len(grads)}Q", *map(Tensor.data_ptr, grads))
        grad_factor, threads = 1.0 if factor is None else factor.item(), torch.get_num_threads()
        _function("adamhc_step")(options, self._records, pointers, len(grads), grad_factor, threads)
        torch.autograd.graph.increment_version(self._params)
        self._steps += 1

    def untouched(self) -> list[Tensor]:
        """Return the parameters whose means are in the states: Huber's, unchanged since the last step."""
        return [
            param
            for param, huber, version, address in zip(
                self._params, self._huber, self._versions, self._addresses, strict=False
            )
            if huber and (version + self._steps, address) == (param._version, param.data_ptr())
        ]

    def _present_objects(self) -> list[Any]:
        """Return what must stay the same object: parameters, states, and all that is in them."""
        states = list(self._state.values())
        objects = [param for group in self._groups for param in group["params"]]
        return [*objects, *states, *chain.from_iterable(map(dict.values, states))]

    def _present_kinds(self) -> list[tuple[str, str]]:
        """Return the options that decide which tensors a state has."""
        return [(item.group["decay"], item.group["threshold"]) for item in self._work]


_grad, _version = attrgetter("grad"), attrgetter("_version")


def _tensors(item: Work) -> Iterator[Tensor]:
    return chain.from_iterable(map(_getter(item.group), item.states))


def _getter(group: dict[str, Any]) -> Callable[[State], tuple[Tensor, ...]]:
    return itemgetter(*_names(group))


def _names(group: dict[str, Any]) -> tuple[str, ...]:
    if group["decay"] not in validation.HUBER:
        return (*MOMENTS, "step")
    average = ("threshold_ema",) if group["threshold"] == "ema" else ()
    return (*MOMENTS, "step", "abs_mean", "nonfinite", *average)


def _settle(param: Tensor, state: dict[str, Any], names: Iterable[str]) -> None:
    """Make the state's tensors what the library takes; a loaded state may have any dtype and strides."""
    for name in names:
        tensor = torch.as_tensor(state[name], dtype=torch.float32, device="cpu").contiguous()
        shape = param.shape if name in MOMENTS else ()
        if tensor.shape != shape:
            owner = "of its parameter, " if name in MOMENTS else ""
            raise ValueError(
                f"state: {name} must have the shape {owner}{tuple(shape)}, got {tuple(tensor.shape)}"
            )
        state[name] = tensor


def _options(group: dict[str, Any]) -> bytes:
    huber = group["decay"] in validation.HUBER
    return OPTIONS.pack(
        group["lr"],
        group["max_lr"],
        *group["betas"],
        group["eps"],
        group["weight_decay"],
        group["huber_c"] if huber else 0.0,
        group["threshold_beta"],
        validation.DECAYS.index(group["decay"]),
        group["corrected"],
        group["threshold"] == "ema",
    )


def _records(index: int, item: Work) -> Iterator[bytes]:
    columns = [item.params, *zip(*map(_getter(item.group), item.states), strict=True)]
    pointers = [map(Tensor.data_ptr, column) for column in columns]
    absent = [repeat(0)] * (POINTERS - len(columns))
    scales = [state.get("decay_scale", 1.0) for state in item.states]
    return map(RECORD.pack, *pointers, *absent, scales, map(Tensor.numel, item.params), repeat(index))


_ARGUMENTS: dict[str, list[Any]] = {
    "adamhc_step": [ctypes.c_char_p] * 3 + [ctypes.c_int64, ctypes.c_float, ctypes.c_int],
    "adamhc_abs_means": [ctypes.c_char_p] * 2 + [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int],
}


@cache
def _function(name: str) -> Callable[..., None]:
    """Return a function of the library; ctypes lets other Python threads run while it does."""
    found = library_or_reason()
    assert isinstance(found, Library), found
    function = found.functions[name]
    function.argtypes, function.restype = _ARGUMENTS[name], None
    return function
