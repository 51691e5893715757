"""Fixtures of the tests of recipes, plans and the command line."""

import re
import shlex
import sys
from collections.abc import Iterator
from html import unescape
from importlib import import_module
from pathlib import Path
from types import ModuleType

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


def commands(page: Path, name: str) -> list[list[str]]:
    """Return the arguments of every command of this name that a report ends with."""
    [lines] = re.findall("<pre>(.*?)</pre>", page.read_text(encoding="utf-8"), re.DOTALL)
    words = [shlex.split(line) for line in unescape(lines).splitlines() if line.startswith("widthwise ")]
    return [arguments for _, command, *arguments in words if command == name]


@pytest.fixture(scope="session")
def hugging_face() -> Iterator[ModuleType]:
    """Return transformers without torchvision, which mup installs: it need not fit torch, and text needs none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", None)
        yield import_module("transformers")
