"""What a run is told, and what comes of it: plain records that import nothing heavy."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Status = Literal["completed", "stopped", "diverged"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; nothing here changes what is learnt, but seed and precision.

    Attributes:
        seed: decides the batches.
        device: ``cpu`` or ``cuda``.
        precision: ``bf16`` runs the forward and backward pass under autocast; weights stay fp32.
        compile: whether to ``torch.compile`` the model.
        evaluations: validation passes, evenly spaced, the last at the end.
        validation_batches: batches of each pass; always the same ones.
        checkpoint: file to resume from and to write to; None keeps nothing.
        checkpoint_every: steps between checkpoints, besides one at every evaluation.
        rank: this worker's place among `world_size`.
        world_size: workers that share every batch; the model is then wrapped in DDP by the caller.
    """

    seed: int = 0
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    evaluations: int = 10
    validation_batches: int = 8
    checkpoint: Path | None = None
    checkpoint_every: int | None = None
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a run has come to at one evaluation; losses are nats per token.

    `train_loss` is the mean since the last evaluation, `seconds` and `tokens_per_second` count this
    run's whole time, validation and earlier attempts included. `flops` counts the training steps'
    floating-point operations so far; None where the model has no ``flops_per_token()``.
    """

    step: int
    tokens: int
    loss: float
    train_loss: float
    grad_norm: float | None
    lr_factor: float
    seconds: float
    tokens_per_second: float
    flops: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended; `loss` is the last validation loss, infinite where the run diverged.

    `parameters` counts the model's parameters; `flops` is as in `Metrics`, over the whole run.
    """

    status: Status
    loss: float
    steps: int
    tokens: int
    seconds: float
    parameters: int
    flops: float | None
    history: list[Metrics] = field(default_factory=list)


def finite(loss: float | None) -> float | None:
    """Return a loss as JSON can say it: None where there is none, or where the run diverged."""
    return loss if loss is not None and math.isfinite(loss) else None
