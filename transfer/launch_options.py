"""How a target run is carried out, and which of these ways a plan allows."""

from math import ceil
from typing import Literal

from pydantic import Field

from widthwise.proxies.config import Kind, Seed
from widthwise.proxies.module_decay import AdaDecay, ModuleDecay
from widthwise.proxies.validation import ConfigError, Record
from widthwise.transfer.plan import Plan


class LaunchOptions(Record):
    """How a target run is carried out.

    Attributes:
        data: ``python``, a text file, a ``.bin`` shard or a folder of them, as every node sees it.
        seed: decides initialisation and batches.
        workers: workers that share every batch.
        min_workers: fewest workers that an elastic run goes on with, where others have left; None needs all.
        parallel: ``ddp`` has the whole model on every worker, ``fsdp`` (FSDP2) a part of it, ``hsdp`` parts on
            the workers of each node, and replicas of them across nodes.
        accumulate: passes forward and backward for each worker's share of a batch; fewer workers take more, of as
            many sequences each.
        recompute: whether activations are computed again in the backward pass, which saves their memory.
        checkpoint_every: steps between checkpoints, besides one at every evaluation.
        keep: checkpoints to keep.
        abort_on: ``divergence`` ends a run whose loss rises far above its start, ``nan`` only one whose loss is
            not finite; ``alarm`` as ``divergence``, and one that leaves its proxies' bands.
        evaluations: validation passes, evenly spaced.
        validation_batches: batches of each pass.
        compile: whether to ``torch.compile`` the model.
        diagnostics: whether every evaluation measures `Diagnostics`, for ``metrics.jsonl``.
        unwatched: whether the run is not compared with the bands in its recipe, and what they need not measured.
        peak_tflops: 10¹² floating-point operations a second that a worker's device could do, for the utilisation;
            None takes that of a known GPU.
        module_decay: how λ is shared out among modules; None is evenly.
        model: ``MODULE:FUNCTION`` that returns a model from tokens to logits of a given width, in place of the
            recipe's GPT; the module may lie in the current folder.
        overrides: kinds of its parameters by name or glob pattern, where their shapes cannot tell.
        transposed: names or glob patterns of its matrices that are kept (in, out).
    """

    data: str = "python"
    seed: Seed = 0
    workers: int = Field(1, ge=1)
    min_workers: int | None = Field(None, ge=1)
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    accumulate: int = Field(1, ge=1)
    recompute: bool = False
    checkpoint_every: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=1)
    abort_on: Literal["divergence", "nan", "alarm"] = "divergence"
    evaluations: int = Field(10, ge=1)
    validation_batches: int = Field(8, ge=1)
    compile: bool = False
    diagnostics: bool = False
    unwatched: bool = False
    peak_tflops: float | None = Field(None, gt=0)
    module_decay: ModuleDecay | None = None
    model: str | None = None
    overrides: dict[str, Kind] = Field(default_factory=dict)
    transposed: tuple[str, ...] = ()

    @property
    def fewest(self) -> int:
        """Fewest workers that the run goes on with."""
        return self.workers if self.min_workers is None else self.min_workers


def passes(accumulate: int, *, wanted: int, there: int) -> int:
    """Return the passes of a share, where `there` of the `wanted` workers are there: none is larger than planned."""
    return ceil(accumulate * wanted / there)


def require_possible(plan: Plan, options: LaunchOptions) -> int:
    """Return the sequences of a batch, where a run of `plan` can be carried out so; data are not looked at.

    Raises:
        ConfigError: all workers together, or their passes, do not share a batch evenly, or something that is an own
            model's is asked of the GPT.
    """
    for name in ("overrides", "transposed"):
        if getattr(options, name) and options.model is None:
            raise ConfigError(f"{name}: needs a model of your own")
    if isinstance(options.module_decay, AdaDecay):
        tuned = plan.recipe.hyperparameters
        options.module_decay.require(tuned.decay, tuned.threshold)
    if options.abort_on == "alarm" and (options.unwatched or options.model is not None):
        raise ConfigError("abort_on: must not be 'alarm' where the run is not watched")
    _require_range(options)
    sequences = plan.horizon.sequences(plan.model.context)
    if sequences % options.workers:
        raise ConfigError(f"workers: must divide the {sequences} sequences of a batch, got {options.workers}")
    share = sequences // options.workers
    if share % options.accumulate:
        rule = f"must divide the {share} sequences of a worker's share of a batch"
        raise ConfigError(f"accumulate: {rule}, got {options.accumulate}")
    return sequences


def _require_range(options: LaunchOptions) -> None:
    if options.fewest > options.workers:
        raise ConfigError(f"min_workers: must be <= workers {options.workers}, got {options.fewest}")
    if options.fewest < options.workers and options.parallel == "hsdp":
        raise ConfigError("workers: a range needs parallel 'ddp' or 'fsdp', got 'hsdp'")
