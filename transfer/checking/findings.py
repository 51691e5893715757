"""What a check found, as plain records: by width, over the widths, and how good the transfer is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.fitting import Optimum


@dataclass(frozen=True, kw_only=True)
class AtWidth:
    """What was measured at one width, at the transferred setting but for the two optima.

    Attributes:
        width: of the model.
        lr, weight_decay: the matrices' η and λ by the rule.
        loss: mean validation loss in nats per token; None where a seed diverged.
        diverged: seeds that diverged.
        lr_optimum: along η, with λ as the rule has it; None before that line was run.
        decay_optimum: along λ, with η as the rule has it; None before that line was run.
        top_singular_value: geometric mean over matrices and seeds, or None.
        kappa: κ̂ of the matrices, or None.
        corrected_decay: λ·κ̂ at the base width / κ̂ here, which keeps the decay that acts, or None.
        rms_ratio, update_ratio: measured over the law of pure noise, or None.
        coordinates: layer → geometric mean of the change of its output over steps and seeds.
    """

    width: int
    lr: float
    weight_decay: float
    loss: float | None
    diverged: int
    lr_optimum: Optimum | None
    decay_optimum: Optimum | None
    top_singular_value: float | None
    kappa: float | None
    corrected_decay: float | None
    rms_ratio: float | None
    update_ratio: float | None
    coordinates: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good a transfer is, in the three numbers of arXiv 2605.21486, with definitions of our own.

    The paper's are over many widths and parametrisations; these are what one check can say.

    Attributes:
        fit: how well a power law fits the optimum over widths: standard error of log₂ of the optimal η about its
            line in log₂ width, octaves.
        robustness: what an error of the extrapolated η costs: loss one octave off the optimum at the largest
            width, nats per token.
        penalty: what the parametrisation loses at the largest width: the transferred point's loss above the
            optimum along η, and above the one along λ, in sum, nats per token.
    """

    fit: float
    robustness: float
    penalty: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything a check measures; None where the data do not say.

    Attributes:
        base_width: where the recipe was tuned.
        widths: by width, ascending.
        seeds: seeds that every transferred setting was run with.
        deviation: standard deviation of the loss over seeds at each width's best η, pooled over the widths.
        lr_drift: drift of the optimal η off the rule's, octaves per doubling of the width.
        decay_drift: likewise of λ.
        coordinate_slopes: layer → exponent of the change of its output in width; 0 under µP. All intervals hold
            together.
        coordinate_slopes_alone: the same, each with an interval of its own, which is narrower; empty in files of
            earlier versions.
        singular_exponent: p of σ₁ ∝ √(η/λ)·d^p.
        rule_decay_exponent: of λ in width, by the rule.
        singular_decay_exponent: 2p - 1, which keeps σ₁ where η ∝ 1/d.
        loss_decay_exponent: the one that the optimal λ follows: the rule's plus `decay_drift`.
        kappa_exponent: of κ̂ in width; λ ∝ d^(minus it) on top of the rule keeps the decay that acts.
        quality: the three numbers.
    """

    base_width: int
    widths: tuple[AtWidth, ...]
    seeds: int
    deviation: float | None
    lr_drift: Estimate | None
    decay_drift: Estimate | None
    coordinate_slopes: Mapping[str, Estimate]
    singular_exponent: Estimate | None
    rule_decay_exponent: float | None
    singular_decay_exponent: Estimate | None
    loss_decay_exponent: Estimate | None
    kappa_exponent: Estimate | None
    quality: Quality | None
    coordinate_slopes_alone: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def base(self) -> AtWidth:
        """The width at which the recipe was tuned."""
        return next(one for one in self.widths if one.width == self.base_width)

    @property
    def largest(self) -> AtWidth:
        """The largest width."""
        return self.widths[-1]
