"""One run of a GPT as plain data: what a sweep's trial and a target's worker have in common."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import geometric_mean
from typing import Any

import torch
from torch import nn

from widthwise.kernels import AdamHC
from widthwise.proxies.building import OwnModel
from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters, Kind, KindSettings
from widthwise.proxies.coordinates import OUTPUT, STEPS, Coordinates
from widthwise.proxies.data import Tokens, open_tokens
from widthwise.proxies.model import GPT
from widthwise.proxies.module_decay import ModuleDecay
from widthwise.proxies.observing import observed_tokens
from widthwise.proxies.outcome import Metrics, RunOptions, TrainResult
from widthwise.proxies.parallel import require_whole, spread, unwrapped
from widthwise.proxies.shapes import parameter_table
from widthwise.proxies.table import parameter_groups
from widthwise.proxies.training import train
from widthwise.proxies.validation import Record

# measured (docs/results/transfer/coordinates.md): with these, three widths and seeds give intervals of about ±0.1.
STARTS, WARMUP_STEPS = 4, 50


class RunSpec(Record):
    """Everything that decides a run's outcome but its seed; it travels to a worker as JSON.

    Attributes:
        model: the GPT.
        base_width: the width at which its multipliers are 1.
        horizon: length and schedule.
        hyperparameters: the optimizer's settings at the base width.
        settings: peak learning rate, weight decay and ε per parameter kind, at the model's width.
        data: source of the tokens.
        module_decay: how λ is shared out among modules; None is evenly.
        own: a model in the GPT's place, with its own settings; of `model`, width, context and vocabulary hold.
    """

    model: GPTConfig
    base_width: int
    horizon: Horizon
    hyperparameters: Hyperparameters
    settings: dict[Kind, KindSettings]
    data: str
    module_decay: ModuleDecay | None = None
    own: OwnModel | None = None


def base_settings(hyperparameters: Hyperparameters) -> dict[Kind, KindSettings]:
    """Return the settings at the base width: one η for all, λ on matrices alone (arXiv 2510.15262)."""
    plain = KindSettings(lr=hyperparameters.lr, weight_decay=0.0, eps=hyperparameters.eps)
    decayed = plain.model_copy(update={"weight_decay": hyperparameters.weight_decay})
    return {"matrix": decayed, "embedding": plain, "readout": plain, "gain": plain, "bias": plain}


def run(
    spec: RunSpec,
    options: RunOptions,
    on_metrics: Callable[[Metrics], object] | None = None,
    *,
    on_resumed: Callable[[Metrics], object] | None = None,
    on_step: Callable[[], object] | None = None,
) -> TrainResult:
    """Build the model and its optimizer and train; `options.seed` decides initialisation and batches.

    With several workers the process group must exist.

    Args:
        spec: what is trained.
        options: how.
        on_metrics: as of `train`.
        on_resumed: as of `train`.
        on_step: called before each optimizer step, on every worker.
    """

    def before_step(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if on_step is not None:
            on_step()
        if spec.module_decay is not None:
            spec.module_decay(step, model, optimizer)

    return train(
        *_built(spec, options),
        opened(spec.data, spec.model.vocab_size),
        spec.horizon,
        context=spec.model.context,
        options=options,
        on_metrics=on_metrics,
        on_resumed=on_resumed,
        before_step=before_step,
    )


def coordinate_deltas(spec: RunSpec, options: RunOptions) -> dict[str, list[float]] | None:
    """Return how far each layer's output moves in the first steps of a run, as `Coordinates.deltas`.

    The steps are taken by themselves, from several starts, of which the geometric mean is returned; None where one
    diverged. Without weight decay, because rules differ in how ηλ depends on the width, and so does what decay
    changes, soundly; and with a long warm-up, because a network that jumps says little of its parametrisation.

    Args:
        spec: what is trained; how its decay is shared out does not matter.
        options: device, precision and the seed, of which each start has one of its own.

    Raises:
        ConfigError: where the parameters are to be sharded.
    """
    require_whole("coordinates", options.parallel)
    if spec.horizon.steps * spec.horizon.warmup_fraction < WARMUP_STEPS:
        longer = {"tokens": 10 * WARMUP_STEPS * spec.horizon.batch_tokens, "warmup_fraction": 0.1}
        spec = spec.model_copy(update={"horizon": spec.horizon.model_copy(update=longer)})
    seeds = range(options.seed * STARTS, (options.seed + 1) * STARTS)
    starts = [_deltas(spec, replace(options, seed=seed)) for seed in seeds]
    if any(len(start[OUTPUT]) < STEPS for start in starts):
        return None
    by_step = {layer: zip(*(start[layer] for start in starts), strict=True) for layer in starts[0]}
    return {
        layer: [geometric_mean(changes) if all(changes) else 0.0 for changes in steps]
        for layer, steps in by_step.items()
    }


def _deltas(spec: RunSpec, options: RunOptions) -> dict[str, list[float]]:
    """Return `Coordinates.deltas` of one start."""
    tokens, context = opened(spec.data, spec.model.vocab_size), spec.model.context
    batch_size = spec.horizon.sequences(context)
    inputs = observed_tokens(tokens, batch_size=batch_size, context=context, device=options.device)
    model, optimizer = _built(spec, options)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    coordinates = Coordinates(unwrapped(model), inputs)

    def look(metrics: Metrics) -> bool:
        coordinates.after_step()
        return metrics.step >= STEPS

    # Looked at after each step, and nothing kept.
    brief = RunOptions(
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        rank=options.rank,
        world_size=options.world_size,
        evaluations=spec.horizon.steps,
        validation_batches=1,
    )
    train(model, optimizer, tokens, spec.horizon, context=context, options=brief, on_metrics=look)
    return coordinates.deltas


def _built(spec: RunSpec, options: RunOptions) -> tuple[nn.Module, AdamHC]:
    """Return the model, spread over its devices, and its optimizer."""
    model, groups = _own(spec, spec.own, options) if spec.own else _gpt(spec, options)
    return model, AdamHC(groups, clip_norm=spec.hyperparameters.clip_norm)


def _gpt(spec: RunSpec, options: RunOptions) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return the GPT, spread over its devices, and its optimizer's groups."""
    model = spread(GPT(spec.model, seed=options.seed), options)
    table = parameter_table(
        lambda width: GPT(spec.model.model_copy(update={"width": width})), spec.model.width, spec.base_width
    )
    return model, parameter_groups(
        model, table, lambda entry: spec.settings[entry.kind], spec.hyperparameters
    )


def _own(spec: RunSpec, own: OwnModel, options: RunOptions) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return the user's model, spread over its devices, and its optimizer's groups."""
    model = spread(own.module(spec.model.width, options.seed), options)
    table = own.table(spec.model.width, spec.base_width)
    return model, parameter_groups(model, table, own.settings, spec.hyperparameters)


def device_options() -> dict[str, Any]:
    """Return the device of this process and the precision that suits it, as `RunOptions` takes them."""
    if torch.cuda.is_available():
        return {"device": "cuda", "precision": "bf16"}
    return {"device": "cpu", "precision": "fp32"}


@cache
def opened(source: str, vocab_size: int) -> Tokens:
    """Open the data once per process: a sweep's worker runs many trials."""
    return open_tokens(source, vocab_size=vocab_size)
