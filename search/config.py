"""What a sweep is: the proxy, its horizon, the space, and how many trials."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from widthwise.proxies.config import Betas, GPTConfig, Horizon, Seed, Threshold
from widthwise.proxies.schedule import decay_horizon
from widthwise.proxies.validation import Record
from widthwise.search.space import Point, SearchSpace
from widthwise.search.trackers import Tracker

if TYPE_CHECKING:
    from widthwise.proxies.data import Tokens

Sampler = Literal["tpe", "gp", "cmaes", "qmc", "grid", "random"]


class SweepConfig(Record):
    """A proxy sweep.

    Attributes:
        model: the proxy; its width is the base width.
        horizon: length and schedule of every trial.
        space: what is searched.
        data: ``python``, a text file, a ``.bin`` shard or a folder of them, the paths as every node sees them.
        trials: trials proposed by the sampler.
        finalists: best settings that are trained again with other seeds.
        seeds: seeds per finalist, the first trial's own included; 1 confirms nothing.
        seed: decides initialisation, batches and proposals.
        concurrency: trials at a time; None takes one per core, or per GPU share.
        gpus_per_trial: share of a GPU per trial; ``auto`` chooses it by the memory that one trial takes; None takes
            a whole one where the cluster has any.
        betas, eps, threshold, corrected, clip_norm: the optimizer's settings that are not searched.
        sampler: who proposes: ``tpe``, ``gp`` (a Gaussian process), ``cmaes``, ``qmc`` (quasi-random, which covers
            the space evenly), ``grid`` (a product of η, λ and forms of decay, `SearchSpace.grid`), ``random``.
        warm_start: settings that are tried before what the sampler proposes.
        patience: ends the proposals when so many in a row have not been better than the best; None never does.
        min_tokens: fewest tokens of a trial: searches the horizon too, in halvings, for the least loss and the fewest
            tokens at once (`widthwise.search.front`). No trial is stopped then. None trains all for the whole horizon.
        min_horizon: least horizon Σηλ; a proposal below it is not run. None allows any.
        prune: whether ASHA stops trials that fall behind, once three of their form of decay have completed.
        grace: share of its steps that a trial has before it can be stopped; measured, as the number of trials of
            every form of decay that are never stopped (docs/results/search/samplers.md).
        evaluations: validation passes per trial.
        validation_batches: batches per pass.
        log: experiment trackers that are told of the trials.
    """

    model: GPTConfig = GPTConfig()
    horizon: Horizon = Horizon()
    space: SearchSpace = SearchSpace()
    data: str = "python"
    trials: int = Field(32, ge=1)
    finalists: int = Field(3, ge=1)
    seeds: int = Field(3, ge=1)
    seed: Seed = 0
    concurrency: int | None = Field(None, ge=1)
    gpus_per_trial: float | Literal["auto"] | None = None
    betas: Betas = (0.9, 0.95)
    eps: float = Field(1e-8, ge=0)
    threshold: Threshold = "mean"
    corrected: bool = True
    clip_norm: float | None = Field(1.0, gt=0)
    sampler: Sampler = "tpe"
    warm_start: tuple[Point, ...] = ()
    patience: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=1)
    min_horizon: float | None = Field(None, gt=0)
    prune: bool = True
    grace: float = Field(1 / 3, gt=0, le=1)
    evaluations: int = Field(8, ge=1)
    validation_batches: int = Field(8, ge=1)
    log: tuple[Tracker, ...] = ("tensorboard",)

    @model_validator(mode="after")
    def _whole_batches(self) -> "SweepConfig":
        self.horizon.sequences(self.model.context)
        return self

    @model_validator(mode="after")
    def _no_negative_share(self) -> "SweepConfig":
        if isinstance(self.gpus_per_trial, float) and self.gpus_per_trial < 0:
            raise ValueError(f"gpus_per_trial: must be >= 0, got {self.gpus_per_trial}")
        return self

    @model_validator(mode="after")
    def _possible(self) -> "SweepConfig":
        for index, point in enumerate(self.warm_start):
            try:
                self.space.require(point)
            except ValueError as error:
                raise ValueError(f"warm_start.{index}.{error}") from None
        longest = self.decay_horizon(self.space.lr[1], self.space.weight_decay[1])
        if self.min_horizon is not None and self.min_horizon > longest:
            rule = f"must be <= {longest:.3g}, the horizon Σηλ at the space's largest η and λ"
            raise ValueError(f"min_horizon: {rule}, got {self.min_horizon:g}")
        return self

    @model_validator(mode="after")
    def _whole_grid(self) -> "SweepConfig":
        if self.sampler != "grid":
            return self
        for name in ("warm_start", "min_horizon"):
            if getattr(self, name):
                raise ValueError(f"{name}: must not be given with sampler = 'grid', whose points are all run")
        if (size := len(self.space.grid(self.trials))) != self.trials:
            forms = len(self.space.decay)
            rule = f"must fill a grid of η, λ and {forms} forms of decay, such as {max(size, forms)}"
            raise ValueError(f"trials: {rule}, got {self.trials}")
        return self

    @model_validator(mode="after")
    def _two_objectives(self) -> "SweepConfig":
        if self.min_tokens is None:
            return self
        most, least = self.horizon.tokens // 2, self.horizon.batch_tokens
        if not least <= self.min_tokens <= most:
            rule = f"must be >= batch_tokens = {least} and <= {most}, half of horizon.tokens"
            raise ValueError(f"min_tokens: {rule}, got {self.min_tokens}")
        if self.sampler in ("cmaes", "grid"):
            raise ValueError(
                f"sampler: must be 'tpe', 'gp', 'qmc' or 'random' with min_tokens, got {self.sampler!r}"
            )
        if self.patience is not None:
            raise ValueError("patience: must not be given with min_tokens, as there is no one best trial")
        return self

    @property
    def halvings(self) -> int:
        """How many times the horizon may be halved."""
        return 0 if self.min_tokens is None else (self.horizon.tokens // self.min_tokens).bit_length() - 1

    def halved(self, times: int) -> "SweepConfig":
        """Return the sweep with its horizon halved so many times, rounded up to whole steps."""
        if not times:
            return self
        steps = -(-self.horizon.steps // 2**times)
        shorter = self.horizon.model_copy(update={"tokens": steps * self.horizon.batch_tokens})
        return self.model_copy(update={"horizon": shorter})

    def open_data(self) -> "Tokens":
        """Open the data; a ConfigError says where there are none, too few, or tokens beyond the vocabulary."""
        from widthwise.proxies.data import absolute_source, open_tokens

        context = self.model.context
        tokens = open_tokens(absolute_source(self.data), vocab_size=self.model.vocab_size)
        tokens.require(context=context, batch_size=self.horizon.sequences(context))
        return tokens

    def decay_horizon(self, lr: float, weight_decay: float) -> float:
        """Return a trial's horizon Σηλ: how many decay times it lasts."""
        return decay_horizon(self.horizon, lr, weight_decay, corrected=self.corrected)

    def is_too_short(self, lr: float, weight_decay: float) -> bool:
        """Return whether a trial's horizon Σηλ is below what is allowed."""
        return self.min_horizon is not None and self.decay_horizon(lr, weight_decay) < self.min_horizon
