"""Verdicts: worlds in which the transfer holds, and every way in which one might falsely say that it does."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.judging import Verdict, gate, judge
from widthwise.transfer.checking.measuring import measure
from widthwise.transfer.checking.observing import Observation
from widthwise.transfer.checking.rounds import Design

CarriedOut = Callable[..., list[Observation]]
MakeDesign = Callable[..., Design]


@pytest.fixture
def judged(carried_out: CarriedOut) -> Callable[..., Verdict]:
    def judge_world(plan: Design | None = None, **truth: float) -> Verdict:
        return judge(measure(carried_out(plan, **truth), base_width=32))

    return judge_world


Judged = Callable[..., Verdict]


def test_a_transfer_that_holds_is_said_to_hold_with_its_numbers(judged: Judged) -> None:
    verdict = judged(lr_drift=0.1)
    assert verdict.outcome == "holds"
    assert [one.check for one in verdict.reasons] == ["evidence"]
    assert verdict.sentence.startswith("holds: from width 32 to 128 the optimal η moves by +0.09 [+0.0")
    assert "(tolerance ±1), and the transferred setting loses at most 0.00" in verdict.sentence


def test_it_is_said_to_hold_nearly_always_where_it_does(judged: Judged) -> None:
    outcomes = [
        judged(lr_optimum=0.2, lr_drift=0.1, decay_drift=-0.1, draw=draw).outcome for draw in range(40)
    ]
    assert outcomes.count("holds") >= 34
    assert "fails" not in outcomes


FALSE: list[Any] = [
    pytest.param({"coordinate": 0.5}, "fails", "coordinates", id="a layer that grows with the width"),
    pytest.param({"coordinate": -0.5}, "fails", "coordinates", id="a layer that fades with the width"),
    pytest.param(
        {"coordinate_noise": 1.0}, "inconclusive", "coordinates", id="a layer of which little is known"
    ),
    pytest.param({"lr_drift": -1.5}, "fails", "drift", id="an optimum that runs away"),
    pytest.param(
        {"lr_drift": -0.7, "seed_noise": 0.003}, "fails", "regret", id="a loss at the largest width"
    ),
    pytest.param({"decay_drift": 0.9, "seed_noise": 0.003}, "fails", "regret", id="another exponent of λ"),
    pytest.param({"decay_optimum": -3.0}, "inconclusive", "base", id="λ too high at the base"),
    pytest.param({"decay_optimum": 3.0}, "inconclusive", "base", id="λ too low at the base"),
    pytest.param({"lr_optimum": 2.0}, "inconclusive", "base", id="η too low at the base"),
    pytest.param({"curvature": 0.0}, "inconclusive", "base", id="losses that say nothing"),
    pytest.param({"noise": 0.1}, "inconclusive", "base", id="too much noise"),
    pytest.param({"wall": 0.0}, "inconclusive", "base", id="a recipe that diverges"),
]


@pytest.mark.parametrize(("truth", "outcome", "check"), FALSE)
def test_a_transfer_that_does_not_hold_is_never_said_to(
    judged: Judged, truth: dict[str, float], outcome: str, check: str
) -> None:
    verdicts = [judged(**truth, draw=draw) for draw in range(20)]
    assert "holds" not in {one.outcome for one in verdicts}
    agreeing = [one for one in verdicts if (one.outcome, one.reasons[0].check) == (outcome, check)]
    assert len(agreeing) >= 15, [one.sentence for one in verdicts if one not in agreeing]


@pytest.mark.parametrize(
    ("alone", "said"),
    [
        ({"embedding": (0.0, -0.01, 0.01), "logits": (-0.06, -0.09, -0.03)}, None),
        ({"embedding": (0.09, -0.9, 1.1), "logits": (-0.06, -0.09, -0.03)}, "embedding +0.09 [-0.90, +1.10]"),
        ({"embedding": (0.0, -0.01, 0.01), "logits": (-0.06, -0.11, -0.01)}, "logits -0.06 [-0.11, -0.01]"),
        # A file of an earlier version has the wider intervals alone.
        ({}, "logits -0.06 [-0.12, +0.00]"),
    ],
)
def test_layers_keep_their_change_where_each_ones_own_interval_is_within(
    carried_out: CarriedOut, alone: dict[str, tuple[float, float, float]], said: str | None
) -> None:
    def slopes(ends: dict[str, tuple[float, float, float]]) -> dict[str, Estimate]:
        return {layer: Estimate(value=one[0], low=one[1], high=one[2]) for layer, one in ends.items()}

    together = slopes({"embedding": (0.0, -0.02, 0.02), "logits": (-0.06, -0.12, 0.0)})
    found = measure(carried_out(), base_width=32)
    verdict = judge(replace(found, coordinate_slopes=together, coordinate_slopes_alone=slopes(alone)))
    if said is None:
        assert verdict.outcome == "holds"
        return
    layer, exponent = said.split(" ", 1)
    assert verdict.sentence == (
        f"inconclusive: the change of {layer} in the first steps follows width^{exponent}, tolerance ±0.1: not clear; "
        "add seeds, or a wider width"
    )


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_seeds_say_nothing(judged: Judged, design: MakeDesign, count: int) -> None:
    verdict = judged(design(seeds=tuple(range(count))))
    assert verdict.outcome == "inconclusive"
    assert f"{count} seed(s) at each width, at least 3 are needed: add seeds" in {
        one.text for one in verdict.reasons
    }


def test_a_narrow_grid_far_from_the_optimum_is_extended_until_it_is_bracketed(
    judged: Judged, design: MakeDesign, carried_out: CarriedOut
) -> None:
    plan = design(points=3)
    runs = carried_out(plan, decay_optimum=0.3, lr_drift=0.9, seed_noise=0.2, curvature=0.01, noise=1e-4)
    offsets = {one.setting.lr_octaves for one in runs if one.setting.width == 128}
    assert max(offsets) == 3.0
    assert judge(measure(runs, base_width=32)).outcome == "holds"


def test_what_is_open_is_said_with_what_to_add(judged: Judged) -> None:
    said = {one.text for one in judged(curvature=0.0, noise=0.05).reasons}
    head = "what the transferred λ loses at width 64 is open: "
    assert f"{head}the loss does not curve upwards beyond doubt; add points, or seeds" in said


def test_a_wider_model_that_diverges_fails(carried_out: CarriedOut) -> None:
    runs = [
        replace(one, loss=None) if one.setting.is_transferred and one.setting.width == 128 else one
        for one in carried_out()
    ]
    verdict = judge(measure(runs, base_width=32))
    assert verdict.sentence == "fails: 3 runs diverged at width 128 with the transferred setting"


def test_a_decay_that_loses_is_said_with_what_it_loses(carried_out: CarriedOut) -> None:
    verdict = judge(measure(carried_out(decay_drift=0.8, seed_noise=0.003), base_width=32))
    assert verdict.outcome == "fails"
    assert re.search(
        r"at width 128 the transferred λ loses 0\.0\d{3} \(at least 0\.0\d{3}\) nats per token to 2\^\+1\.\d times it, "
        r"tolerance 0\.00\d\d \(2 seed deviations\)",
        verdict.sentence,
    )


@pytest.mark.parametrize(
    ("horizons", "sentence"),
    [
        ({32: 2.0, 64: 1.5}, None),
        (
            {32: 2.0, 64: 1.0},
            "inconclusive: Σηλ is 1 at width 64 and must be >= 1.5: weight decay has no time to act; tune the "
            "recipe over 310,000 tokens instead of 204,800",
        ),
        (
            {32: 0.0, 64: 0.0},
            "inconclusive: Σηλ is 0 at width 32 and must be >= 1.5: weight decay has no time to act; the recipe has "
            "no weight decay to transfer",
        ),
    ],
)
def test_too_short_a_horizon_is_refused_before_any_training(
    horizons: dict[int, float], sentence: str | None
) -> None:
    verdict = gate(horizons, 204_800)
    assert (verdict.sentence if verdict else None) == sentence
