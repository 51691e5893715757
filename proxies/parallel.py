"""A model on several workers: replicated (DDP) or sharded (FSDP2), and what a training loop must know of that."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.validation import ConfigError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def spread(model: nn.Module, options: RunOptions) -> nn.Module:
    """Wrap a model as `options` say, and put it on its device; the process group must exist.

    Its layers, the members of its `nn.ModuleList`s, are gathered one at a time under ``fsdp`` and
    recomputed one at a time with `options.recompute`. Every worker must pass the same weights, on CPU:
    under ``fsdp`` only this worker's part goes to the device, so that the whole model must fit into the
    host's memory, and not into the device's.

    Raises:
        ConfigError: where `options.shards` does not divide the workers.
    """
    if options.recompute:
        recompute_layers(model)
    if options.parallel == "fsdp":
        return _sharded(model, options)
    model = model.to(options.device)
    return DistributedDataParallel(model) if options.world_size > 1 else model


def require_whole(name: str, parallel: str) -> None:
    """Raise a ConfigError where `name`, which looks at whole tensors, is to run on a sharded model."""
    if parallel != "ddp":
        rule = "needs the whole model on every worker (parallel 'ddp')"
        raise ConfigError(f"{name}: {rule}, got {parallel!r}")


def require_process_group() -> None:
    """Make a process group of this process alone, where there is none."""
    if not dist.is_initialized():
        dist.init_process_group(store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)


def lost_peer(error: BaseException) -> bool:
    """Return whether an error is a collective's whose other side has died: NCCL's have a type, gloo's only a text."""
    return isinstance(error, dist.DistError) or (not isinstance(error, OSError) and "/gloo/" in str(error))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DDP; FSDP2's is the module itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def holding_back(model: nn.Module, *, hold: bool) -> AbstractContextManager[Any]:
    """Keep DDP's gradients on the worker in this pass, where more passes of the same step follow.

    FSDP2's are shared out after every pass: held back, they would be whole ones on every worker.
    """
    return model.no_sync() if hold and isinstance(model, DistributedDataParallel) else nullcontext()


def let_go(model: nn.Module) -> None:
    """Have FSDP2 free what a pass without a backward one has gathered, and put the parts back in its place."""
    if hasattr(model, "reshard"):
        cast("FSDPModule", model).reshard()


def _sharded(model: nn.Module, options: RunOptions) -> nn.Module:
    # They take a second to import.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    shards = options.shards or options.world_size
    if options.world_size % shards:
        raise ConfigError(f"shards: must divide the {options.world_size} workers, got {shards}")
    require_process_group()
    replicas = options.world_size // shards
    if replicas == 1:
        mesh = init_device_mesh(options.device, (shards,), mesh_dim_names=("shard",))
    else:
        names = ("replicate", "shard")
        mesh = init_device_mesh(options.device, (replicas, shards), mesh_dim_names=names)
    bf16 = torch.bfloat16 if options.precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=bf16, reduce_dtype=torch.float32)
    for layer in (*layers_of(model), model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return model.to(options.device)


def recompute_layers(model: nn.Module) -> None:
    """Keep only the layers' inputs for the backward pass, and compute the rest again there."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for layers in _lists(model):
        for index, layer in enumerate(layers):
            layers[index] = checkpoint_wrapper(layer)


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model's layers, the members of its `nn.ModuleList`s."""
    return (layer for layers in _lists(model) for layer in layers)


def _lists(model: nn.Module) -> list[nn.ModuleList]:
    return [module for module in model.modules() if isinstance(module, nn.ModuleList)]
