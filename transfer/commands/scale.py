"""``widthwise scale``: plans of a recipe, at a target, at several widths or by every rule."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.commands.listing import whole_numbers, words
from widthwise.transfer.commands.options import Flag, Option
from widthwise.transfer.commands.sources import recipe_file

if TYPE_CHECKING:
    from widthwise.transfer.plan import Plan
    from widthwise.transfer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Print the hyperparameters of a wider model, computed from a recipe."""

    recipe: Positional[Path]
    """Recipe file, as `widthwise sweep` writes it, or the sweep's folder."""
    width: Option[int] = None
    """Width of the target, a multiple of the recipe's head_dim * group_size."""
    widths: Option[str] = None
    """Several widths, separated by commas, instead of one: a row for each."""
    depth: Option[int] = None
    """Blocks of the target; the proxy's if not given."""
    batch_tokens: Option[int] = None
    """Tokens per optimizer step; the recipe's if not given."""
    tokens: Option[int] = None
    """Tokens in all; the recipe's if not given."""
    rule: Option[str] = None
    """Scaling rule: fan-sqrt, sp, sp-embedding, mup-coupled, mup-independent, completep, completed-p,
    qiu-compute-optimal. Or MODULE:FUNCTION, one of your own. The recipe's own if not given, or fan-sqrt;
    `widthwise rules` says more."""
    horizon_rule: str = "none"
    """What another batch size or more tokens change: none, tau-const, power-lines, sde."""
    decay_kinds: Option[str] = None
    """Kinds that decay, such as matrix,embedding,readout, or none; the rule's if not given."""
    compare: Flag = False
    """Every rule side by side; --rule, also one of your own, first."""
    csv: Flag = False
    """Print comma-separated values instead of a table."""
    json: Flag = False
    """Print one JSON document instead of a table."""

    def run(self) -> int:
        """Print the plan or the plans on standard output."""
        self._require_no_contradiction()
        plans = self._plans()
        alone = not self.compare and self.widths is None
        if self.csv:
            from widthwise.transfer.plan_tables import plans_csv

            print(plans_csv(plans), end="")
        elif self.json:
            from json import dumps

            several = {"plans": [{"width": plan.model.width, **plan.as_json()} for plan in plans]}
            print(dumps(plans[0].as_json() if alone else several, indent=2))
        else:
            _print_table(plans, alone=alone)
        return 0

    def _require_no_contradiction(self) -> None:
        for one, other in (("widths", "width"), ("csv", "json")):
            if getattr(self, one) not in (None, False) and getattr(self, other) not in (None, False):
                raise ConfigError(f"{one}: must not be given together with {other}")

    def _targets(self) -> list[int]:
        if self.widths is not None:
            return list(dict.fromkeys(whole_numbers("widths", self.widths)))  # one row each
        if self.width is None:
            raise ConfigError("width: is required, or widths")
        return [self.width]

    def _plans(self) -> "list[Plan]":
        """Return the plans, by width and then by rule."""
        from widthwise.transfer.recipe import Recipe

        widths, recipe = self._targets(), Recipe.load(recipe_file(self.recipe))
        if self.compare:
            return [plan for width in widths for plan in self._by_every_rule(recipe, width)]
        return [self._plan(recipe, width, self.rule) for width in widths]

    def _by_every_rule(self, recipe: "Recipe", width: int) -> "list[Plan]":
        """Return a plan per rule; those that cannot be had at this target are named on standard error."""
        plans = [] if self.rule is None else [self._plan(recipe, width, self.rule)]
        refused = []
        for name in (name for name in recipe.rules if name != self.rule):
            try:
                plans.append(self._plan(recipe, width, name))
            except ConfigError as error:
                refused.append(error)
        if not plans:
            raise refused[0]
        for refusal in refused:
            print(f"widthwise: left out: {refusal}", file=sys.stderr)
        return plans

    def _plan(self, recipe: "Recipe", width: int, rule: str | None) -> "Plan":
        return recipe.at(
            width=width,
            depth=self.depth,
            batch_tokens=self.batch_tokens,
            tokens=self.tokens,
            rule=rule,
            horizon_rule=self.horizon_rule,
            decay_kinds=words(self.decay_kinds),
        )


def _print_table(plans: "list[Plan]", *, alone: bool) -> None:
    from rich.console import Console

    from widthwise.transfer.plan_notes import common_cautions
    from widthwise.transfer.plan_tables import comparison_table

    # A plan needs up to 80 columns, a row per plan up to 100: rather long lines than numbers cut short.
    console = Console(width=max(80 if alone else 100, Console().width))
    console.print(plans[0].table() if alone else comparison_table(plans))
    for note in plans[0].notes() if alone else common_cautions(plans):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
