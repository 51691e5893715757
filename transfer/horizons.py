"""Horizon rules: what another batch size or more tokens change, a second choice beside the width rule.

A horizon rule is one pure function ``Ratios -> Pace``; its factors come on top of the width rule's. With
s = t/b, the ratio of steps, and τ = 1/(ηλ), the steps over which weight decay averages. Where a horizon rule
other than ``none`` is chosen, the width rule sees a batch size and tokens that have not changed, so that
nothing is scaled twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from widthwise.proxies.validation import ConfigError, look_up
from widthwise.transfer.multipliers import Pace, Ratios, Scaled, paced
from widthwise.transfer.rulebook import Rule, summary

# τ/steps = 1.084 · (tokens per parameter)^-0.527, fitted by arXiv 2505.13738; the constant cancels in a ratio.
POWER_LINES_EXPONENT = -0.527


@dataclass(frozen=True)
class HorizonRule:
    """A named horizon rule; call it with `Ratios`.

    Attributes:
        name: what ``--horizon-rule`` and ``Recipe.at(horizon_rule=…)`` take.
        source: the paper that it comes from.
        summary: what it does, in a sentence.
        function: the pure function behind it.
    """

    name: str
    source: str
    summary: str
    function: Callable[[Ratios], Pace]

    def __call__(self, ratios: Ratios) -> Pace:
        """Return the factors at `ratios`."""
        return self.function(ratios)


def none(ratios: Ratios) -> Pace:
    """Nothing besides what the width rule itself does with batch size and tokens."""
    return Pace()


def tau_const(ratios: Ratios) -> Pace:
    """λ ∝ 1/s: the decay time 1/(ηλ) stays the same share of the run."""
    return Pace(weight_decay=1 / ratios.steps)


def power_lines(ratios: Ratios) -> Pace:
    """The decay time's share of the run follows TPP^-0.527; TPP is tokens per matrix parameter, t/(w²ℓ)."""
    tokens_per_parameter = ratios.tokens / (ratios.width**2 * ratios.depth)
    return Pace(weight_decay=1 / (ratios.steps * tokens_per_parameter**POWER_LINES_EXPONENT))


def sde(ratios: Ratios) -> Pace:
    """η and λ ∝ 1/√s, ε ∝ √s, 1-β ∝ 1/s: the same stochastic differential equation in s times as many steps."""
    s = ratios.steps
    return Pace(lr=s**-0.5, weight_decay=s**-0.5, eps=s**0.5, one_minus_beta=1 / s)


_BUILT_IN = {
    "none": (none, "–"),
    "tau-const": (tau_const, "arXiv 2405.13698"),
    "power-lines": (power_lines, "arXiv 2505.13738"),
    "sde": (sde, "arXiv 2205.10287, 2512.22382"),
}

horizon_rules: Mapping[str, HorizonRule] = MappingProxyType(
    {
        name: HorizonRule(name, source, summary(function), function)
        for name, (function, source) in _BUILT_IN.items()
    }
)
"""Every horizon rule by name, read-only."""


LAWS_OF_DECAY = ("tau-const", "power-lines")
"""Those that are laws of ηλ: they hold exactly with a width rule that keeps it."""


def find_horizon_rule(name: str) -> HorizonRule:
    """Return the horizon rule `name`.

    Raises:
        ConfigError: no horizon rule has this name.
    """
    return look_up("horizon_rule", name, horizon_rules)


def combined(rule: Rule, horizon_rule: str, ratios: Ratios, width: float) -> Scaled:
    """Return what both rules yield for parameters whose width grew by `width`; the other ratios are the run's.

    Raises:
        ConfigError: no horizon rule has this name, or the rule's multipliers are impossible.
    """
    pace = find_horizon_rule(horizon_rule)(ratios)
    own = replace(ratios, width=width)
    if horizon_rule == "none":
        return rule(own)
    # In place of what the width rule itself does with batch size and tokens, not on top of it.
    return paced(rule(replace(own, batch=1.0, tokens=1.0)), pace, horizon_rule)


def scaled_betas(
    tuned: tuple[float, float], one_minus_beta: float, rule: str, horizon_rule: str
) -> tuple[float, float]:
    """Return β1 and β2 with 1 - β scaled.

    Raises:
        ConfigError: one leaves [0, 1): there are too few steps for it.
    """
    if one_minus_beta == 1:
        return tuned
    first, second = (1 - (1 - beta) * one_minus_beta for beta in tuned)
    if not (0 <= first < 1 and 0 <= second < 1):
        cause = f"rule {rule!r}" if horizon_rule == "none" else f"horizon_rule {horizon_rule!r}"
        scaled = f"{first:g}, {second:g} (1 - β times {one_minus_beta:g})"
        raise ConfigError(f"{cause}: betas: must be in [0, 1), got {scaled}")
    return first, second
