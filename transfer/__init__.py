"""Scaling rules, recipes and plans; checks of a transfer; target runs; and the command line."""

from typing import TYPE_CHECKING

from widthwise.proxies._lazy import exported

if TYPE_CHECKING:
    from widthwise.transfer.horizons import HorizonRule, horizon_rules
    from widthwise.transfer.launching import LaunchOptions, launch
    from widthwise.transfer.plan import Plan
    from widthwise.transfer.recipe import Recipe
    from widthwise.transfer.reporting import report
    from widthwise.transfer.scaling import Multipliers, Ratios, Rule, Scaled, rule, rules, scaled
    from widthwise.transfer.spectra import decay_scales, hill_alpha

__all__ = [
    "HorizonRule",
    "LaunchOptions",
    "Multipliers",
    "Plan",
    "Ratios",
    "Recipe",
    "Rule",
    "Scaled",
    "decay_scales",
    "hill_alpha",
    "horizon_rules",
    "launch",
    "report",
    "rule",
    "rules",
    "scaled",
]

__getattr__ = exported(
    __name__,
    {
        "HorizonRule": "horizons",
        "LaunchOptions": "launching",
        "Multipliers": "scaling",
        "Plan": "plan",
        "Ratios": "scaling",
        "Recipe": "recipe",
        "Rule": "scaling",
        "Scaled": "scaling",
        "horizon_rules": "horizons",
        "decay_scales": "spectra",
        "hill_alpha": "spectra",
        "launch": "launching",
        "report": "reporting",
        "rule": "scaling",
        "rules": "scaling",
        "scaled": "scaling",
    },
)
