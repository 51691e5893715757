"""A plan: what a fast back end keeps from one step to the next. Here are its books; a back end adds the step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter, is_, is_not
from typing import Any

import torch
from torch import Tensor

from widthwise.kernels import validation
from widthwise.kernels.precision import Precision, State
from widthwise.kernels.records import Group, Names, Rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Parameters of one group that fit, with their states, which have all that the group's options need."""

    group: Group
    params: list[Tensor]
    states: list[State]


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
        rule: Rule,
        precision: Precision,
        *,
        complete: bool,
    ) -> None:
        self._groups, self._state, self._rule, self._complete = groups, state, rule, complete
        self._work = [item for item in work if item.params]
        self._params = [param for item in self._work for param in item.params]
        self._huber = [item.group["decay"] in validation.HUBER for item in self._work for _ in item.params]
        self._idle = [param for group in groups for param in group["params"] if param.grad is None]
        for item in self._work:
            for param, own in zip(item.params, item.states, strict=True):
                _settle(param, own, rule, item.group, precision.moment_dtype(param))
        self._names = self._present_names()
        self._objects = self._present_objects()
        # Held, because their memory must not become another's.
        held = list(chain.from_iterable(map(self._tensors_of, self._work)))
        numbers = [tensor for tensor in held if tensor.dim() == 0]
        self._tensors = [*self._params, *(tensor for tensor in held if tensor.dim() > 0)]
        # Where numbers are is not looked at again, which would take as long as all else: nobody gives them other memory
        # by `.data =`, and where somebody does, the step goes on with what they had.
        self._numbers = [*numbers, *map(Tensor.untyped_storage, numbers)]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._sizes = list(map(Tensor.numel, self._params))
        self._dtypes, self._on_cpu = list(map(_dtype, self._params)), list(map(_is_cpu, self._params))
        ordinals = enumerate(chain.from_iterable(group["params"] for group in groups))
        streams = {param: precision.stream(ordinal) for ordinal, param in ordinals}
        self._streams = [streams[param] for param in self._params]
        self._grads: list[Tensor] = list(map(_grad, self._params))
        self._versions, self._steps = list(map(_version, self._params)), 0

    def grad_norm(self, grads: list[Tensor]) -> Tensor:
        """Return ‖g‖₂ over these gradients, 0-dim, at least in float32; writes nothing."""
        raise NotImplementedError

    def run(self, grads: list[Tensor], factor: Tensor | None, found_inf: Tensor | None = None) -> None:
        """Do one step in place: parameters, moments, step counts, and what the thresholds need.

        Gradients are multiplied by `factor`; a `found_inf` other than 0 skips the step.
        """
        raise NotImplementedError

    def holds(self, groups: list[dict[str, Any]], state: Mapping[Tensor, State]) -> bool:
        """Tell whether nothing has changed but gradients and the numbers in the groups."""
        if not self._complete or groups is not self._groups or state is not self._state:
            return False
        objects, params = self._present_objects(), self._params
        self._grads = list(map(_grad, params))
        return (
            len(objects) == len(self._objects)
            and all(map(is_, objects, self._objects))
            and self._names == self._present_names()
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
        if (
            list(map(_dtype, grads)) == self._dtypes
            and list(map(_is_cpu, grads)) == self._on_cpu
            and all(map(Tensor.is_contiguous, grads))  # a sparse one never is
            and list(map(Tensor.numel, grads)) == self._sizes
        ):
            return grads
        for param, grad in zip(self._params, grads, strict=True):
            validation.check_gradient(param)
            if grad.shape != param.shape:
                shapes = f"{tuple(param.shape)}, got {tuple(grad.shape)}"
                raise ValueError(f"gradient: must have the shape of its parameter, {shapes}")
        pairs = zip(grads, self._params, strict=True)
        return [grad.to(param.device, param.dtype).contiguous() for grad, param in pairs]

    def untouched(self) -> list[Tensor]:
        """Return the parameters whose means are in the states: Huber's, unchanged since the last step."""
        # Parameters come first among the addresses.
        known = zip(self._params, self._huber, self._versions, self._addresses, strict=False)
        return [
            param
            for param, huber, version, address in known
            if huber and (version + self._steps, address) == (param._version, param.data_ptr())
        ]

    def _count_step(self) -> None:
        """Tell autograd that the parameters have changed, and remember that it was this plan."""
        torch.autograd.graph.increment_version(self._params)
        self._steps += 1

    def _present_objects(self) -> list[Any]:
        """Return what must stay the same object: parameters, states, and all that is in them."""
        states = list(self._state.values())
        objects = [param for group in self._groups for param in group["params"]]
        return [*objects, *states, *chain.from_iterable(map(dict.values, states))]

    def _present_names(self) -> list[Names]:
        return [self._rule.names(item.group) for item in self._work]

    def _tensors_of(self, item: Work) -> Iterator[Tensor]:
        own = (*self._rule.names(item.group), "master")
        return (state[name] for state in item.states for name in own if name in state)

    def _records(self) -> Iterator[bytes]:
        """Pack each tensor for the kernels, with its own decay scale."""
        streams = iter(self._streams)
        for index, item in enumerate(self._work):
            for param, state in zip(item.params, item.states, strict=True):
                scale = state.get("decay_scale", 1.0)
                yield self._rule.pack_record(
                    item.group, param, state, index=index, stream=next(streams), scale=scale
                )


_grad, _version, _dtype, _is_cpu = map(attrgetter, ("grad", "_version", "dtype", "is_cpu"))


def _settle(param: Tensor, state: State, rule: Rule, group: Group, moment_dtype: torch.dtype) -> None:
    """Make the state's tensors what kernels take; a loaded state may have any device, dtype and strides."""
    moments = rule.moments(group)
    for name in rule.names(group):
        is_moment = name in moments
        dtype = moment_dtype if is_moment else torch.float32
        tensor = torch.as_tensor(state[name], dtype=dtype, device=param.device).contiguous()
        shape = param.shape if is_moment else ()
        if tensor.shape != shape:
            owner = "of its parameter, " if is_moment else ""
            raise ValueError(
                f"state: {name} must have the shape {owner}{tuple(shape)}, got {tuple(tensor.shape)}"
            )
        state[name] = tensor
