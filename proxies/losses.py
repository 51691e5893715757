"""The losses of a run's model: of a batch, of the validation data, and their means over the workers."""

from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from widthwise.proxies.data import Tokens
from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.parallel import let_go, unwrapped


class Losses:
    """Mean cross entropies in nats per token, as the run's options have it: device, precision, compiled, by how many.

    Args:
        model: as it is trained, perhaps wrapped for its workers.
        options: the run's.
    """

    def __init__(self, model: nn.Module, options: RunOptions) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.bare_model = unwrapped(model)
        self.train_model = _compiled(model) if options.compile else model
        # Not DDP's forward, which waits for the other workers: some have no validation batch.
        self.validation_model = _compiled(self.bare_model) if options.compile else self.bare_model

    def training(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch, x and y (batch, time) int64, 0-dim and differentiable."""
        return self._loss(self.train_model, x, y)

    @torch.no_grad()
    def validation(self, tokens: Tokens, *, batch_size: int, context: int) -> float:
        """Average over the fixed validation batches, which the workers share out."""
        self.bare_model.eval()
        total, count = torch.zeros((), device=self.device), 0
        options = self.options
        batches = tokens.validation_batches(
            options.validation_batches, batch_size=min(batch_size, 16), context=context
        )
        for index, (x, y) in enumerate(batches):
            if index % options.world_size == options.rank:
                total += self._loss(self.validation_model, x, y) * len(x)
                count += len(x)
        if options.parallel == "fsdp" and index % options.world_size < options.rank:
            self._loss(self.validation_model, x, y)  # for those who need this worker's part of the model
        let_go(self.bare_model)
        self.bare_model.train()
        return self.mean(total, count)

    def mean(self, total: Tensor, count: float) -> float:
        """Return Σtotal / Σcount over all workers."""
        total_sum, total_count = self.sums(total, count)
        return total_sum / total_count

    def sums(self, total: Tensor, count: float) -> tuple[float, float]:
        """Return Σtotal and Σcount over all workers."""
        if self.options.world_size == 1:
            return float(total), count
        pair = torch.stack(
            (total.double(), torch.tensor(float(count), dtype=torch.float64, device=total.device))
        )
        dist.all_reduce(pair)
        return float(pair[0]), float(pair[1])

    def _loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            logits = model(x)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten())


def _compiled(model: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(model))
