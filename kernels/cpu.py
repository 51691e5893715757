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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, repeat
from operator import attrgetter, is_, is_not
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.kernels import library, validation
from widthwise.kernels.library import Library
from widthwise.kernels.precision import DEFAULT, NARROW, Precision, State, weights_of

# The structs of csrc/adamhc.h, and `Precise` of csrc/cpu.cpp, which begins with a Record.
OPTIONS = struct.Struct("=8d3q")
POINTERS = 7
RECORD = struct.Struct(f"={POINTERS}Qd2q")
PRECISE = struct.Struct(f"={RECORD.size}s2Qq")

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


def fits(param: Tensor, precision: Precision = DEFAULT) -> bool:
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


class Plan:
    """Parameters that are updated in one call, with all that stays the same from one step to the next.

    A plan `holds` while that is so, which costs far less to find out than a new plan. `complete` says that
    the work is all that the groups have to do.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, State],
        work: list[Work],
        precision: Precision = DEFAULT,
        *,
        complete: bool,
    ) -> None:
        self._groups, self._state, self._work, self._complete = groups, state, work, complete
        self._params = [param for item in work for param in item.params]
        self._huber = [item.group["decay"] in validation.HUBER for item in work for _ in item.params]
        self._idle = [param for group in groups for param in group["params"] if param.grad is None]
        for item in work:
            for param, own in zip(item.params, item.states, strict=True):
                _settle(param, own, _names(item.group), precision.moment_dtype(param))
        self._kinds = self._present_kinds()
        self._objects = self._present_objects()
        self._tensors = [*self._params, *chain.from_iterable(map(_tensors, work))]
        self._dtypes = [param.dtype for param in self._params]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._sizes = list(map(Tensor.numel, self._params))
        self._grads: list[Tensor] = list(map(_grad, self._params))
        self._versions, self._steps = [param._version for param in self._params], 0
        self._records = b"".join(chain.from_iterable(self._pack(precision)))

    def _pack(self, precision: Precision) -> Iterator[Iterator[bytes]]:
        all_params = chain.from_iterable(group["params"] for group in self._groups)
        streams = {param: precision.stream(ordinal) for ordinal, param in enumerate(all_params)}
        for index, item in enumerate(self._work):
            own = [streams[param] for param in item.params]
            yield map(_record, repeat(index), repeat(item.group), item.params, item.states, own)

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
        alike = zip(grads, self._dtypes, strict=True)
        # A sparse one is never contiguous.
        plain = [grad.dtype is dtype and grad.is_cpu and grad.is_contiguous() for grad, dtype in alike]
        if all(plain) and list(map(Tensor.numel, grads)) == self._sizes:
            return grads
        for param, grad in zip(self._params, grads, strict=True):
            validation.check_gradient(param)
            if grad.shape != param.shape:
                shapes = f"{tuple(param.shape)}, got {tuple(grad.shape)}"
                raise ValueError(f"gradient: must have the shape of its parameter, {shapes}")
        return [grad.to("cpu", dtype).contiguous() for grad, dtype in zip(grads, self._dtypes, strict=True)]

    def grad_norm(self, grads: list[Tensor]) -> Tensor:
        """Return ‖g‖₂ over these gradients, a 0-dim float32 tensor; reads them once, and writes nothing."""
        squares = _function("adamhc_square_sum")(*_arrays(grads), len(grads), torch.get_num_threads())
        return torch.tensor(math.sqrt(squares))

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
    names = _names(item.group)
    return (state[name] for state in item.states for name in (*names, "master") if name in state)


def _names(group: dict[str, Any]) -> tuple[str, ...]:
    if group["decay"] not in validation.HUBER:
        return (*MOMENTS, "step")
    average = ("threshold_ema",) if group["threshold"] == "ema" else ()
    return (*MOMENTS, "step", "abs_mean", "nonfinite", *average)


def _settle(param: Tensor, state: State, names: Iterable[str], moment_dtype: torch.dtype) -> None:
    """Make the state's tensors what the library takes; a loaded state may have any dtype and strides."""
    for name in names:
        dtype = moment_dtype if name in MOMENTS else torch.float32
        tensor = torch.as_tensor(state[name], dtype=dtype, device="cpu").contiguous()
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


def _record(index: int, group: dict[str, Any], param: Tensor, state: State, stream: int) -> bytes:
    weights, names = weights_of(param, state), _names(group)
    pointers = [0 if weights.dtype is NARROW else weights.data_ptr()]
    pointers += [state[name].data_ptr() for name in names]
    absent = [0] * (POINTERS - len(pointers))
    record = RECORD.pack(*pointers, *absent, state.get("decay_scale", 1.0), param.numel(), index)
    narrow = param.data_ptr() if param.dtype is NARROW else 0
    return PRECISE.pack(record, narrow, stream, state[MOMENTS[0]].dtype is NARROW)


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
