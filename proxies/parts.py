"""What is known of whole tensors from the parts that the workers hold: of FSDP2's `DTensor`s, or of plain tensors.

All workers that hold parts of a tensor must ask for the same, in the same order, as for any collective operation.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from widthwise.kernels import reference
from widthwise.kernels.sharding import Shard, is_sharded


def local(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return this worker's part of a tensor, which may be empty; of a gradient, as its parameter `like` is sharded."""
    if not is_sharded(tensor):
        return tensor
    parts: Any = tensor
    if like is not None and parts.placements != cast(Any, like).placements:
        parts = parts.redistribute(placements=cast(Any, like).placements)
    return cast(Tensor, parts.to_local())


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, on every worker."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_sharded(tensor) else tensor


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """Return the tensor, sharded as `like` is, of which `part` is this worker's."""
    return Shard.of(like).given(part)


def is_by_rows(tensor: Tensor) -> bool:
    """Tell whether every part has whole rows, that is, nothing but the first dimension is sharded."""
    places = cast(Any, tensor).placements if is_sharded(tensor) else ()
    return all(place.is_replicate() or place.is_shard(0) for place in places)


@torch.no_grad()
def whole_sums(sums: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return sums over whole tensors: one small all-reduce for all that are sharded alike.

    Args:
        sums: over this worker's parts, a row for each of `tensors`.
        tensors: sharded or not.
    """
    alike: dict[tuple[dist.ProcessGroup, ...], list[int]] = {}
    for row, tensor in enumerate(tensors):
        alike.setdefault(Shard.of(tensor).spread, []).append(row)
    total = sums.clone()
    for groups, rows in alike.items():
        some = sums[rows]
        for group in groups:
            dist.all_reduce(some, group=group)
        total[rows] = some
    return total


@torch.no_grad()
def whole_abs_means(weights: Sequence[Tensor]) -> Tensor:
    """Return mean|θ| of each whole tensor, shape (tensors,); of none that is sharded, as AdamHC has it, bit for bit."""
    if not any(map(is_sharded, weights)):
        return torch.cat([reference.abs_means([weight]) for weight in weights])
    return whole_means([local(weight).abs() for weight in weights], weights)


def whole_means(parts: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Return the means, shape (tensors,), float64, over whole tensors of which `parts` have this worker's values."""
    sums = torch.stack([part.sum(dtype=torch.float64) for part in parts])
    return whole_sums(sums, tensors) / torch.tensor([tensor.numel() for tensor in tensors]).to(sums)


def share_out(count: int, tensor: Tensor) -> list[bool]:
    """Return which of `count` tasks are this worker's, of those that hold `tensor`'s parts."""
    mesh = cast(Any, tensor).device_mesh
    place = 0
    for coordinate, size in zip(mesh.get_coordinate(), mesh.shape, strict=True):
        place = place * size + coordinate
    return [task % mesh.size() == place for task in range(count)]


def summed_over_workers(values: Tensor, tensor: Tensor) -> Tensor:
    """Add up `values`, in place, over all workers that hold parts of `tensor` or copies of them."""
    mesh = cast(Any, tensor).device_mesh
    for dimension in range(mesh.ndim):
        dist.all_reduce(values, group=mesh.get_group(dimension))
    return values
