"""The data of a command that starts from a recipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from widthwise.transfer.recipe import Recipe


def source_for(recipe: "Recipe", given: str | None) -> str:
    """Return what was given, or what the recipe was tuned on; says what it is where nothing was given."""
    if given is not None:
        return given
    tuned_on = (recipe.provenance or {}).get("data")
    if not isinstance(tuned_on, str):
        data, why = "python", "the recipe does not say what it was tuned on"
    elif tuned_on == "python" or Path(tuned_on).exists():
        data, why = tuned_on, "as the recipe was tuned on"
    else:
        data, why = "python", f"{tuned_on}, which the recipe was tuned on, is not here"
    print(f"widthwise: data: {data} ({why})", file=sys.stderr)
    return data
