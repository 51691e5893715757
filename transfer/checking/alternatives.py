"""Other rules of the same family: what their λ would have done on the landscape of the largest width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Any

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.measuring import decay_difference
from widthwise.transfer.checking.observing import Observation, line
from widthwise.transfer.multipliers import Scaled
from widthwise.transfer.plan import Plan
from widthwise.transfer.rulebook import rules


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another rule's λ of the matrices at the largest width.

    Attributes:
        octaves: log₂ of it over the checked rule's.
        change: the loss with it minus the loss with the checked rule's, nats per token; None where it lies
            outside of what was tried.
    """

    octaves: float
    change: Estimate | None


def alternatives(plan: Plan, observations: Sequence[Observation]) -> dict[str, Alternative]:
    """Return the rules that differ from a plan's in the matrices' λ alone (ε apart), with what λ would change.

    A rule of another family, such as ``sp``, scales the initialisation or other learning rates too: only runs of
    its own could say what it does.
    """
    losses = line(observations, plan.model.width, "decay")
    found: dict[str, Alternative] = {}
    own = plan.outcome()
    here = own.kinds["matrix"].weight_decay
    for name, rule in rules.items() if here else ():
        try:
            other = rule(plan.ratios)
        except ConfigError:
            continue
        factor = other.kinds["matrix"].weight_decay
        if name == plan.rule or _without_decay(other) != _without_decay(own) or not factor:
            continue
        octaves = log2(factor / here)
        found[name] = Alternative(octaves=octaves, change=decay_difference(losses, octaves))
    return found


def _without_decay(outcome: Scaled) -> dict[str, Any]:
    """Return what distinguishes families of rules."""
    return {
        **{kind: replace(one, weight_decay=1.0, eps=1.0) for kind, one in outcome.kinds.items()},
        "residual": outcome.residual_multiplier,
        "betas": outcome.one_minus_beta,
        "decaying": outcome.decay_kinds,
    }


def better_rule(found: Mapping[str, Alternative]) -> str:
    """Return a sentence on the rule whose λ lowers the loss most, beyond doubt; nothing where none does."""
    known = [(one.change.value, name, one) for name, one in found.items() if one.change is not None]
    better = [entry for entry in known if entry[2].change is not None and entry[2].change.high < 0]
    if not better:
        return ""
    change, name, one = min(better, key=lambda entry: entry[0])
    factor = f"{2**one.octaves:.3g} times this λ at the largest width"
    return f"rule {name!r}, with {factor}, fits better there by {-change:.4f} nats per token"
