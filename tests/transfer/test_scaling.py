"""Scaling rules: the published multipliers, the identity at the base width, and a user's own rule."""

import math
from collections.abc import Callable

import pytest

from widthwise.proxies.config import KINDS
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Multipliers, Ratios, Rule, Scaled, rule, rules, scaled
from widthwise.transfer.scaling import VECTOR, find_rule

# At four times the width: η, λ, ε, initial standard deviation, forward.
MUP_READOUT = Multipliers(lr=1, weight_decay=0, eps=1, init_std=1, forward=0.25)
EXPECTED = {
    ("fan-sqrt", "matrix"): Multipliers(lr=0.25, weight_decay=2, eps=1, init_std=0.5, forward=1),
    ("fan-sqrt", "readout"): MUP_READOUT,
    ("sp", "matrix"): Multipliers(lr=1, weight_decay=1, eps=1, init_std=0.5, forward=1),
    ("sp", "readout"): VECTOR,
    ("mup-coupled", "matrix"): Multipliers(lr=0.25, weight_decay=1, eps=1, init_std=0.5, forward=1),
    ("mup-coupled", "readout"): MUP_READOUT,
    ("mup-independent", "matrix"): Multipliers(lr=0.25, weight_decay=4, eps=0.25, init_std=0.5, forward=1),
    ("mup-independent", "readout"): MUP_READOUT,
}
BUILT_IN = ("fan-sqrt", "sp", "mup-coupled", "mup-independent")


@pytest.mark.parametrize("name", BUILT_IN)
def test_multipliers_at_four_times_the_width(name: str) -> None:
    outcome = rules[name](Ratios(width=4))
    vector_like = dict.fromkeys(("embedding", "gain", "bias"), VECTOR)
    assert outcome.kinds == vector_like | {kind: EXPECTED[name, kind] for kind in ("matrix", "readout")}
    assert outcome.residual_multiplier == 1


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_rule_is_the_identity_where_the_proxy_was_tuned(name: str) -> None:
    outcome = rules[name](Ratios())
    assert outcome.kinds == {kind: Multipliers() if kind == "matrix" else VECTOR for kind in KINDS}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_rule_says_its_source_its_summary_and_its_reasons(name: str) -> None:
    one = rules[name]
    assert (one.name, bool(one.source), one.summary[-1]) == (name, True, ".")
    assert set(one(Ratios(width=4)).why) == set(KINDS)


def test_a_rule_of_the_users_takes_five_lines() -> None:
    @rule("half-way", source="a notebook")
    def half_way(ratios: Ratios) -> Scaled:
        """The matrices' learning rate falls as 1/√w."""
        return scaled(matrix=Multipliers(lr=ratios.width**-0.5))

    assert rules["half-way"] == Rule("half-way", "a notebook", "The matrices' learning rate falls as 1/√w.", half_way)  # fmt: skip # noqa: E501
    assert rules["half-way"](Ratios(width=4)).kinds["matrix"] == Multipliers(lr=0.5)
    assert rules["half-way"](Ratios(width=4)).kinds["gain"] == VECTOR
    # The same function again, as when a notebook's cell runs twice.
    assert rule("half-way", source="a notebook")(half_way) is half_way


def test_rules_are_read_only() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        rules["mine"] = rules["sp"]  # type: ignore[index]


def _unknown() -> None:
    find_rule("mup-independant")


def _taken() -> None:
    rule("sp", source="elsewhere")(lambda ratios: scaled(matrix=Multipliers()))


def _incomplete() -> None:
    one = Rule("mine", "", "", lambda ratios: Scaled(kinds={"matrix": Multipliers(), "bias": VECTOR}))
    one(Ratios(width=2))


def _impossible() -> None:
    Rule("mine", "", "", lambda ratios: scaled(matrix=Multipliers(lr=math.nan)))(Ratios())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_taken, "rule: 'sp' is already registered"),
        (_incomplete, "rule 'mine': kinds: must cover matrix, embedding, readout, gain, bias, but embedding, readout, gain is missing"),  # noqa: E501
        (_impossible, "rule 'mine': matrix.lr: must be finite and >= 0, got nan"),
        (lambda: Ratios(width=0), "ratios.width: must be finite and > 0, got 0"),
        (lambda: Ratios(tokens=math.inf), "ratios.tokens: must be finite and > 0, got inf"),
    ],
)  # fmt: skip
def test_faults_are_named(fault: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fault()
    assert str(caught.value) == message


def test_an_unknown_rule_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        _unknown()
    # Other tests register rules too, so that the list is the registry's.
    assert str(caught.value) == (
        f"rule: must be one of {', '.join(rules)}, got 'mup-independant'; did you mean 'mup-independent'?"
    )
