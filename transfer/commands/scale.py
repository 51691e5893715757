"""``widthwise scale``: the plan of a recipe at a target, as a table or as JSON."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Print the hyperparameters of a wider model, computed from a recipe."""

    recipe: Positional[Path]
    """Recipe file, as `widthwise sweep` writes it."""
    width: int
    """Width of the target, a multiple of the recipe's head_dim * group_size."""
    depth: int | None = None
    """Blocks of the target; the proxy's if not given."""
    batch_tokens: int | None = None
    """Tokens per optimizer step; the recipe's if not given."""
    tokens: int | None = None
    """Tokens in all; the recipe's if not given."""
    rule: str = "fan-sqrt"
    """Scaling rule: fan-sqrt, sp, mup-coupled, mup-independent."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def run(self) -> int:
        """Print the plan on standard output."""
        from widthwise.transfer.recipe import Recipe

        plan = Recipe.load(self.recipe).at(
            width=self.width,
            depth=self.depth,
            batch_tokens=self.batch_tokens,
            tokens=self.tokens,
            rule=self.rule,
        )
        if self.json:
            from json import dumps

            print(dumps(plan.as_json(), indent=2))
            return 0
        from rich.console import Console

        console = Console()
        console.print(plan.table())
        for note in plan.notes():
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        return 0
