"""Horizon rules: their factors, worked by hand, and what they do to a plan."""

from dataclasses import astuple
from typing import Any

import pytest

from widthwise.proxies.config import KINDS, GPTConfig, Horizon, Hyperparameters, KindSettings
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Plan, Ratios, Recipe, horizon_rules
from widthwise.transfer.horizons import find_horizon_rule

RECIPE = Recipe(
    hyperparameters=Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0),
    proxy=GPTConfig(width=32, depth=2),
    horizon=Horizon(batch_tokens=2048, tokens=409_600),
)
TARGET: dict[str, Any] = {"width": 128, "depth": 4, "batch_tokens": 2048 * 8, "tokens": 409_600 * 16}

# At w = 4, ℓ = 2, b = 8, t = 16, so s = 2 and tokens per parameter × 16 / (4² · 2) = ½: η, λ, ε, 1 - β.
RATIOS = Ratios(width=4, depth=2, batch=8, tokens=16)
EXPECTED = {
    "none": (1, 1, 1, 1),
    "tau-const": (1, 1 / 2, 1, 1),
    "power-lines": (1, 1 / 2 * 0.5**0.527, 1, 1),
    "sde": (0.7071068, 0.7071068, 1.4142136, 1 / 2),
}


def test_every_horizon_rule_is_in_the_table() -> None:
    assert list(horizon_rules) == list(EXPECTED)
    for name, one in horizon_rules.items():
        assert (one.name, bool(one.source), one.summary[-1]) == (name, True, ".")


@pytest.mark.parametrize("name", EXPECTED)
def test_factors_worked_by_hand(name: str) -> None:
    assert astuple(horizon_rules[name](RATIOS)) == pytest.approx(EXPECTED[name], rel=1e-7)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_horizon_rule_is_the_identity_where_the_proxy_was_tuned(name: str) -> None:
    assert astuple(horizon_rules[name](Ratios())) == (1, 1, 1, 1)


def test_at_a_fixed_size_and_horizon_power_lines_scales_the_decay_with_the_batch() -> None:
    assert horizon_rules["power-lines"](Ratios(batch=8)).weight_decay == pytest.approx(8)


def decay_share(plan: Plan) -> float:
    """Return the decay time of the matrices as a share of the run, B / (ηλD)."""
    matrix, horizon = plan.kinds["matrix"], plan.horizon
    return horizon.batch_tokens / (matrix.lr * matrix.weight_decay * horizon.tokens)


def test_power_lines_and_constant_decay_per_step_follow_the_published_law() -> None:
    # τ = 1.084 · TPP^-0.527, so that twice the tokens per parameter have a share 2^-0.527 as large.
    base = decay_share(RECIPE.at(width=32))
    plan = RECIPE.at(**TARGET, rule="mup-independent", horizon_rule="power-lines")
    assert decay_share(plan) / base == pytest.approx(0.5**-0.527)
    constant = RECIPE.at(**TARGET, rule="mup-independent", horizon_rule="tau-const")
    assert decay_share(constant) == pytest.approx(base)


def test_a_plan_has_both_rules_factors_and_the_betas() -> None:
    plan = RECIPE.at(**TARGET, rule="mup-coupled", horizon_rule="sde")
    root = 2**0.5
    assert plan.horizon_rule == "sde"
    assert plan.betas == pytest.approx((0.95, 0.975))
    matrix, gain = plan.settings("matrix"), plan.settings("gain")
    assert (matrix.lr, matrix.weight_decay, matrix.eps) == pytest.approx(
        (0.005 / root, 0.4 / root, 1e-8 * root)
    )
    assert (gain.lr, gain.weight_decay, gain.eps) == pytest.approx((0.02 / root, 0, 1e-8 * root))
    # A parameter of another width has the run's factors, with its own width's.
    assert plan.settings("matrix", 8.0).lr == pytest.approx(0.0025 / root)
    wide, base = plan.settings("matrix", 4.0), plan.settings("matrix")
    assert wide == base


def test_power_lines_counts_the_models_parameters_not_one_parameters_width() -> None:
    plan = RECIPE.at(**TARGET, rule="mup-coupled", horizon_rule="power-lines")
    assert plan.settings("matrix", 2.0).weight_decay == plan.settings("matrix").weight_decay


def test_a_horizon_rule_stands_in_place_of_what_the_width_rule_does_itself() -> None:
    own, sde = (RECIPE.at(**TARGET, rule="completed-p", horizon_rule=name) for name in ("none", "sde"))
    for kind in KINDS:
        assert list(sde.settings(kind).model_dump().values()) == pytest.approx(
            list(own.settings(kind).model_dump().values())
        )
    assert sde.betas == own.betas == pytest.approx((0.95, 0.975))
    constant = RECIPE.at(**TARGET, rule="completed-p", horizon_rule="tau-const")
    assert constant.settings("embedding") == KindSettings(lr=0.02, weight_decay=0, eps=2.5e-9)
    assert constant.settings("matrix").weight_decay == pytest.approx(0.4 * 4 / 2)
    assert constant.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("options", "matrix", "gain"),
    [
        (
            {"rule": "fan-sqrt", "horizon_rule": "tau-const"},
            "η ∝ 1/w keeps the update's effect; λ ×0.5 by tau-const, on top of ×2",
            "acts on each coordinate by itself: the width changes nothing",
        ),
        (
            {"rule": "sp", "horizon_rule": "sde"},
            "initialised by fan-in; η is carried over as it is; η ×0.7071 by sde; λ ×0.7071 by sde; ε ×1.414 by sde",
            "carried over as it is; η ×0.7071 by sde; ε ×1.414 by sde",
        ),
        (
            {"rule": "completed-p"},
            "η ∝ 1/w keeps the update's effect; ε ∝ 1/(wℓ) as their gradients; η ×0.7071 by sde; λ ×0.7071 by sde, on "
            "top of ×4; ε ×1.414 by sde",
            "acts on each coordinate by itself: only ε follows its gradient; η ×0.7071 by sde; ε ×1.414 by sde",
        ),
    ],
)
def test_the_reasons_are_true_of_another_horizon(options: dict[str, Any], matrix: str, gain: str) -> None:
    kinds = RECIPE.at(**TARGET, **options).kinds
    assert (kinds["matrix"].why, kinds["gain"].why) == (matrix, gain)


@pytest.mark.parametrize(
    ("name", "factor"),
    [("fan-sqrt", "0.5"), ("mup-coupled", "0.25"), ("mup-independent", None), ("sp", None)],
)
@pytest.mark.parametrize("horizon_rule", ["tau-const", "power-lines"])
def test_a_law_of_decay_per_step_on_a_rule_that_does_not_keep_it_is_noted(
    name: str, factor: str | None, horizon_rule: str
) -> None:
    notes = RECIPE.at(**TARGET, rule=name, horizon_rule=horizon_rule).notes()
    assert [note for note in notes if "is a law" in note] == (
        []
        if factor is None
        else [
            f"note: {horizon_rule} is a law of ηλ, which is multiplied by {factor} besides by {name}: it holds with a "
            "rule that keeps ηλ, such as mup-independent"
        ]
    )


def test_the_notes_name_the_horizon_rule_and_the_betas() -> None:
    notes = RECIPE.at(**TARGET, rule="completep", horizon_rule="sde").notes()
    assert f"horizon rule sde: {horizon_rules['sde'].summary}" in notes
    assert any("; β1 and β2 0.95 and 0.975, tuned at 0.9 and 0.95; " in note for note in notes)
    assert "residual branches: ×0.5" in notes
    plain = RECIPE.at(width=128).notes()
    assert not [
        note
        for note in plain
        if note.startswith(("horizon rule", "residual", "note: decay")) or "tuned at" in note
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"horizon_rule": "tau-constant"},
            "horizon_rule: must be one of none, tau-const, power-lines, sde, got 'tau-constant'; "
            "did you mean 'tau-const'?",
        ),
        (
            {"horizon_rule": "sde", "batch_tokens": 2048 * 16},
            "horizon_rule 'sde': betas: must be in [0, 1), got -0.6, 0.2 (1 - β times 16)",
        ),
        (
            {"rule": "completed-p", "batch_tokens": 2048 * 16},
            "rule 'completed-p': betas: must be in [0, 1), got -0.6, 0.2 (1 - β times 16)",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RECIPE.at(width=128, **options)
    assert str(caught.value) == message


def test_an_unknown_horizon_rule_without_a_near_one() -> None:
    with pytest.raises(ConfigError) as caught:
        find_horizon_rule("xyz")
    assert str(caught.value) == "horizon_rule: must be one of none, tau-const, power-lines, sde, got 'xyz'"
