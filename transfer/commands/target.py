"""The options that name a recipe's target, which several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from widthwise.transfer.commands.listing import words
from widthwise.transfer.commands.options import Option
from widthwise.transfer.commands.sources import recipe_file

if TYPE_CHECKING:
    from widthwise.transfer.plan import Plan
    from widthwise.transfer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Target:
    """A recipe and a target for it."""

    recipe: Positional[Path]
    """Recipe file, as `widthwise sweep` writes it, or the sweep's folder."""
    width: int
    """Width of the target, a multiple of the recipe's head_dim * group_size."""
    depth: Option[int] = None
    """Blocks of the target; the proxy's if not given."""
    batch_tokens: Option[int] = None
    """Tokens per optimizer step, over all workers; the recipe's if not given."""
    tokens: Option[int] = None
    """Tokens in all; the recipe's if not given."""
    rule: Option[str] = None
    """Scaling rule, as for `widthwise scale`; the recipe's own if not given, or fan-sqrt."""
    horizon_rule: str = "none"
    """Horizon rule, as for `widthwise scale`."""
    decay_kinds: Option[str] = None
    """Kinds that decay, as for `widthwise scale`; the rule's if not given."""

    def plan(self, recipe: "Recipe | None" = None) -> "Plan":
        """Return the plan of the recipe, read from its file unless given, at the target."""
        if recipe is None:
            from widthwise.transfer.recipe import Recipe

            recipe = Recipe.load(recipe_file(self.recipe))
        return recipe.at(
            width=self.width,
            depth=self.depth,
            batch_tokens=self.batch_tokens,
            tokens=self.tokens,
            rule=self.rule,
            horizon_rule=self.horizon_rule,
            decay_kinds=words(self.decay_kinds),
        )
