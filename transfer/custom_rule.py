"""A rule that a recipe brings along: a published one with another exponent of λ, measured by ``widthwise check``."""

from dataclasses import replace
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from widthwise.proxies.config import Kind
from widthwise.proxies.validation import ConfigError, Record, look_up
from widthwise.transfer.multipliers import Ratios, Scaled
from widthwise.transfer.rulebook import Rule, find_rule
from widthwise.transfer.scaling import rules


class Interval(Record):
    """A measured number with its confidence interval at 95 %; None where an end is infinite."""

    value: float
    low: float | None
    high: float | None

    def ends(self) -> str:
        """Return ``[0.63, 1.36]``."""
        low = "-∞" if self.low is None else f"{self.low:.2f}"
        high = "∞" if self.high is None else f"{self.high:.2f}"
        return f"[{low}, {high}]"


class _Evidence(Record):
    """The part of a check's evidence that a plan says."""

    model_config = ConfigDict(extra="ignore")

    weight_decay_exponent: Interval
    checked_rule: str
    widths: tuple[int, ...] = Field(min_length=1)
    verdict: str


class CustomRule(Record):
    """A scaling rule that stands in a recipe.

    Attributes:
        name: what ``--rule`` and ``Recipe.at(rule=…)`` take; none of the registered rules' names.
        base: the registered rule that it follows in all but the matrices' λ.
        weight_decay_exponent: λ of the matrices ∝ w to this power, w the ratio of widths.
        evidence: what it was measured on, or None.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$")
    base: str = "fan-sqrt"
    weight_decay_exponent: float
    evidence: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fitting(self) -> "CustomRule":
        if self.name in rules:
            raise ValueError(f"name: must not be a registered rule's, got {self.name!r}")
        look_up("base", self.base, rules)
        return self

    def basis(self) -> str:
        """Return what a plan by this rule rests on: the exponent, its interval, and the verdict of the check behind it.

        Evidence of another form, which a recipe written by hand may have, is as good as none.
        """
        said = f"rule {self.name} has λ ∝ w^{self.weight_decay_exponent:.3g}"
        try:
            known = _Evidence.parse(self.evidence or {})
        except ConfigError:
            return f"{said}, and no evidence that a check measured"
        return (
            f"{said} {known.weight_decay_exponent.ends()}, from a check of {known.checked_rule} at widths "
            f"{known.widths[0]} to {known.widths[-1]}: {known.verdict}"
        )

    def as_rule(self) -> Rule:
        """Return the rule itself."""
        base, exponent = find_rule(self.base), self.weight_decay_exponent
        summary = f"{self.base} with λ ∝ w^{exponent:.3g} on matrices"

        def function(ratios: Ratios) -> Scaled:
            outcome = base(ratios)
            # What the base rule makes of depth, batch size and tokens stays.
            unwidened = base(replace(ratios, width=1.0)).kinds["matrix"].weight_decay
            matrix = replace(outcome.kinds["matrix"], weight_decay=unwidened * ratios.width**exponent)
            why: dict[Kind, str] = {**outcome.why, "matrix": f"as {self.base}; λ ∝ w^{exponent:.3g} instead"}
            return replace(outcome, kinds={**outcome.kinds, "matrix": matrix}, why=why)

        return Rule(self.name, "this recipe", summary, function)
