"""From a check to a recipe's own rule: the exponent of λ that the measured loss supports."""

from widthwise.proxies.validation import ConfigError, RunError
from widthwise.transfer.checking.running import CheckResult, plain
from widthwise.transfer.custom_rule import CustomRule
from widthwise.transfer.recipe import Recipe

NAME = "calibrated"

# Findings that leave nothing to be learnt from the optimal λ, and what to do where the finding does not say it.
_FORBIDDING = {
    "horizon": "",
    "divergence": "; tune the recipe again, or check another rule",
    "coordinates": "; check another rule, or wider widths",
}


def calibrated(result: CheckResult) -> Recipe:
    """Return the checked recipe with a rule of its own, in place of any that it had.

    Its exponent is the one that the optimal λ follows over the widths. The evidence has its interval, the
    exponent that would keep the top singular values instead, and the verdict on the rule that was checked: the
    calibrated one has not been checked itself.

    Raises:
        ConfigError: the checked rule is a ``MODULE:FUNCTION``, which a recipe cannot follow.
        RunError: the horizon is too short, runs diverged with the transferred setting, or the parametrisation is
            broken; or the optimal λ was not bracketed at every width, so that there is no exponent.
    """
    measured = result.measured
    require_base(result.rule)
    for one in result.verdict.reasons:
        if one.check in _FORBIDDING and (one.outcome == "fails" or one.check == "horizon"):
            raise RunError(f"calibrate: this check says nothing of λ: {one.text}{_FORBIDDING[one.check]}")
    if measured is None or measured.loss_decay_exponent is None:
        reasons = result.verdict.reasons
        own = (one.text for one in reasons if one.check == "drift" and "optimal λ" in one.text)
        raise RunError(f"calibrate: no exponent of λ can be measured: {next(own, reasons[0].text)}")
    exponent, singular = measured.loss_decay_exponent, measured.singular_decay_exponent
    recipe, checked = result.recipe, result.rule
    base = recipe.rule.base if recipe.rule is not None and recipe.rule.name == checked else checked
    evidence = {
        "widths": [at.width for at in measured.widths],
        "seeds": measured.seeds,
        "weight_decay_exponent": plain(exponent),
        "exponent_that_keeps_top_singular_values": None if singular is None else plain(singular),
        "checked_rule": checked,
        "verdict": result.verdict.sentence,
    }
    rule = CustomRule(name=NAME, base=base, weight_decay_exponent=round(exponent.value, 4), evidence=evidence)
    return recipe.model_copy(update={"rule": rule})


def require_base(rule: str | None) -> None:
    """Refuse a user's own function as what a recipe's rule follows: whoever reads the recipe need not have it."""
    if rule is not None and ":" in rule:
        raise ConfigError(f"calibrate: must follow a registered rule, which a recipe can name, got {rule!r}")
