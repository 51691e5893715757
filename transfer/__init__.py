"""Scaling rules, recipes and plans; checks of a transfer; target runs; and the command line."""

from typing import TYPE_CHECKING

from widthwise.proxies._lazy import exported

if TYPE_CHECKING:
    from widthwise.transfer.checking.calibrating import calibrated
    from widthwise.transfer.checking.options import CheckOptions
    from widthwise.transfer.checking.running import CheckResult, check
    from widthwise.transfer.custom_rule import CustomRule
    from widthwise.transfer.horizons import HorizonRule, horizon_rules
    from widthwise.transfer.launch_options import LaunchOptions
    from widthwise.transfer.launching import launch
    from widthwise.transfer.plan import Plan
    from widthwise.transfer.recipe import Recipe
    from widthwise.transfer.reporting import report
    from widthwise.transfer.scaling import Multipliers, Ratios, Rule, Scaled, rule, rules, scaled
    from widthwise.transfer.spectra import decay_scales, hill_alpha
    from widthwise.transfer.watching import Watcher, watch_of

__all__ = [
    "CheckOptions",
    "CheckResult",
    "CustomRule",
    "HorizonRule",
    "LaunchOptions",
    "Multipliers",
    "Plan",
    "Ratios",
    "Recipe",
    "Rule",
    "Scaled",
    "Watcher",
    "calibrated",
    "check",
    "decay_scales",
    "hill_alpha",
    "horizon_rules",
    "launch",
    "report",
    "rule",
    "rules",
    "scaled",
    "watch_of",
]

__getattr__, __dir__ = exported(
    __name__,
    {
        "checking.calibrating": "calibrated",
        "checking.options": "CheckOptions",
        "checking.running": "CheckResult check",
        "custom_rule": "CustomRule",
        "horizons": "HorizonRule horizon_rules",
        "launch_options": "LaunchOptions",
        "launching": "launch",
        "plan": "Plan",
        "recipe": "Recipe",
        "reporting": "report",
        "scaling": "Multipliers Ratios Rule Scaled rule rules scaled",
        "spectra": "decay_scales hill_alpha",
        "watching": "Watcher watch_of",
    },
)
