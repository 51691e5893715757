"""Fixtures of the tests of recipes, plans and the command line."""

from pathlib import Path

import pytest

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.transfer import Recipe


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Return the path of a valid recipe."""
    tuned = Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0)
    path = tmp_path / "recipe.json"
    Recipe(hyperparameters=tuned, proxy=GPTConfig(), horizon=Horizon()).save(path)
    return str(path)
