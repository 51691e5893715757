"""Recipes: the smallest one loads, all fields are saved, and every fault of a file is named in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Recipe

SMALLEST = """
{"schema": "widthwise/recipe/1",
 "hyperparameters": {"lr": 0.02, "weight_decay": 0.4, "huber_c": 2.0, "betas": [0.9, 0.95], "eps": 1e-8,
                     "decay": "huber", "threshold": "mean", "corrected": true},
 "proxy": {"width": 64, "depth": 2, "head_dim": 16, "context": 128, "vocab_size": 256},
 "horizon": {"batch_tokens": 2048, "tokens": 409600, "warmup_fraction": 0.1, "schedule": "cosine"}}
"""
ABSENT = object()


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.json"
    path.write_text(text)
    return path


def edited(path: str, value: Any) -> str:
    """Return the smallest recipe with the field at a dotted path replaced, added or (ABSENT) removed."""
    document = json.loads(SMALLEST)
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place[name]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document)


def test_the_smallest_recipe_loads(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, SMALLEST))
    assert recipe.hyperparameters == Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0)
    assert recipe.proxy == GPTConfig(width=64, depth=2, head_dim=16, context=128, vocab_size=256)
    assert recipe.horizon == Horizon(batch_tokens=2048, tokens=409600)
    assert (recipe.evidence, recipe.provenance) == (None, None)


def test_huber_c_may_be_null_where_the_decay_is_not_huber(tmp_path: Path) -> None:
    document = json.loads(edited("hyperparameters.decay", "l2"))
    document["hyperparameters"]["huber_c"] = None
    assert Recipe.load(written(tmp_path, json.dumps(document))).hyperparameters.huber_c is None


def test_a_saved_recipe_holds_every_field_and_loads_as_it_was(tmp_path: Path) -> None:
    recipe = Recipe(
        hyperparameters=Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0),
        proxy=GPTConfig(width=64),
        horizon=Horizon(),
        evidence={"loss": 2.5},
    )
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    document = json.loads((tmp_path / "recipe.json").read_text())
    assert list(document) == ["schema", "hyperparameters", "proxy", "horizon", "evidence", "provenance"]
    assert set(document["proxy"]) == set(GPTConfig.model_fields)
    assert [one.name for one in tmp_path.iterdir()] == ["recipe.json"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST)
    recipe = Recipe.load(path).model_copy(update={"evidence": {"loss": float("nan")}})
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        recipe.save(path)
    assert path.read_text() == SMALLEST
    assert [one.name for one in tmp_path.iterdir()] == ["recipe.json"]


FAULTY_TEXTS = [
    ("", "is empty, must be a recipe"),
    (" \n", "is empty, must be a recipe"),
    (SMALLEST[:60], "not valid JSON at line 3, column 27: Expecting value"),
    ('{"schema": }', "not valid JSON at line 1, column 12: Expecting value"),
    ("[]", "must be an object, got a list"),
    ("null", "must be an object, got null"),
    ("3", "must be an object, got a number"),
    ("{}", "schema: is required, must be 'widthwise/recipe/1'"),
]
FAULTY_FIELDS: list[tuple[str, Any, str]] = [
    ("schema", "widthwise/recipe/2", "schema: must be 'widthwise/recipe/1', got 'widthwise/recipe/2'"),
    ("schema", ["x"], "schema: must be 'widthwise/recipe/1', got ['x']"),
    ("proxi", {}, "proxi: unknown field; did you mean 'proxy'?"),
    ("proxy", ABSENT, "proxy: is required"),
    ("proxy", [], "proxy: must be an object, got ()"),
    ("proxy.width", ABSENT, "proxy.width: is required"),
    ("proxy.width", 64.5, "proxy.width: must be a whole number, got 64.5"),
    ("proxy.width", "64", "proxy.width: must be a whole number, got '64'"),
    ("proxy.width", 0, "proxy.width: must be >= 1, got 0"),
    ("proxy.width", 100, "proxy.width: must be a multiple of head_dim = 16, got 100"),
    ("proxy.widht", 64, "proxy.widht: unknown field; did you mean 'width'?"),
    ("horizon.tokens", ABSENT, "horizon.tokens: is required"),
    ("horizon.tokens", 2047, "horizon.tokens: must be >= batch_tokens = 2048, got 2047"),
    ("horizon.schedule", "cosin", "horizon.schedule: must be 'cosine', 'linear' or 'wsd', got 'cosin'; did you mean 'cosine'?"),  # noqa: E501
    ("hyperparameters.lr", ABSENT, "hyperparameters.lr: is required"),
    ("hyperparameters.lr", 0, "hyperparameters.lr: must be > 0, got 0"),
    ("hyperparameters.lr", True, "hyperparameters.lr: must be a number, got True"),
    ("hyperparameters.lr", float("nan"), "hyperparameters.lr: must be finite, got nan"),
    ("hyperparameters.lr", float("inf"), "hyperparameters.lr: must be finite, got inf"),
    ("hyperparameters.weight_decay", -0.1, "hyperparameters.weight_decay: must be >= 0, got -0.1"),
    ("hyperparameters.weight_decay", "0.4", "hyperparameters.weight_decay: must be a number, got '0.4'"),
    ("hyperparameters.huber_c", None, "hyperparameters.huber_c: is required where decay is 'huber', got None"),
    ("hyperparameters.betas", [0.9], "hyperparameters.betas.1: is required"),
    ("hyperparameters.betas", [0.9, 1.0], "hyperparameters.betas.1: must be in [0, 1), got 1.0"),
]  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    return str(caught.value)


@pytest.mark.parametrize(("text", "message"), FAULTY_TEXTS)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    assert refusal(path) == f"{path}: {message}"


@pytest.mark.parametrize(("field", "value", "message"), FAULTY_FIELDS)
def test_a_faulty_field_is_refused_by_its_path(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = written(tmp_path, edited(field, value))
    assert refusal(path) == f"{path}: {message}"


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    missing, binary = tmp_path / "none.json", tmp_path / "binary.json"
    binary.write_bytes(b"{\xff\xfe}")
    assert refusal(missing) == f"{missing}: no such file, must be a recipe"
    assert refusal(tmp_path) == f"{tmp_path}: is a folder, must be a recipe"
    assert refusal(binary) == f"{binary}: not UTF-8 text at byte 1, must be a recipe"
    assert refusal(binary / "below") == f"{binary / 'below'}: cannot be read: Not a directory"


@pytest.mark.parametrize("text", ['{"schema": ' + "9" * 5000 + "}", "[" * 100_000])
def test_json_beyond_the_parsers_limits_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert refusal(path).startswith(f"{path}: not valid JSON: ")
