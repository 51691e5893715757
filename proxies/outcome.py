"""What a run is told, and what comes of it: plain records that import nothing heavy."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from widthwise.proxies.config import Kind
from widthwise.proxies.storage import Place

Status = Literal["completed", "stopped", "diverged"]

SAMPLED_STEPS = 8
"""Steps before an evaluation of whose updates and gradients the diagnostics are means."""
SPECTRUM_SHARES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of a matrix's singular values, the largest first, at which its spectrum is recorded."""


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
        keep: where given, `checkpoint` is a folder, which may be a `RemotePath`, that holds this many sharded
            checkpoints.
        checkpoint_every: steps between checkpoints, besides one at every evaluation.
        rank: this worker's place among `world_size`.
        world_size: workers that share every batch; `widthwise.proxies.parallel.spread` wraps the model.
        parallel: ``ddp`` has the whole model on every worker, ``fsdp`` (FSDP2) a part of it.
        shards: workers that hold one sharded copy of the model together; None is all of them. With fewer,
            the copies are replicas of each other (hybrid sharding).
        accumulate: passes forward and backward for each worker's share of a batch; the same on every worker.
        recompute: whether the layers' activations are computed again in the backward pass, which saves
            their memory.
        diagnostics: whether every evaluation measures `Diagnostics`; needs `AdamHC` over groups that
            `parameter_groups` made.
        abort_on: what ends a run as diverged: a loss far above its start, or only one that is not finite.
        pulse: file, or URI, in which the first worker says every few seconds how far the run is; None says nothing.
    """

    seed: int = 0
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    evaluations: int = 10
    validation_batches: int = 8
    checkpoint: Place | None = None
    keep: int | None = None
    checkpoint_every: int | None = None
    rank: int = 0
    world_size: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    shards: int | None = None
    accumulate: int = 1
    recompute: bool = False
    diagnostics: bool = False
    abort_on: Literal["divergence", "nan"] = "divergence"
    pulse: str | None = None


@dataclass(frozen=True, kw_only=True)
class ParameterDiagnostics:
    """One parameter at one evaluation; None where a quantity does not exist or is not finite.

    `widthwise.proxies.diagnostics` has the definitions and their sources. The ratios are means over the
    steps before the evaluation that were sampled, eight at most.

    Attributes:
        kind: matrix, embedding, readout, gain or bias.
        size: number of elements.
        rms: root mean square of the weights.
        rms_law: what it would be, had every gradient been noise.
        update_ratio: ‖ηu‖/‖θ‖, the step without the decay.
        update_ratio_law: what it would be, had every gradient been noise.
        gradient_to_weight: ‖g‖/‖θ‖, before clipping.
        top_singular_value: of the weight as a matrix (rows, all else); None for vectors. Exact where a side
            is short, otherwise by power iteration, from below.
        spectrum: the singular values that a share of `SPECTRUM_SHARES` of them exceeds; None where
            `top_singular_value` is None or not exact.
        gain: rms(Wx)/rms(x) on validation tokens; None where no `nn.Linear` holds the parameter.
        kappa: κ̂, the share of the weight decay that clipping leaves; None where the parameter does not decay.
    """

    kind: Kind
    size: int
    rms: float | None
    rms_law: float | None
    update_ratio: float | None
    update_ratio_law: float | None
    gradient_to_weight: float | None
    top_singular_value: float | None
    spectrum: list[float] | None
    gain: float | None
    kappa: float | None


@dataclass(frozen=True, kw_only=True)
class KindDiagnostics:
    """Means over a kind's parameters, weighted by their sizes, of those that have the quantity.

    `rms_ratio` is the mean of measured ÷ law, and so is `update_ratio_over_law`; the other fields are as in
    `ParameterDiagnostics`.
    """

    rms: float | None
    rms_ratio: float | None
    update_ratio: float | None
    update_ratio_over_law: float | None
    gradient_to_weight: float | None
    top_singular_value: float | None
    gain: float | None
    kappa: float | None


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What `RunOptions.diagnostics` measures at an evaluation, by parameter name and by kind.

    `gradient_norm` is that of the whole model, before clipping, a mean as the ratios are.
    """

    parameters: dict[str, ParameterDiagnostics]
    kinds: dict[Kind, KindDiagnostics]
    gradient_norm: float | None


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
    diagnostics: Diagnostics | None = None


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


def course(history: Sequence[Metrics]) -> list[dict[str, Any]]:
    """Return what the diagnostics said at every evaluation as plain data, by kind alone.

    ``step``, ``loss``, ``gradient_norm``, and ``kinds`` as `KindDiagnostics`.
    """
    return [
        {
            "step": one.step,
            "loss": one.loss,
            "gradient_norm": one.diagnostics.gradient_norm,
            "kinds": {kind: asdict(values) for kind, values in one.diagnostics.kinds.items()},
        }
        for one in history
        if one.diagnostics is not None
    ]


def finite(value: float | None) -> float | None:
    """Return a loss or another value as JSON can say it: None where there is none, or where the run diverged."""
    return value if value is not None and math.isfinite(value) else None
