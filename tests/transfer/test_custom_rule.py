"""A recipe's own rule: the exponent of λ that a check measured, in the plan, in the file and by its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Recipe
from widthwise.transfer.custom_rule import CustomRule

MEASURED = CustomRule(name="measured", base="completep", weight_decay_exponent=0.75, evidence={"low": 0.5})
RECIPE = Recipe(
    hyperparameters=Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0),
    proxy=GPTConfig(width=32),
    horizon=Horizon(),
    rule=MEASURED,
)


def test_it_is_its_base_but_for_the_matrices_weight_decay() -> None:
    own, base = RECIPE.at(width=512, depth=4), RECIPE.at(width=512, depth=4, rule="completep")
    assert own.rule == "measured"
    assert own.kinds["matrix"].weight_decay == pytest.approx(0.4 * 16**0.75)
    assert own.kinds["matrix"].why == "as completep; λ ∝ w^0.75 instead"
    assert base.kinds["matrix"].weight_decay == pytest.approx(0.4 * 16)
    for kind, planned in own.kinds.items():
        if kind != "matrix":
            assert planned == base.kinds[kind]
    assert own.kinds["matrix"].lr == base.kinds["matrix"].lr
    assert (own.model, own.residual_multiplier) == (base.model, base.residual_multiplier)
    # A matrix whose width grew by its own factor follows the same exponent.
    assert own.settings("matrix", 4.0).weight_decay == pytest.approx(0.4 * 4**0.75)


def test_what_the_base_makes_of_batch_size_and_tokens_stays() -> None:
    recipe = RECIPE.model_copy(update={"rule": MEASURED.model_copy(update={"base": "completed-p"})})
    own = recipe.at(width=64, tokens=4 * 409_600)
    base = recipe.at(width=64, tokens=4 * 409_600, rule="completed-p")
    ratio = own.kinds["matrix"].weight_decay / base.kinds["matrix"].weight_decay
    assert ratio == pytest.approx(2**0.75 / 2)
    assert own.betas == base.betas


def test_it_is_the_recipes_default_and_other_rules_stay_to_be_had() -> None:
    assert RECIPE.find_rule().name == RECIPE.find_rule("measured").name == "measured"
    assert RECIPE.at(width=64, rule="fan-sqrt").rule == "fan-sqrt"
    assert RECIPE.model_copy(update={"rule": None}).at(width=64).rule == "fan-sqrt"
    assert next(iter(RECIPE.rules)) == "measured"
    with pytest.raises(
        ConfigError, match=r"^rule: must be one of measured, fan-sqrt, .*, got 'mesured'; did you"
    ):
        RECIPE.find_rule("mesured")


@pytest.mark.parametrize("evidence", [None, {}, {"low": 0.5}, {"weight_decay_exponent": "0.7"}])
def test_a_plan_says_that_nothing_supports_its_rule(evidence: dict[str, Any] | None) -> None:
    recipe = RECIPE.model_copy(update={"rule": MEASURED.model_copy(update={"evidence": evidence})})
    said = "note: rule measured has λ ∝ w^0.75, and no evidence that a check measured"
    assert said in recipe.at(width=64).notes()
    assert said not in recipe.at(width=64, rule="completep").notes()


def test_a_plan_says_what_supports_its_rule() -> None:
    evidence = {
        "weight_decay_exponent": {"value": 0.75, "low": 0.5, "high": None},
        "checked_rule": "completep",
        "widths": [32, 64, 128],
        "verdict": "inconclusive: add seeds",
        "seeds": 2,
    }
    own = MEASURED.model_copy(update={"evidence": evidence})
    assert own.basis() == (
        "rule measured has λ ∝ w^0.75 [0.50, ∞], from a check of completep at widths 32 to 128: inconclusive: add seeds"
    )


def test_it_survives_the_file(tmp_path: Path) -> None:
    RECIPE.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == RECIPE


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "sp", "rule.name: must not be a registered rule's, got 'sp'"),
        (
            "name",
            "my rule",
            "rule.name: string should match pattern '^[A-Za-z][A-Za-z0-9._-]*$', got 'my rule'",
        ),
        ("weight_decay_exponent", "½", "rule.weight_decay_exponent: must be a number, got '½'"),
        ("weight_decay_exponent", None, "rule.weight_decay_exponent: must be a number, got null"),
        ("exponent", 1.0, "rule.exponent: unknown field"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, field: str, value: Any, message: str) -> None:
    document = RECIPE.model_dump(mode="json", by_alias=True)
    document["rule"][field] = value
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    assert str(caught.value) == f"{path}: {message}"


def test_an_unknown_base_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        CustomRule.parse({"name": "mine", "base": "fan-squrt", "weight_decay_exponent": 0.5})
    assert str(caught.value).startswith("base: must be one of fan-sqrt, sp, ")
    assert str(caught.value).endswith("got 'fan-squrt'; did you mean 'fan-sqrt'?")
