"""The CUDA back end: the step of all tensors in two launches, with nothing that waits for the device.

It takes contiguous float32 parameters on CUDA devices; `widthwise.kernels.adamhc` leaves any other to the
reference. The state's 0-dim tensors (`step`, `abs_mean`, …) are on the device, where the kernels keep them.

In a captured graph (`torch.cuda.graph`), a step reads from the device: the learning rate, which must be a tensor
there; the step count; the clip factor; `found_inf`; and the groups' other options and the decay scales, which
`Plan.refresh` brings there. So a replay follows a schedule.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.kernels import reference, validation
from widthwise.kernels.cpu import Work
from widthwise.kernels.cuda import batch, driver
from widthwise.kernels.cuda.batch import CAPACITY, Batch
from widthwise.kernels.precision import DEFAULT, Precision, State

MOMENTS = ("exp_avg", "exp_avg_sq")


def fits(param: Tensor, precision: Precision = DEFAULT) -> bool:
    """Tell whether this back end takes the parameter."""
    plain = type(param) is nn.Parameter or type(param) is Tensor
    plain = plain and precision.moment_dtype(param) is torch.float32
    return plain and driver.reaches(param) and param.dtype is torch.float32 and param.is_contiguous()


def abs_means(params: Sequence[Tensor]) -> Tensor:
    """Return mean|θ| of each tensor of one device, shape (tensors,), summed as a step sums them."""
    device = params[0].device
    means = torch.full((len(params),), torch.nan, dtype=torch.float32, device=device)
    unused = torch.empty(1, dtype=torch.float32, device=device)
    for start in range(0, len(params), CAPACITY):
        some = params[start : start + CAPACITY]
        rows = [
            batch.record([param, *[unused] * 3, mean, unused], 0)
            for param, mean in zip(some, means[start:].unbind(), strict=False)
        ]
        Batch(device, list(map(Tensor.numel, some)), b"".join(rows), 0).measure()
    return means


def check_not_capturing() -> None:
    """Refuse to make states and tables while a graph is captured, which would not fill them before a replay."""
    if driver.is_capturing():
        raise ValueError("step: must be done once, with the same parameters, before a graph captures it")


class Plan:
    """Parameters that are updated together, with all that stays the same from one step to the next.

    A plan `holds` while that is so, which costs far less to find out than a new plan. `complete` says that
    the work is all that the groups have to do.

    Raises:
        ValueError: if a state has a tensor of a wrong shape.
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
        self._groups, self._state, self._complete = groups, state, complete
        self._work = [item for item in work if item.params]
        self._params = [param for item in self._work for param in item.params]
        self._huber = [item.group["decay"] in validation.HUBER for item in self._work for _ in item.params]
        self._idle = [param for group in groups for param in group["params"] if param.grad is None]
        for item in self._work:
            for param, own in zip(item.params, item.states, strict=True):
                _settle(param, own, _names(item.group))
        self._seen, self._held = self._look()
        self._versions = self._present_versions()
        self._batches = list(self._cut())

    def holds(self, groups: list[dict[str, Any]], state: Mapping[Tensor, State]) -> bool:
        """Tell whether nothing has changed but gradients, decay scales and the numbers in the groups."""
        try:
            return (
                self._complete
                and groups is self._groups
                and state is self._state
                and all([param.grad is None for param in self._idle])
                and not any([param.grad is None for param in self._params])
                and self._versions == self._present_versions()
                and self._seen == self._look()[0]
            )
        except (KeyError, TypeError):  # a state lacks a tensor, or its group got another kind of decay
            return False

    def gradients(self) -> list[Tensor]:
        """Return the gradients in the layout and dtype of the parameters, copied where theirs is another.

        Raises:
            ValueError: if one is sparse, complex or of another size.
        """
        grads = [param.grad for param in self._params if param.grad is not None]
        plain = [g.layout is torch.strided and g.dtype is torch.float32 and g.is_contiguous() for g in grads]
        if all(plain) and list(map(Tensor.numel, grads)) == self._seen[-1]:
            return grads
        for param, grad in zip(self._params, grads, strict=True):
            validation.check_gradient(param)
            if grad.shape != param.shape:
                shapes = f"{tuple(param.shape)}, got {tuple(grad.shape)}"
                raise ValueError(f"gradient: must have the shape of its parameter, {shapes}")
        return [grad.float().contiguous() for grad in grads]

    def grad_norm(self, grads: list[Tensor]) -> Tensor:
        """Return ‖g‖₂ over these gradients, 0-dim on the device."""
        return reference.total_norm(grads)

    def run(self, grads: list[Tensor], factor: Tensor | None, found_inf: Tensor | None = None) -> None:
        """Do one step in place, unless `found_inf` is not 0 on the device: weights, moments and the state.

        Raises:
            ValueError: if a graph is being captured and an option is not on the device.
        """
        if driver.is_capturing():
            self._check_capture()
        else:
            self.refresh()
        for there, members in self._batches:
            scalars = [_scalar(tensor, there.device) for tensor in (factor, found_inf)]
            there.step([grads[i] for i in members], *scalars)
        torch.autograd.graph.increment_version(self._params)
        self._versions = self._present_versions()

    def refresh(self) -> None:
        """Bring the groups' options and the decay scales to the device, where they have changed."""
        for there, members in self._batches:
            there.send(self._values(there.device, members))

    def untouched(self) -> list[Tensor]:
        """Return the parameters whose means are in the states: Huber's, unchanged since the last step."""
        addresses = self._seen[1]  # parameters come first
        return [
            param
            for param, huber, version, address in zip(
                self._params, self._huber, self._versions, addresses, strict=False
            )
            if huber and (version, address) == (param._version, param.data_ptr())
        ]

    def _cut(self) -> Iterator[tuple[Batch, list[int]]]:
        """Cut the work into batches of a device; yield each with its tensors' places in the plan."""
        records = list(chain.from_iterable(map(_records, range(len(self._work)), self._work)))
        for device in dict.fromkeys(param.device for param in self._params):
            places = [i for i, param in enumerate(self._params) if param.device == device]
            for start in range(0, len(places), CAPACITY):
                members = places[start : start + CAPACITY]
                sizes = [self._params[i].numel() for i in members]
                packed = b"".join(records[i] for i in members)
                yield Batch(device, sizes, packed, len(self._work)), members

    def _values(self, device: torch.device, members: list[int]) -> bytes:
        """Pack what may change from step to step: the groups' options and the tensors' decay scales."""
        rows = [batch.group_row(item.group, device) for item in self._work]
        scales = [state.get("decay_scale", 1.0) for item in self._work for state in item.states]
        return b"".join(rows) + struct.pack(f"={len(members)}d", *[scales[i] for i in members])

    def _check_capture(self) -> None:
        for there, members in self._batches:
            for item in self._work:
                if not batch.is_on_device(item.group["lr"], there.device):
                    rule = f"must be a float tensor on {there.device} where a graph captures the step"
                    raise ValueError(f"lr: {rule}, so that it can change, got {item.group['lr']!r}")
            if not there.is_current(self._values(there.device, members)):
                raise ValueError("step: options have changed; call refresh() before a graph captures it")

    def _present_versions(self) -> list[int]:
        return [param._version for param in self._params]

    def _look(self) -> tuple[tuple[list[Any], ...], list[Tensor]]:
        """Return what must not change, and its tensors, to be held: their memory must not become another's."""
        tensors: list[Tensor] = list(self._params)
        for item in self._work:
            states = map(self._state.__getitem__, item.params)
            tensors += chain.from_iterable(map(itemgetter(*_names(item.group)), states))
        return (
            list(map(id, chain.from_iterable([group["params"] for group in self._groups]))),
            list(map(Tensor.data_ptr, tensors)),
            list(map(Tensor.is_contiguous, self._params)),
            list(map(Tensor.numel, self._params)),
        ), tensors


def _names(group: dict[str, Any]) -> tuple[str, ...]:
    """Name the state's tensors in the order of csrc/adamhc.h's Record."""
    if group["decay"] not in validation.HUBER:
        return (*MOMENTS, "step")
    average = ("threshold_ema",) if group["threshold"] == "ema" else ()
    return (*MOMENTS, "step", "abs_mean", "nonfinite", *average)


def _settle(param: Tensor, state: State, names: Iterable[str]) -> None:
    """Make the state's tensors what the kernels take; a loaded state may have any device, dtype and strides."""
    for name in names:
        tensor = torch.as_tensor(state[name], dtype=torch.float32, device=param.device).contiguous()
        shape = param.shape if name in MOMENTS else ()
        if tensor.shape != shape:
            owner = "of its parameter, " if name in MOMENTS else ""
            raise ValueError(
                f"state: {name} must have the shape {owner}{tuple(shape)}, got {tuple(tensor.shape)}"
            )
        state[name] = tensor


def _records(index: int, item: Work) -> Iterator[bytes]:
    names = _names(item.group)
    for param, state in zip(item.params, item.states, strict=True):
        yield batch.record([param, *map(state.__getitem__, names)], index)


def _scalar(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, torch.float32, non_blocking=True)
