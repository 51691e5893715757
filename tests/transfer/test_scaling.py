"""Scaling rules: the published multipliers, the identity at the base width, and a user's own rule."""

import math
from collections.abc import Callable
from dataclasses import astuple

import pytest

from widthwise.proxies.config import KINDS
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Multipliers, Ratios, Rule, Scaled, rule, rules, scaled
from widthwise.transfer.scaling import find_rule

# Worked by hand at w = 4, ℓ = 2, b = 8, t = 16, so s = 2: η, λ if the kind decays, ε, initial std, forward.
RATIOS = Ratios(width=4, depth=2, batch=8, tokens=16)
SAME = (1, 1, 1, 1, 1)
EXPECTED: dict[str, dict[str, tuple[float, ...]]] = {
    "fan-sqrt": {"matrix": (1 / 4, 2, 1, 1 / 2, 1), "readout": (1, 1, 1, 1, 1 / 4)},
    "sp": {"matrix": (1, 1, 1, 1 / 2, 1)},
    "sp-embedding": {"matrix": (1, 1, 1, 1 / 2, 1), "embedding": (4, 1, 1, 1, 1)},
    "mup-coupled": {"matrix": (1 / 4, 1, 1, 1 / 2, 1), "readout": (1, 1, 1, 1, 1 / 4)},
    "mup-independent": {
        "matrix": (1 / 4, 4, 1 / 4, 1 / 2, 1),
        "readout": (1, 1, 1, 1, 1 / 4),
        "gain": (1, 1, 1 / 4, 1, 1),
        "bias": (1, 1, 1 / 4, 1, 1),
    },
    "completep": {
        "matrix": (1 / 4, 4, 1 / 8, 1 / 2, 1),
        "embedding": (1, 1, 1 / 4, 1, 1),
        "readout": (1, 1, 1 / 4, 1, 1 / 4),
        "gain": (1, 1, 1 / 8, 1, 1),
        "bias": (1, 1, 1 / 8, 1, 1),
    },
    "completed-p": {
        "matrix": (0.1767767, 2.8284271, 0.1767767, 1 / 2, 1),
        "embedding": (0.7071068, 0.7071068, 0.3535534, 1, 1),
        "readout": (0.1767767, 2.8284271, 1.4142136, 1 / 4, 1),
        "gain": (0.7071068, 0.7071068, 0.1767767, 1, 1),
        "bias": (0.7071068, 0.7071068, 0.1767767, 1, 1),
    },
    "qiu-compute-optimal": {"matrix": (1 / 4, 1, 1, 1 / 2, 1), "readout": (1 / 4, 1, 1, 1 / 4, 1)},
}
RESIDUAL = {"completep": 1 / 2, "completed-p": 1 / 2, "qiu-compute-optimal": 1 / 2}
ONE_MINUS_BETA = {"completed-p": 1 / 2}
BUILT_IN = tuple(EXPECTED)


@pytest.mark.parametrize("name", BUILT_IN)
def test_multipliers_worked_by_hand(name: str) -> None:
    outcome = rules[name](RATIOS)
    for kind in KINDS:
        expected = EXPECTED[name].get(kind, SAME)
        assert astuple(outcome.kinds[kind]) == pytest.approx(expected, rel=1e-7), kind
    assert outcome.residual_multiplier == RESIDUAL.get(name, 1)
    assert outcome.one_minus_beta == ONE_MINUS_BETA.get(name, 1)
    assert outcome.decay_kinds == ("matrix",)


def test_the_table_has_every_built_in_rule() -> None:
    built_in = [one.name for one in rules.values() if one.function.__module__.startswith("widthwise.")]
    assert tuple(built_in) == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_rule_is_the_identity_where_the_proxy_was_tuned(name: str) -> None:
    why = rules[name](Ratios()).why
    assert rules[name](Ratios()) == Scaled(kinds=dict.fromkeys(KINDS, Multipliers()), why=why)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_rule_says_its_source_its_summary_and_its_reasons(name: str) -> None:
    one = rules[name]
    assert (one.name, bool(one.source), one.summary[-1]) == (name, True, ".")
    assert set(one(Ratios(width=4)).why) == set(KINDS)


def test_completed_p_is_completep_by_the_identity_of_forward_multipliers() -> None:
    # A forward multiplier times a is undone by std/a, η/a, λ·a, ε·a; here a = w takes the readout's 1/w to 1.
    ratios, a = Ratios(width=4, depth=2), 4
    expected, found = rules["completep"](ratios), rules["completed-p"](ratios)
    readout = expected.kinds["readout"]
    traded = Multipliers(
        lr=readout.lr / a,
        weight_decay=readout.weight_decay * a,
        eps=readout.eps * a,
        init_std=readout.init_std / a,
        forward=readout.forward * a,
    )
    assert found.kinds == {**expected.kinds, "readout": traded}
    assert found.residual_multiplier == expected.residual_multiplier


def test_qiu_compute_optimal_gives_the_published_values() -> None:
    # arXiv 2512.05620, Llama: width 512 → 1536, independent λ (with the schedule) 2e-4.
    matrix = rules["qiu-compute-optimal"](Ratios(width=3)).kinds["matrix"]
    lr, weight_decay = 4e-3 * matrix.lr, 2e-4 / 4e-3 * matrix.weight_decay
    assert (lr, lr * weight_decay) == pytest.approx((1.33e-3, 6.7e-5), rel=6e-3)


def test_a_rule_of_the_users_takes_five_lines() -> None:
    @rule("half-way", source="a notebook")
    def half_way(ratios: Ratios) -> Scaled:
        """The matrices' learning rate falls as 1/√w."""
        return scaled(matrix=Multipliers(lr=ratios.width**-0.5))

    assert rules["half-way"] == Rule("half-way", "a notebook", "The matrices' learning rate falls as 1/√w.", half_way)  # fmt: skip # noqa: E501
    assert rules["half-way"](Ratios(width=4)).kinds["matrix"] == Multipliers(lr=0.5)
    assert rules["half-way"](Ratios(width=4)).kinds["gain"] == Multipliers()
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
    one = Rule("mine", "", "", lambda ratios: Scaled(kinds={"matrix": Multipliers(), "bias": Multipliers()}))
    one(Ratios(width=2))


def _unknown_kind() -> None:
    one = Rule("mine", "", "", lambda ratios: scaled(matrix=Multipliers(), decay_kinds=("gian",)))  # type: ignore[arg-type]
    one(Ratios(width=2))


def _impossible() -> None:
    Rule("mine", "", "", lambda ratios: scaled(matrix=Multipliers(lr=math.nan)))(Ratios())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_taken, "rule: 'sp' is already registered"),
        (_incomplete, "rule 'mine': kinds: must cover matrix, embedding, readout, gain, bias, but embedding, readout, gain is missing"),  # noqa: E501
        (_unknown_kind, "rule 'mine': decay_kinds: must be one of matrix, embedding, readout, gain, bias, got 'gian'; did you mean 'gain'?"),  # noqa: E501
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
        f"rule: must be one of {', '.join(rules)} or MODULE:FUNCTION, got 'mup-independant'; "
        "did you mean 'mup-independent'?"
    )
