"""What a plan says about its weights before it is trained: their RMS and their updates, step by step.

The laws are those of `widthwise.proxies.diagnostics`, begun at the plan's own initialisation and followed through
its schedule: V_t = (1-τ)²·V_{t-1} + (1-τ/2)·η_t², rms √V_t, update ratio η_t·√((1-β1)/(1+β1))/√V_t
(arXiv 2305.17212). Gradients that have a direction leave them, on a proxy as on a target: what is carried from one
width to another is measured ÷ law.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, sqrt

import numpy as np

from widthwise.proxies.config import Horizon, Kind
from widthwise.proxies.noise_laws import (
    Array,
    advance_variance,
    advance_variance_by_steps,
    update_ratio_law,
)
from widthwise.proxies.outcome import SAMPLED_STEPS
from widthwise.proxies.schedule import schedule
from widthwise.transfer.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A kind's laws at one evaluation; `update_ratio` is a mean over the steps that the diagnostics sample."""

    rms: float
    update_ratio: float


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a kind's laws depend on.

    Attributes:
        variance: mean square of the weights before the first step.
        lr: peak learning rate η.
        weight_decay: λ, times κ̂ where the decay clips.
        beta1: Adam's.
        corrected: whether the decay falls with η twice (AdamC, arXiv 2506.02285).
        horizon: schedule and steps.
    """

    variance: float
    lr: float
    weight_decay: float
    beta1: float
    corrected: bool
    horizon: Horizon

    @classmethod
    def of(cls, plan: Plan, kind: Kind, kappa: float = 1.0) -> "Course":
        """Return the course of a plan's kind, with κ̂ of its Huber decay."""
        settings = plan.kinds[kind]
        return cls(
            variance=initial_std(plan, kind) ** 2,
            lr=settings.lr,
            weight_decay=settings.weight_decay * kappa,
            beta1=plan.betas[0],
            corrected=plan.recipe.hyperparameters.corrected and kind == "matrix",
            horizon=plan.horizon,
        )

    def changed(
        self, *, std: float = 1.0, lr: float = 1.0, decay: float = 1.0, corrected: bool | None = None
    ) -> "Course":
        """Return the course with its initial standard deviation, η and λ multiplied, and corrected or not."""
        return replace(
            self,
            variance=self.variance * std**2,
            lr=self.lr * lr,
            weight_decay=self.weight_decay * decay,
            corrected=self.corrected if corrected is None else corrected,
        )

    def at(self, steps: Sequence[int]) -> list[Expected]:
        """Return the laws after these numbers of steps, in ascending order and not above the horizon's."""
        return list(self._at(steps))

    def _at(self, steps: Sequence[int]) -> Iterator[Expected]:
        shape = _shape(self.horizon)
        lrs = self.lr * shape
        strengths = lrs * self.weight_decay * (shape if self.corrected else 1.0)
        variance, done = self.variance, 0
        for step in steps:
            sampled, ratios = max(done, step - SAMPLED_STEPS), []
            variance = advance_variance_by_steps(variance, lrs[done:sampled], strengths[done:sampled])
            for lr, strength in zip(
                lrs[sampled:step].tolist(), strengths[sampled:step].tolist(), strict=True
            ):
                variance = advance_variance(variance, lr, strength)
                ratios.append(update_ratio_law(variance, lr, self.beta1))
            done = step
            yield Expected(rms=sqrt(variance), update_ratio=sum(ratios) / len(ratios))


@lru_cache(maxsize=4)
def _shape(horizon: Horizon) -> Array:
    """Return `schedule` at all steps: a run may have a million, and each quantity and suspicion asks for them."""
    return np.fromiter((schedule(horizon, step) for step in range(horizon.steps)), np.float64)


def initial_std(plan: Plan, kind: Kind) -> float:
    """Return the standard deviation that a plan's kind begins with; of matrices that of a fan-in of the width."""
    model = plan.model
    stds = {
        "embedding": model.embedding_std,
        "matrix": model.matrix_std / sqrt(model.width),
        "readout": model.readout_std,
    }
    # Gains begin at 1 and biases at 0: what moves a gain is measured from there.
    return stds.get(kind, 0.0)


def evaluation_steps(horizon: Horizon, evaluations: int) -> tuple[int, ...]:
    """Return the steps after which a run of `evaluations` validation passes is evaluated."""
    return tuple(sorted({ceil(horizon.steps * count / evaluations) for count in range(1, evaluations + 1)}))
