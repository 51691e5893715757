"""What a sweep is: the proxy, its horizon, the space, and how many trials."""

from typing import Literal

from pydantic import Field, model_validator

from widthwise.proxies.config import Betas, GPTConfig, Horizon, Seed, Threshold
from widthwise.proxies.validation import Record
from widthwise.search.space import SearchSpace

Sampler = Literal["tpe", "gp", "cmaes", "qmc", "random"]


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
        gpus_per_trial: share of a GPU per trial; None takes a whole one where the cluster has any.
        betas, eps, threshold, corrected, clip_norm: the optimizer's settings that are not searched.
        sampler: who proposes: ``tpe``, ``gp`` (a Gaussian process), ``cmaes``, ``qmc`` (quasi-random, which covers
            the space evenly), ``random``.
        prune: whether ASHA stops trials that fall behind.
        grace: share of its steps that a trial has before it can be stopped.
        evaluations: validation passes per trial.
        validation_batches: batches per pass.
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
    gpus_per_trial: float | None = Field(None, ge=0)
    betas: Betas = (0.9, 0.95)
    eps: float = Field(1e-8, ge=0)
    threshold: Threshold = "mean"
    corrected: bool = True
    clip_norm: float | None = Field(1.0, gt=0)
    sampler: Sampler = "tpe"
    prune: bool = True
    grace: float = Field(1 / 3, gt=0, le=1)
    evaluations: int = Field(8, ge=1)
    validation_batches: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _whole_batches(self) -> "SweepConfig":
        self.horizon.sequences(self.model.context)
        return self
