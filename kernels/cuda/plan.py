"""The CUDA back end: the step of all tensors in two launches, with nothing that waits for the device.

Tensors that are kept in other dtypes, or with and without a master copy, take two launches more. It takes
contiguous float32 and bfloat16 parameters on CUDA devices; `widthwise.kernels.base` leaves any other to the
reference. The state's 0-dim tensors (`step`, `abs_mean`, …) are on the device, where the kernels keep them.

In a captured graph (`torch.cuda.graph`), a step reads from the device: the learning rate, which must be a tensor
there; the step count; the clip factor; `found_inf`; and the groups' other options and the decay scales, which
`Plan.refresh` brings there. So a replay follows a schedule.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.kernels import plan, reference
from widthwise.kernels.cuda import batch, driver
from widthwise.kernels.cuda.batch import CAPACITY, Batch
from widthwise.kernels.plan import Work
from widthwise.kernels.precision import NARROW, Precision, State
from widthwise.kernels.records import Rule, has_narrow, pack_record


def fits(param: Tensor) -> bool:
    """Tell whether this back end takes the parameter."""
    plain = type(param) is nn.Parameter or type(param) is Tensor
    return (
        plain and driver.reaches(param) and param.dtype in (torch.float32, NARROW) and param.is_contiguous()
    )


def abs_means(params: Sequence[Tensor]) -> Tensor:
    """Return mean|θ| of each tensor of one device, shape (tensors,), summed as a step sums them."""
    device = params[0].device
    means = torch.full((len(params),), torch.nan, dtype=torch.float32, device=device)
    unused = torch.empty(1, dtype=torch.float32, device=device)
    for start in range(0, len(params), CAPACITY):
        some = params[start : start + CAPACITY]
        rows = [
            pack_record(param, None, (), (unused, mean, unused))
            for param, mean in zip(some, means[start:].unbind(), strict=False)
        ]
        Batch(device, list(map(Tensor.numel, some)), b"".join(rows), 0).measure()
    return means


def check_not_capturing() -> None:
    """Refuse to make states and tables while a graph is captured, which would not fill them before a replay."""
    if driver.is_capturing():
        raise ValueError("step: must be done once, with the same parameters, before a graph captures it")


class Plan(plan.Plan):
    """Parameters that are updated in two launches, or two for each device, way of keeping, and `CAPACITY` tensors.

    It holds, too, while decay scales change, so that captured graphs keep its tables.
    """

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
        self._batches = list(self._cut())

    def grad_norm(self, grads: list[Tensor]) -> Tensor:
        """Return ‖g‖₂ over these gradients, 0-dim on the device."""
        return reference.total_norm(grads)

    def run(self, grads: list[Tensor], factor: Tensor | None, found_inf: Tensor | None = None) -> None:
        """Do one step in place, unless `found_inf` is not 0 on the device.

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
        self._count_step()

    def refresh(self) -> None:
        """Bring the groups' options and the decay scales to the device, where they have changed."""
        for there, members in self._batches:
            there.send(self._values(there.device, members))

    def _cut(self) -> Iterator[tuple[Batch, list[int]]]:
        """Cut the work into batches of a device and a kernel; yield each with its tensors' places in the plan."""
        records, alike = list(self._records()), defaultdict(list)
        for place, (param, kernel) in enumerate(zip(self._params, self._kernels(), strict=True)):
            alike[param.device, kernel].append(place)
        for (device, kernel), places in alike.items():
            for start in range(0, len(places), CAPACITY):
                members = places[start : start + CAPACITY]
                sizes = [self._params[i].numel() for i in members]
                packed = b"".join(records[i] for i in members)
                yield Batch(device, sizes, packed, len(self._work), kernel), members

    def _kernels(self) -> Iterator[str]:
        """Name each tensor's update."""
        for item in self._work:
            names = self._rule.moments(item.group)
            for param, state in zip(item.params, item.states, strict=True):
                kept = ("master" if "master" in state else "bfloat16") if param.dtype is NARROW else "float32"
                moments = "bfloat16" if has_narrow([state[name] for name in names]) else "float32"
                yield f"{self._rule.name}_{kept}_{moments}"

    def _values(self, device: torch.device, members: list[int]) -> bytes:
        """Pack what may change from step to step: the groups' options and the tensors' decay scales."""
        rows = [batch.group_row(self._rule, item.group, device) for item in self._work]
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

    def _present_objects(self) -> list[Any]:
        """Leave out decay scales, which `refresh` brings to the device, and what others than the plan update."""
        params = [param for group in self._groups for param in group["params"]]
        states = [self._state.get(param, {}) for param in self._params]
        tensors = [value for own in states for value in own.values() if not isinstance(value, float)]
        return [*params, *states, *tensors]


def _scalar(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, torch.float32, non_blocking=True)
