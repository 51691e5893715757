"""What a training step of a model costs, read without a device: shapes are traced, nothing is computed.

The bytes are what autograd keeps from the forward for the backward pass, each storage counted once, with
PyTorch's own kernels run one by one. Compiled or checkpointed models keep less; what a kernel takes for
itself while it runs, and the backward pass's own temporaries, come on top.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from widthwise.proxies.parallel import layers_of, recompute_layers
from widthwise.proxies.validation import ConfigError


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A training step's cost.

    Attributes:
        sizes: numbers in each parameter by name, shared ones once.
        flops_per_token: floating-point operations of a forward and a backward pass; the model's own
            ``flops_per_token()``, or three times what the forward pass was seen to do.
        layers: numbers in each layer, the members of `nn.ModuleList`s: what FSDP2 gathers at a time.
        fixed_bytes: kept for the backward pass whatever the batch: copies of the weights in bf16.
        sequence_bytes: kept for each sequence.
    """

    sizes: dict[str, int]
    flops_per_token: float
    layers: tuple[int, ...]
    fixed_bytes: int
    sequence_bytes: int

    @property
    def gathered(self) -> int:
        """Numbers that FSDP2 holds at once of a sharded model: two layers, and what is in none."""
        return self.parameters - sum(self.layers) + 2 * max(self.layers, default=0)

    @property
    def parameters(self) -> int:
        """Numbers in the model."""
        return sum(self.sizes.values())

    def activation_bytes(self, sequences: int) -> int:
        """Return what `sequences` sequences keep between the forward and the backward pass."""
        return self.fixed_bytes + sequences * self.sequence_bytes


def footprint(
    build: Callable[[], nn.Module],
    *,
    context: int,
    vocab_size: int,
    precision: Literal["fp32", "bf16"],
    recompute: bool = False,
) -> Footprint:
    """Trace one and two sequences through the model that `build` returns.

    Args:
        build: returns a model from tokens (batch, time) int64 to logits (batch, time, vocab_size); called
            where every tensor is a shape without memory.
        context: tokens per sequence.
        vocab_size: size of the logits.
        precision: ``bf16`` traces under autocast.
        recompute: whether the layers are computed again in the backward pass: their inputs are kept, and what
            one of them keeps itself, at a time.

    Raises:
        ConfigError: the model takes no tokens or returns no logits.
    """
    with FakeTensorMode():
        model = build()
        layers = tuple(sum(p.numel() for p in layer.parameters()) for layer in layers_of(model))
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        flops = _flops_per_token(model, context)

        def kept() -> list[int]:
            shape = {"context": context, "vocab_size": vocab_size}
            return [kept_bytes(model, sequences, precision=precision, **shape) for sequences in (1, 2)]

        one, two = kept()
        if recompute and layers:
            recompute_layers(model)
            one, two = (
                rest + (whole - rest) // len(layers) for whole, rest in zip((one, two), kept(), strict=True)
            )
    return Footprint(
        sizes=sizes,
        flops_per_token=flops,
        layers=layers,
        fixed_bytes=2 * one - two,
        sequence_bytes=two - one,
    )


def kept_bytes(
    model: nn.Module, sequences: int, *, context: int, vocab_size: int, precision: Literal["fp32", "bf16"]
) -> int:
    """Return the bytes that a batch's loss keeps for its backward pass, without the model's own tensors."""
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            # The storage itself, so that it lives on: another might get its address.
            kept[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    def keep_inputs(_: nn.Module, inputs: tuple[object, ...]) -> None:
        for one in inputs:
            if isinstance(one, Tensor):
                keep(one)

    tokens = torch.zeros(sequences, context, dtype=torch.int64)
    with saved_tensors_hooks(keep, lambda tensor: tensor), ExitStack() as hooks:
        for layer in layers_of(model):
            if isinstance(layer, CheckpointWrapper):
                # What it keeps, autograd is not asked to keep.
                hooks.enter_context(layer.register_forward_pre_hook(keep_inputs))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tokens)
        require_logits(logits, (sequences, context, vocab_size))
        F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
    return sum(storage.nbytes() for storage in kept.values())


def require_logits(found: object, shape: tuple[int, int, int]) -> None:
    """Raise a ConfigError unless `found` is a tensor of logits of this shape."""
    rule = f"must map tokens {shape[:2]} to logits {shape}"
    if not isinstance(found, Tensor):
        raise ConfigError(f"model: {rule}, got {type(found).__name__}")
    if tuple(found.shape) != shape:
        raise ConfigError(f"model: {rule}, got {tuple(found.shape)}")


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _flops_per_token(model: nn.Module, context: int) -> float:
    own = getattr(model, "flops_per_token", None)
    if own is not None:
        return float(own())
    # The counter does not know the CPU's fused attention; the plain one is made of products that it counts.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, context, dtype=torch.int64))
    forward: int = counter.get_total_flops()
    return 3.0 * forward / context
