"""AlphaDecay's refresh beside the training: begun at one step, ended a fixed number of steps later.

`eigvalsh` keeps the thread that calls it waiting for the device, so it is called from a thread of its own, on a
CUDA device on a stream of its own. It is given copies of the weights, in memory as many bytes as they have
themselves until it is done. Without copies the optimizer would have to wait for the last eigenvalue, which tells
whether a matrix must be looked at again in float64; Gram matrices in float64 would take as much.

What is used at a step depends on the steps alone, never on how fast the thread was.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from widthwise.kernels import AdamHC
from widthwise.proxies.parts import local
from widthwise.proxies.spectra import (
    hill_alphas,
    multipliers_of,
    of_all_workers,
    own_matrices,
    tuned_names,
)

NEXT = "next_decay_scale"
"""In a parameter's state from a checkpoint or the like until the refresh is ended: its scale from then on."""


class Refresh:
    """Scales that are being computed from the weights as they were.

    Its making and `scales` are collective where weights are sharded: each worker looks at some of them.

    Args:
        weights: parameters by name.
        fixed_aspect: see `spectra.hill_alpha`.
        options: the others of `spectra.decay_scales`.
    """

    def __init__(self, weights: Mapping[str, Tensor], fixed_aspect: bool, options: Mapping[str, Any]) -> None:
        self._weights, self._options = dict(weights), options
        self._tuned = tuned_names(weights, fixed_aspect)
        copies = _copies(self._tuned_weights())
        stream = _stream_after_this(copies)
        worker = ThreadPoolExecutor(1, thread_name_prefix="spectra")
        self._alphas = worker.submit(_alphas, copies, fixed_aspect, stream)
        worker.shutdown(wait=False)  # the thread ends with its work

    def scales(self) -> dict[Tensor, float]:
        """Wait, and return every weight's scale; an error of the thread is raised here."""
        alphas = of_all_workers(self._alphas.result(), self._tuned_weights())
        multipliers = multipliers_of(dict(zip(self._tuned, alphas, strict=True)), **self._options)
        return {weight: multipliers.get(name, 1.0) for name, weight in self._weights.items()}

    def _tuned_weights(self) -> list[Tensor]:
        return [self._weights[name] for name in self._tuned]


# An optimizer stands here from its first refresh on, with the one that is running.
_running: WeakKeyDictionary[Optimizer, Refresh | None] = WeakKeyDictionary()


def begin(weights: Mapping[str, Tensor], optimizer: AdamHC, *, fixed_aspect: bool, **options: Any) -> None:
    """Begin a refresh; a state dict that is made before it is ended waits for it, and has its scales.

    A copy of the optimizer that is made meanwhile goes on without them.
    """
    if optimizer not in _running:
        optimizer.register_state_dict_pre_hook(_keep)
        optimizer.register_load_state_dict_pre_hook(_forget)
    _running[optimizer] = Refresh(weights, fixed_aspect, options)


def end(optimizer: AdamHC) -> None:
    """Set the scales of the refresh that was begun, by this process or before the checkpoint it went on from, if any.

    Raises:
        ValueError: for weights that are no parameters of the optimizer.
    """
    refresh = _running.get(optimizer)
    scales = _taken(optimizer) if refresh is None else refresh.scales()
    if scales:
        optimizer.set_decay_scale(scales)
    if refresh is not None:
        _running[optimizer] = None


def drop(optimizer: AdamHC) -> None:
    """Forget the refresh that was begun, if any: another takes its place."""
    _taken(optimizer)
    if optimizer in _running:
        _running[optimizer] = None


def _taken(optimizer: AdamHC) -> dict[Tensor, float]:
    """Take the scales that a state dict had, out of the state."""
    found = [(param, state) for param, state in optimizer.state.items() if NEXT in state]
    return {param: state.pop(NEXT) for param, state in found}


def _keep(optimizer: Optimizer) -> None:
    refresh = _running.get(optimizer)
    if refresh is not None:
        for weight, scale in refresh.scales().items():
            optimizer.state[weight][NEXT] = scale
        _running[optimizer] = None


def _forget(optimizer: Optimizer, _: dict[str, Any]) -> None:
    """Drop what belongs to other weights than those that are being loaded."""
    _running[optimizer] = None


def _copies(weights: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return `own_matrices` in memory of their own; those that were put together of several parts have it already."""
    return {
        place: matrix.clone() if _memory(matrix) == _memory(local(weights[place])) else matrix
        for place, matrix in own_matrices(weights)
    }


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _alphas(
    copies: dict[int, Tensor], fixed_aspect: bool, stream: "torch.cuda.Stream | None"
) -> dict[int, float]:
    # The device is done with the copies when the numbers are here: their memory may be taken again then.
    with nullcontext() if stream is None else torch.cuda.stream(stream):
        alphas = hill_alphas(list(copies.values()), fixed_aspect=fixed_aspect)
    return dict(zip(copies, alphas, strict=True))


def _stream_after_this(copies: Mapping[int, Tensor]) -> "torch.cuda.Stream | None":
    """Return a stream that begins when the present one has made the copies; None where they are on no CUDA device."""
    device = next((copy.device for copy in copies.values() if copy.is_cuda), None)
    if device is None:
        return None
    stream = _prepared(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


@cache
def _prepared(device: torch.device) -> "torch.cuda.Stream":
    """Return a device's stream: one, as what it had allocated is kept for it.

    Torch loads its linear algebra at its first use, which two threads must not do at once (pytorch/pytorch#90613).
    """
    torch.linalg.eigvalsh(torch.eye(2, device=device))
    return torch.cuda.Stream(device)
