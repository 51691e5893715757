"""What the optimizers ask of gradients, and how they bring them into the shape that the reference takes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from widthwise.kernels import validation
from widthwise.kernels.precision import widened


def with_gradient(params: Iterable[Tensor]) -> list[Tensor]:
    """Pass over parameters without gradient or elements, and check the gradients of the rest."""
    present = [param for param in params if param.grad is not None and param.numel() > 0]
    for param in present:
        validation.check_gradient(param)
    return present


def alike(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gather parameters by device and dtype."""
    gathered: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        gathered.setdefault((param.device, param.dtype), []).append(param)
    return list(gathered.values())


def scaled(params: list[Tensor], factor: Tensor | None) -> list[Tensor]:
    """Return the gradients in the working dtype, multiplied by `factor`; `param.grad` stays as it is."""
    grads = [widened(param.grad.to(param.dtype)) for param in params if param.grad is not None]
    return grads if factor is None else list(torch._foreach_mul(grads, factor.to(grads[0].device)))
