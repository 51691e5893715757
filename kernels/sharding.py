"""AdamHC on sharded parameters: the `DTensor`s of FSDP2, hybrid sharding (HSDP) and tensor parallelism.

An optimizer of sharded tensors is an optimizer of this worker's shards, which are plain tensors, and two kinds
of sums over the workers that hold the other parts: Σg² for clipping, and Σ|θ| of every tensor for its threshold
(AdamHD, arXiv 2511.14721, eq. 7–9). They run over the mesh dimensions that a tensor is sharded on, and not over
its replicas. Those for the thresholds start at the end of a step, and are waited for at the next one.

Every worker must do the same steps, edits and loads, as for any collective operation of torch's.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from widthwise.kernels import reference, validation

# State that is one number per tensor; all else is as large as the parameter, and sharded as it is.
SCALARS = {"step", "abs_mean", "nonfinite", "threshold_ema", "decay_scale"}

Spread = tuple[dist.ProcessGroup, ...]  # the workers that hold a tensor's parts; none for a whole one
State = dict[str, Any]
Build = Callable[[list[dict[str, Any]]], Any]  # makes an AdamHC of groups of plain tensors


def is_sharded(tensor: object) -> bool:
    """Tell whether this is a DTensor; by its attributes, because to import that class costs a second."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A parameter and this worker's part of it, `tensor`.

    Where the part is empty, `tensor` is a single zero in its place, so that the numbers in its state go
    along with the other workers'.
    """

    param: Any
    tensor: Tensor
    size: int
    address: int
    spread: Spread

    @classmethod
    def of(cls, param: Any) -> "Shard":
        """Take the present part."""
        if not is_sharded(param):
            return cls(param=param, tensor=param, size=param.numel(), address=param.data_ptr(), spread=())
        local, mesh = param.to_local(), param.device_mesh
        places = enumerate(param.placements)
        spread = tuple(mesh.get_group(dim) for dim, place in places if not place.is_replicate())
        tensor = local if local.numel() else _stand_in(local)
        return cls(param=param, tensor=tensor, size=local.numel(), address=local.data_ptr(), spread=spread)

    def is_present(self) -> bool:
        """Tell whether the parameter still has its part at the same place."""
        local = self.param.to_local() if is_sharded(self.param) else self.param
        return bool(local.data_ptr() == self.address and local.numel() == self.size)

    def take_gradient(self) -> None:
        """Give the part its part of the gradient."""
        grad = self.param.grad
        if grad is None or self.tensor is self.param:
            self.tensor.grad = grad
        else:
            if grad.placements != self.param.placements:
                grad = grad.redistribute(placements=self.param.placements)
            self.tensor.grad = self.taken(grad)

    def drop_gradient(self) -> None:
        """Let the parameter's gradient be freed."""
        if self.tensor is not self.param:
            self.tensor.grad = None

    def taken(self, value: Any) -> Tensor:
        """Return this worker's part of a DTensor that is sharded as the parameter."""
        local: Tensor = value.to_local()
        return local if self.size else _stand_in(local)

    def given(self, value: Tensor) -> Tensor:
        """Return the DTensor of which `value`, of the part's shape, is this worker's part; shares memory."""
        if self.tensor is self.param:
            return value
        from torch.distributed.tensor import DTensor

        if not self.size:
            value = value.new_empty(self.param.to_local().shape)
        return DTensor.from_local(
            value,
            self.param.device_mesh,
            self.param.placements,
            run_check=False,
            shape=self.param.shape,
            stride=self.param.stride(),
        )


class Shards:
    """One worker's parts of the parameters of an optimizer, `outer`, and an optimizer of them."""

    def __init__(self, outer: Any, build: Build) -> None:
        self._outer = outer
        shards = [[Shard.of(param) for param in group["params"]] for group in outer.param_groups]
        self._shards = list(chain.from_iterable(shards))
        self._inner = build(
            [
                {**group, "params": [shard.tensor for shard in own]}
                for group, own in zip(outer.param_groups, shards, strict=True)
            ]
        )
        self._given: dict[tuple[int, str], Tensor] = {}
        for shard in self._shards:
            self._inner.state[shard.tensor].update(_adopted(shard, outer.state.get(shard.param, {})))
        self._means = [_Means(self._inner.state, own) for own in self._huber(shards)]
        self._versions: list[tuple[int, int]] = []  # of the weights whose means are known

    def fits(self) -> bool:
        """Tell whether these are the outer optimizer's parameters, at their present places."""
        params = [param for group in self._outer.param_groups for param in group["params"]]
        return len(params) == len(self._shards) and all(
            param is shard.param and shard.is_present()
            for param, shard in zip(params, self._shards, strict=True)
        )

    def step(self, clip_norm: float | None) -> Tensor | None:
        """Do one step; return the norm of all (unscaled) gradients, 0-dim, where `clip_norm` is given."""
        try:
            self._follow()
            norm = self._clip(clip_norm)
            self._settle_means()
            self._inner.step()
            for means in self._means:
                means.begin()
            self._versions = self._present_versions()
        finally:
            for shard in self._shards:
                shard.drop_gradient()
        self._publish()
        return norm

    def settle(self) -> None:
        """Wait for the sums: then the outer optimizer's state is complete."""
        for means in self._means:
            means.end()
        self._publish()

    def greatest(self, flag: Tensor) -> Tensor:
        """Return the greatest `flag` of all workers, which may be local to each."""
        flag = flag.clone()
        for group in dict.fromkeys(chain.from_iterable(shard.spread for shard in self._shards)):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=group)
        return flag

    def _follow(self) -> None:
        """Take over what changes from step to step: options, gradients, decay scales."""
        for own, theirs in zip(self._inner.param_groups, self._outer.param_groups, strict=True):
            own.update({name: value for name, value in theirs.items() if name != "params"})
        for shard in self._shards:
            shard.take_gradient()
            theirs = self._outer.state.get(shard.param, {})
            if "decay_scale" in theirs:
                self._inner.state[shard.tensor]["decay_scale"] = theirs["decay_scale"]

    def _clip(self, clip_norm: float | None) -> Tensor | None:
        """Have the inner optimizer unscale the gradients, and clip them by the norm over whole tensors."""
        scale: Tensor | None = getattr(self._outer, "grad_scale", None)
        self._inner.grad_scale = scale
        if clip_norm is None:
            return None
        norm = self._norm()
        norm = norm if scale is None else norm / scale.to(norm)
        divisor = reference.clip_factor(norm, clip_norm).double().reciprocal()
        self._inner.grad_scale = divisor if scale is None else divisor * scale.to(divisor)
        return norm

    def _norm(self) -> Tensor:
        """Return ‖g‖₂ over all whole tensors, 0-dim float32."""
        grads: dict[Spread, list[Tensor]] = {}
        for shard in self._shards:
            if shard.tensor.grad is not None:
                # Also where the part is empty: its stand-in's gradient is zero.
                grads.setdefault(shard.spread, []).append(shard.tensor.grad)
        sums = [_Sum(_square_sum(own), spread) for spread, own in grads.items()]
        if not sums:
            return torch.zeros(())
        return torch.stack([own.wait() for own in sums]).sum().sqrt().float()

    def _settle_means(self) -> None:
        """See to it that the inner optimizer has the means of the weights as they are, over whole tensors."""
        for means in self._means:
            means.end()
        known = all(means.is_known() for means in self._means)
        if not known or self._versions != self._present_versions():
            for means in self._means:
                means.measure()
                means.end()
        self._inner.trust([shard.tensor for means in self._means for shard in means.shards])

    def _huber(self, shards: list[list[Shard]]) -> list[list[Shard]]:
        """Return the parameters with a threshold, those together that are spread and stored alike."""
        alike: dict[tuple[Spread, torch.dtype], list[Shard]] = {}
        for group, own in zip(self._outer.param_groups, shards, strict=True):
            for shard in own:
                if group["decay"] in validation.HUBER and shard.spread and shard.param.numel():
                    alike.setdefault((shard.spread, shard.tensor.dtype), []).append(shard)
        return list(alike.values())

    def _publish(self) -> None:
        """Put the parts' state into the outer optimizer's: numbers as they are, the rest as DTensors."""
        for index, shard in enumerate(self._shards):
            own: State = self._inner.state[shard.tensor]
            for name, value in own.items() if "step" in own else ():
                if name in SCALARS:
                    self._outer.state[shard.param][name] = value
                elif self._given.get((index, name)) is not value:
                    self._outer.state[shard.param][name] = shard.given(value)
                    self._given[index, name] = value

    def _present_versions(self) -> list[tuple[int, int]]:
        # An edit shows in the version of that tensor through which it was made.
        shards = chain.from_iterable(means.shards for means in self._means)
        return [(shard.param._version, shard.tensor._version) for shard in shards]


class _Means:
    """The means of |θ| of tensors with thresholds, of one dtype and spread over the same workers."""

    def __init__(self, states: Any, shards: list[Shard]) -> None:
        self.shards, self._states = shards, states
        device = shards[0].tensor.device
        self._sizes = torch.tensor([shard.size for shard in shards], dtype=torch.float64, device=device)
        sizes = [shard.param.numel() for shard in shards]
        self._whole_sizes = torch.tensor(sizes, dtype=torch.float64, device=device)
        self._last = self._numbers("abs_mean")
        self._sum: _Sum | None = None

    def is_known(self) -> bool:
        """Tell whether every tensor with a gradient has its mean."""
        return all(
            shard.param.grad is None or "abs_mean" in self._states[shard.tensor] for shard in self.shards
        )

    def measure(self) -> None:
        """Start from the weights."""
        means = [reference.abs_means([shard.tensor]) for shard in self.shards]
        for shard in self.shards:
            if shard.param.grad is not None:
                for name in ("abs_mean", "nonfinite"):
                    self._states[shard.tensor].setdefault(name, shard.tensor.new_zeros(()))
        self._start(torch.cat([mean.double() for mean in means]))

    def begin(self) -> None:
        """Start from what the inner optimizer has left in the states: the means of this worker's parts."""
        self._start(self._numbers("abs_mean").where(self._numbers("nonfinite") == 0, torch.nan))

    def end(self) -> None:
        """Wait, where anything was started, and put the means of the whole tensors into the states."""
        if self._sum is None:
            return
        means, nonfinite = reference.hold(self._sum.wait() / self._whole_sizes, self._last)
        self._last, self._sum = means, None
        # Only of those that had a gradient yet; in place, as back ends keep addresses.
        states = [self._states[shard.tensor] for shard in self.shards]
        for name, values in (("abs_mean", means), ("nonfinite", nonfinite)):
            known = [index for index, state in enumerate(states) if name in state]
            if known:
                present = values.unbind()
                torch._foreach_copy_([states[i][name] for i in known], [present[i] for i in known])

    def _start(self, means: Tensor) -> None:
        # An empty part's stand-in counts for nothing, whatever its mean.
        self._sum = _Sum(torch.where(self._sizes > 0, means * self._sizes, 0.0), self.shards[0].spread)

    def _numbers(self, name: str) -> Tensor:
        zero = self.shards[0].tensor.new_zeros(())
        states = [self._states[shard.tensor] for shard in self.shards]
        return torch.stack([state.get(name, zero) for state in states]).double()


class _Sum:
    """A sum over all workers of some process groups; with several, the later ones begin in `wait`."""

    def __init__(self, values: Tensor, spread: Spread) -> None:
        self._values, self._later = values, spread[1:]
        self._work = dist.all_reduce(values, group=spread[0], async_op=True) if spread else None

    def wait(self) -> Tensor:
        if self._work is not None:
            self._work.wait()
        for group in self._later:
            dist.all_reduce(self._values, group=group)
        return self._values


def _stand_in(empty: Tensor) -> Tensor:
    return empty.new_zeros(1)


def _square_sum(grads: Sequence[Tensor]) -> Tensor:
    """Return Σg² over all `grads`, 0-dim float64."""
    norms = torch._foreach_norm(list(grads))
    return torch.stack([norm.double() for norm in norms]).square().sum()


def _adopted(shard: Shard, state: State) -> Iterable[tuple[str, Any]]:
    """Yield a parameter's state as that of its part."""
    for name, value in state.items():
        if name not in SCALARS and not isinstance(value, Tensor):
            continue  # no business of a step's: it stays with the outer optimizer
        if name in SCALARS or shard.tensor is shard.param:
            yield name, value
        elif is_sharded(value) and value.placements == shard.param.placements:
            yield name, shard.taken(value)
        else:
            found = getattr(value, "placements", "a whole tensor")
            rule = f"must be sharded as its parameter, {shard.param.placements}"
            raise ValueError(f"state: {name} {rule}, got {found}")
