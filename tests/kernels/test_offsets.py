"""Offsets and random numbers beyond 2³² elements, in every update of the CUDA back end, emulated."""

import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from widthwise.kernels import reference
from widthwise.kernels.cuda import batch as batches
from widthwise.kernels.cuda import driver
from widthwise.kernels.precision import WORD, splitmix64, widened
from widthwise.kernels.records import ADAM, RECORD, SGD

from .emulation import Emulation
from .options import OPTIONS

CHUNK, STREAM = batches.CHUNK, 9

pytestmark = pytest.mark.compiler


@pytest.mark.parametrize("kernel", driver.UPDATES)
def test_offsets_have_64_bits(kernel: str, emulation: Emulation) -> None:
    """The last chunk of a tensor with over 2³² elements, most of which are not there; its random numbers too."""
    optimizer, kept, moments = kernel.split("_")
    rule, own = (ADAM, {}) if optimizer == "adamhc" else (SGD, {"momentum": 0.8, "nesterov": True})
    group = {**OPTIONS, **own, "decay": "l2"}
    generator = torch.Generator().manual_seed(1)
    theta, grad, *ms = (torch.randn(5, generator=generator).abs() for _ in range(4))
    is_float, narrow_moments = kept == "float32", moments == "bfloat16"
    weights = theta if is_float else theta.to(torch.bfloat16)
    grad = grad if is_float else grad.to(torch.bfloat16)
    ms = [m.to(torch.bfloat16) if narrow_moments else m for m in ms[: len(rule.moments(group))]]
    exact = weights.float() if kept == "master" else weights
    expected = stepped_beyond(exact, grad, ms, group, beyond := 2**32 + CHUNK)

    def before(tensor: Tensor) -> int:
        return tensor.data_ptr() - tensor.element_size() * beyond

    step = torch.tensor(4.0)
    addresses = [0 if exact.dtype is torch.bfloat16 else before(exact), *map(before, ms)]
    addresses += [0] * (3 - len(addresses))
    addresses += [step.data_ptr(), 0, 0, 0, 0 if is_float else before(weights)]
    record = RECORD.pack(*addresses, STREAM, 0.0, beyond + 5, 0, narrow_moments)
    batch = batches.Batch(exact.device, [beyond + 5], record, 1, kernel)
    batch.send(batches.group_row(rule, group, exact.device) + struct.pack("=d", 1.0))
    emulation.capturing = True
    batch.step([grad], None, None)
    update = emulation.launches[0]
    update = replace(update, arguments=(update.arguments[0], struct.pack("=Q", before(grad))))
    assert update.blocks == beyond // CHUNK + 1
    update.run(first=update.blocks - 1)
    for actual, right in zip((exact, *ms), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-6, atol=1e-8)
    assert torch.equal(weights, exact.to(weights.dtype))


def stepped_beyond(
    exact: Tensor, grad: Tensor, moments: list[Tensor], group: dict[str, Any], start: int
) -> list[Tensor]:
    """Return what the fifth step makes of weights and moments that are elements from `start`, by the reference."""
    expected = [tensor.clone() for tensor in (exact, *moments)]
    batch = reference.Batch(
        params=[widened(expected[0])],
        grads=[widened(grad)],
        moments=[tuple(map(widened, expected[1:]))],
        steps=[5],
        lr=group["lr"],
        decay=group["decay"],
        strengths=[reference.decay_strength(group["lr"], group["weight_decay"], 1.0, group["max_lr"])],
    )
    if "momentum" in group:
        reference.update_sgd(batch, group["momentum"], nesterov=group["nesterov"])
    else:
        reference.update(batch, group["betas"], group["eps"])
    for what, (target, source) in enumerate(zip(expected, (*batch.params, *batch.moments[0]), strict=True)):
        if target.dtype is torch.bfloat16:
            _round_at(target, source, torch.arange(start, start + 5), what)
    return expected


def _round_at(target: Tensor, source: Tensor, index: Tensor, what: int) -> None:
    """Round the elements of these indices, which are over 2³², as `precision.round_stochastically_` would."""
    key = splitmix64(STREAM + 4 * 5 + what + (1 << 40))
    x = (index & WORD) ^ (key & WORD)
    x = ((x ^ (x >> 16)) * 0x7FEB352D & WORD) ^ (key >> 32)
    x = (x ^ (x >> 15)) * 0x846CA68B & WORD
    bits = (source.view(torch.int32).to(torch.int64) & WORD) + ((x ^ (x >> 16)) >> 16)
    target.copy_((bits >> 16).to(torch.int16).view(torch.bfloat16))
