"""What kernels are told of groups and tensors: the structs of `csrc/adamhc.h`, which the compiled back ends share."""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from widthwise.kernels import validation
from widthwise.kernels.precision import NARROW

OPTIONS = struct.Struct("=8d4q")
RECORD = struct.Struct("=9Qd3q")

Group = dict[str, Any]
Names = tuple[str, ...]

_LIMITS = {"none": 0.0, "l2": math.inf}  # what huber_c comes to, by (7) of `widthwise.kernels.reference`
_SCALARS = ("step", "abs_mean", "nonfinite", "threshold_ema")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How an optimizer descends: its kernels' name, a group's moments, and Rule, β1, β2 and ε of `csrc/adamhc.h`."""

    name: str
    moments: Callable[[Group], Names]
    numbers: Callable[[Group], tuple[int, float, float, float]]

    def names(self, group: Group) -> Names:
        """Name the tensors of a state that a step of this group needs."""
        return (*self.moments(group), *_scalars(group))

    def pack_options(self, group: Group, lr: float) -> bytes:
        """Pack a group's options, with this learning rate."""
        huber = group["decay"] in validation.HUBER
        rule, *numbers = self.numbers(group)
        return OPTIONS.pack(
            lr,
            group["max_lr"],
            *numbers,
            group["weight_decay"],
            group["huber_c"] if huber else _LIMITS[group["decay"]],
            group["threshold_beta"],
            validation.DECAYS.index(group["decay"]),
            rule,
            group["corrected"],
            group["threshold"] == "ema",
        )

    def pack_record(
        self, group: Group, param: Tensor, state: Mapping[str, Any], *, index: int, stream: int, scale: float
    ) -> bytes:
        """Pack a tensor of the group number `index`: where it and its state are, and what its roundings start from."""
        moments = [state[name] for name in self.moments(group)]
        scalars = [state[name] for name in _scalars(group)]
        return pack_record(
            param, state.get("master"), moments, scalars, stream=stream, scale=scale, index=index
        )


def pack_record(
    param: Tensor,
    master: Tensor | None,
    moments: Sequence[Tensor],
    scalars: Sequence[Tensor],
    *,
    stream: int = 0,
    scale: float = 1.0,
    index: int = 0,
) -> bytes:
    """Pack a tensor: its parameter, master copy, moments, and 0-dim state in the order of csrc/adamhc.h's Record."""
    narrow = param.dtype is NARROW
    tensors = [master if narrow else param, *_padded(moments, 2), *_padded(scalars, len(_SCALARS))]
    addresses = [
        0 if tensor is None else tensor.data_ptr() for tensor in (*tensors, param if narrow else None)
    ]
    return RECORD.pack(*addresses, stream, scale, param.numel(), index, has_narrow(moments))


def has_narrow(moments: Sequence[Tensor]) -> bool:
    """Tell whether the moments are kept in bfloat16; they are alike."""
    return any(moment.dtype is NARROW for moment in moments)


def _padded(tensors: Sequence[Tensor], count: int) -> list[Tensor | None]:
    return [*tensors, *[None] * (count - len(tensors))]


def _scalars(group: Group) -> Names:
    """Name the 0-dim state that a step of this group needs, in the order of csrc/adamhc.h's Record."""
    if group["decay"] not in validation.HUBER:
        return _SCALARS[:1]
    return _SCALARS if group["threshold"] == "ema" else _SCALARS[:3]


def _adam_moments(group: Group) -> Names:
    return ("exp_avg", "exp_avg_sq")


def _adam_numbers(group: Group) -> tuple[int, float, float, float]:
    return (0, *group["betas"], group["eps"])


def _sgd_moments(group: Group) -> Names:
    return ("momentum_buffer",) if group["momentum"] != 0 else ()


def _sgd_numbers(group: Group) -> tuple[int, float, float, float]:
    return (2 if group["nesterov"] else 1, group["momentum"], 0.0, 0.0)


ADAM = Rule(name="adamhc", moments=_adam_moments, numbers=_adam_numbers)
SGD = Rule(name="sgdc", moments=_sgd_moments, numbers=_sgd_numbers)
