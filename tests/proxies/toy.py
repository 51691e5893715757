"""A model and an optimizer to call module-wise decay on, without a training loop."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.kernels import AdamHC


class Toy:
    """A model of three matrices in two blocks, their gradients, and an optimizer over them."""

    def __init__(self, *, seed: int = 0, device: str = "cpu", **options: Any) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 128), nn.Linear(128, 64)).to(device)
        self.optimizer = AdamHC(
            self.model.parameters(), **{"lr": 0.1, "weight_decay": 0.5, "huber_c": 1.0, **options}
        )
        self.draw()

    def draw(self, transform: Callable[[Tensor], Tensor] = lambda gradient: gradient) -> None:
        for parameter in self.model.parameters():
            parameter.grad = transform(torch.randn_like(parameter))

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def scales(self) -> list[float]:
        states = [self.optimizer.state[parameter] for parameter in self.model.parameters()]
        return [state.get("decay_scale", math.nan) for state in states]
