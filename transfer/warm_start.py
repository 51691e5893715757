"""Settings that an earlier sweep found good, for another one to begin with."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from widthwise.proxies.validation import ConfigError
from widthwise.search.space import Point
from widthwise.transfer.recipe import Recipe
from widthwise.transfer.reporting.reading import read_contents

# Of a sweep without a recipe, so many of the best trials.
MOST = 4


def known_points(path: Path) -> list[Point]:
    """Return the settings that a recipe, or the sweep in a folder, found best, the best first.

    They are taken as they are, whatever proxy they were found on. Of a recipe: its own and its finalists'.

    Raises:
        ConfigError: where `path` holds neither, or a setting has no η or λ above 0.
    """
    try:
        return _points(path, _tried(path))
    except ConfigError as error:
        # What reads a folder calls it by the name of its own option.
        raise ConfigError(f"warm_start: {str(error).removeprefix('folder: ')}") from None


def _tried(path: Path) -> list[dict[str, Any]]:
    if not path.is_dir():
        return _of_recipe(Recipe.load(path))
    sweeps = read_contents(path).sweeps
    if not sweeps:
        raise ConfigError(f"{path} holds no sweep")
    if sweeps[0].recipe is not None:
        return _of_recipe(sweeps[0].recipe)
    completed = [trial for trial in sweeps[0].proposals if trial.status == "completed"]
    scored = sorted((trial.loss, trial.number, trial) for trial in completed if trial.loss is not None)
    return [trial.hyperparameters.model_dump() for *_, trial in scored[:MOST]]


def _of_recipe(recipe: Recipe) -> list[dict[str, Any]]:
    finalists = (recipe.evidence or {}).get("finalists", [])
    return [recipe.hyperparameters.model_dump(), *(one["hyperparameters"] for one in finalists)]


def _points(path: Path, tried: Iterable[dict[str, Any]]) -> list[Point]:
    names = set(Point.model_fields)
    points = [Point.parse({name: one.get(name) for name in names}, where=str(path)) for one in tried]
    return list(dict.fromkeys(points))
