"""The recipe and the data of a command that starts from a recipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from widthwise.proxies.validation import ConfigError
from widthwise.search.names import SWEEP_STUDY
from widthwise.transfer.commands.stopping import sweep_resumption

if TYPE_CHECKING:
    from widthwise.transfer.recipe import Recipe


def recipe_file(path: Path) -> Path:
    """Return the recipe that `path` is, or that the sweep in the folder `path` has written.

    Says in a line on standard error where that sweep has gone on since.

    Raises:
        ConfigError: the folder holds no recipe.
    """
    if not path.is_dir():
        return path
    recipe, swept = path / "recipe.json", any((path / name).exists() for name in SWEEP_STUDY)
    resume = f"go on with: {sweep_resumption(path)}"
    if not recipe.exists():
        why = f"the sweep in {path} has not finished; {resume}" if swept else f"{path} holds no recipe.json"
        raise ConfigError(f"recipe: {why}")
    # A recipe can be had without the database that its study may be in, and the password for it.
    if (path / "study.db").exists() and _goes_on(path, recipe):
        print(f"widthwise: the sweep in {path} has not finished since its recipe; {resume}", file=sys.stderr)
    return recipe


def _goes_on(path: Path, recipe: Path) -> bool:
    from widthwise.search.stored import is_unfinished
    from widthwise.transfer.recipe import Recipe

    return is_unfinished(path, (Recipe.load(recipe).provenance or {}).get("config"))


def source_for(recipe: "Recipe", given: str | None) -> str:
    """Return what was given, or what the recipe was tuned on; says what it is where nothing was given.

    Raises:
        ConfigError: there is no such file; told before torch is imported.
    """
    if given is not None:
        from widthwise.proxies.data import require_source

        require_source(given)
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
