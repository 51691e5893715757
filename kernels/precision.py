"""What parameters and moments are kept in, and how a bfloat16 one is rounded to without losing small changes.

A bfloat16 number has 8 bits: weights that are rounded to the nearest one lose every change below 1/512 of
themselves, such as weight decay's. Hence a float32 master copy that is rounded to the weights, or, without one,
stochastic rounding: up with the probability that is the remainder, so that the mean is right (arXiv 2010.06192).
Its random numbers are a hash of seed, parameter, step and element, `csrc/rounding.h` has the same: they do not
depend on threads, devices or back ends, and replicas stay equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]

NARROW = torch.bfloat16
WORD, LONG = (1 << 32) - 1, (1 << 64) - 1
WEIGHTS = 0  # what of a parameter is rounded; its moments are 1, 2, …


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """The options of an optimizer that concern what is kept in which dtype."""

    master_weights: bool = True
    state_dtype: torch.dtype | None = None
    rounding_seed: int = 0

    def has_master(self, param: Tensor) -> bool:
        return self.master_weights and param.dtype is NARROW

    def moment_dtype(self, param: Tensor) -> torch.dtype:
        return self.state_dtype or (torch.float32 if param.dtype is NARROW else param.dtype)

    def settle(self, param: Tensor, state: State, moments: Sequence[str]) -> None:
        """Give `state` its moments and master copy in the right dtypes; weights changed by others count."""
        dtype = self.moment_dtype(param)
        for name in moments:
            if name not in state:
                state[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            elif state[name].dtype is not dtype:
                state[name] = state[name].to(dtype)
        if not self.has_master(param):
            state.pop("master", None)
        elif "master" not in state:
            state["master"] = param.float()
        else:
            state["master"] = _followed(state["master"], param)

    def stream(self, ordinal: int) -> int:
        """Return what the random numbers of the optimizer's parameter number `ordinal` start from."""
        return splitmix64(splitmix64(self.rounding_seed & LONG) + ordinal)


def _followed(master: Tensor, param: Tensor) -> Tensor:
    """Return the master copy of weights of which others may have changed some."""
    if master.shape != param.shape:
        shapes = f"{tuple(param.shape)}, got {tuple(master.shape)}"
        raise ValueError(f"state: master must have the shape of its parameter, {shapes}")
    master = master.float()
    return torch.where(master.to(NARROW) == param, master, param.float()).contiguous()


def weights_of(param: Tensor, state: State) -> Tensor:
    """Return the weights as exactly as they are known."""
    master: Tensor | None = state.get("master")
    return param if master is None else master


def widened(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or a float32 copy of a narrow one."""
    return tensor.float() if tensor.dtype is NARROW else tensor


def round_stochastically_(target: Tensor, source: Tensor, stream: int, step: int, what: int) -> None:
    """Round `source` to the bfloat16 `target` of the same shape, in step `step`, counted from 1."""
    flat = source.detach().float().reshape(-1)
    bits = (flat.view(torch.int32).to(torch.int64) & WORD) + (_random(flat, stream, step, what) >> 16)
    rounded = (bits >> 16).to(torch.int16).view(NARROW)
    target.copy_(torch.where(flat.isfinite(), rounded, flat.to(NARROW)).view(target.shape))


def splitmix64(number: int) -> int:
    """Return a 64-bit hash of a 64-bit number (Steele, Lea and Flood 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & LONG
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & LONG
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & LONG
    return number ^ (number >> 31)


def _random(flat: Tensor, stream: int, step: int, what: int) -> Tensor:
    """Return a 32-bit number per element as int64: two rounds of a multiplicative hash of its index."""
    index = torch.arange(flat.numel(), device=flat.device)
    numbers = []
    for high, low in enumerate(index.split(1 << 32)):
        key = splitmix64((stream + 4 * step + what + (high << 40)) & LONG)
        x = (low & WORD) ^ (key & WORD)
        x = ((x ^ (x >> 16)) * 0x7FEB352D & WORD) ^ (key >> 32)
        x = (x ^ (x >> 15)) * 0x846CA68B & WORD
        numbers.append(x ^ (x >> 16))
    return torch.cat(numbers)
