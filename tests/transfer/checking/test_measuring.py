"""What a check measures, in worlds whose drifts, exponents and coordinates are known."""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from statistics import fmean

import numpy as np
import pytest

from widthwise.transfer.checking.estimates import Estimate, mean_over_seeds
from widthwise.transfer.checking.findings import Measured
from widthwise.transfer.checking.measuring import decay_difference, measure
from widthwise.transfer.checking.observing import Observation, Setting, line, observed

CarriedOut = Callable[..., list[Observation]]


def measured_in(carried_out: CarriedOut, **truth: float) -> Measured:
    return measure(carried_out(**truth), base_width=32)


def covers(estimate: Estimate | None, truth: float, *, closely: float) -> bool:
    assert estimate is not None
    return estimate.low <= truth <= estimate.high and abs(estimate.value - truth) < closely


def test_drifts_and_exponents_are_found(carried_out: CarriedOut) -> None:
    found = measured_in(carried_out, lr_drift=-0.4, decay_drift=0.3, singular=0.9, rule=0.5, kappa=-0.1)
    assert covers(found.lr_drift, -0.4, closely=0.1)
    assert covers(found.decay_drift, 0.3, closely=0.15)
    assert found.rule_decay_exponent == pytest.approx(0.5)
    assert covers(found.loss_decay_exponent, 0.8, closely=0.15)
    assert covers(found.singular_exponent, 0.9, closely=0.05)
    assert covers(found.singular_decay_exponent, 0.8, closely=0.1)
    assert found.kappa_exponent is not None
    assert found.kappa_exponent.value == pytest.approx(-0.1)
    assert found.seeds == 3


def test_the_corrected_decay_keeps_the_decay_that_acts(carried_out: CarriedOut) -> None:
    found = measured_in(carried_out, kappa=-0.1)
    acting = [at.corrected_decay * at.kappa for at in found.widths if at.corrected_decay and at.kappa]
    by_rule = [at.weight_decay * at.kappa for at in found.widths if at.kappa]
    assert acting == pytest.approx([2.0 * 0.9, *(2.0 * 0.9 * one for one in (2**0.5, 2.0))])
    assert by_rule != pytest.approx(acting)


@pytest.mark.parametrize(("truth", "lopsided"), [(-0.8, 0.0), (0.0, 0.01), (0.6, 0.01)])
def test_the_interval_of_a_drift_covers_the_truth(
    carried_out: CarriedOut, truth: float, lopsided: float
) -> None:
    found = [
        measured_in(carried_out, lr_drift=truth, lopsided=lopsided, noise=0.005, draw=draw).lr_drift
        for draw in range(60)
    ]
    known = [one for one in found if one is not None]
    assert len(known) > 50
    # Binomial: 95 % of 60 less three standard deviations.
    assert sum(one.low <= truth <= one.high for one in known) >= 0.86 * len(known)


def test_a_run_is_one_point_however_many_matrices_it_has(carried_out: CarriedOut) -> None:
    runs = carried_out()
    alike = [
        replace(one, top_singular_values={f"{n}": fmean(one.top_singular_values.values()) for n in range(9)})
        for one in runs
    ]
    few = [replace(one, top_singular_values={"0": one.top_singular_values["0"]}) for one in alike]
    many_slope = measure(alike, base_width=32).singular_exponent
    assert many_slope == measure(few, base_width=32).singular_exponent


def test_layers_that_did_not_move_yet_are_passed_over(carried_out: CarriedOut) -> None:
    # Behind a readout that starts at zero, the first step changes the logits alone.
    runs = [
        replace(one, coordinates={**one.coordinates, "block": [0.0, *[0.2] * 9], "still": [0.0] * 10})
        for one in carried_out()
    ]
    slopes = measure(runs, base_width=32).coordinate_slopes
    assert set(slopes) == {"embedding", "logits", "block"}
    assert slopes["block"].value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("truth", [0.0, 0.5, -0.3])
def test_a_layers_exponent_is_found(carried_out: CarriedOut, truth: float) -> None:
    found = measured_in(carried_out, coordinate=truth).coordinate_slopes["logits"]
    assert covers(found, truth, closely=0.02)


def test_the_three_numbers_of_a_transfer(carried_out: CarriedOut) -> None:
    straight = measured_in(carried_out, lr_drift=-0.5, noise=1e-6, curvature=0.04).quality
    assert straight is not None
    assert straight.fit == pytest.approx(0.0, abs=1e-3)
    assert straight.robustness == pytest.approx(0.04, rel=1e-2)
    assert straight.penalty == pytest.approx(0.04 * 1.0**2, rel=1e-2)
    # Optima at 0, 0.6 and 0 octaves: a line misses them by 0.2, 0.4 and 0.2, on one degree of freedom.
    bent = measured_in(carried_out, bend=0.6, noise=1e-6).quality
    assert bent is not None
    assert bent.fit == pytest.approx(sqrt(0.2**2 + 0.4**2 + 0.2**2), rel=1e-2)


def test_what_another_decay_would_change_is_read_off_the_line() -> None:
    losses: dict[float, dict[int, float | None]] = {
        -1.0: {0: 2.3, 1: 2.5},
        0.0: {0: 2.2, 1: 2.4},
        1.0: {0: 2.1, 1: 2.36},
        2.0: {0: None, 1: 2.5},
    }
    measured, between = decay_difference(losses, 1.0), decay_difference(losses, 0.5)
    assert measured is not None
    assert between is not None
    assert measured.value == pytest.approx(np.mean([-0.1, -0.04]))
    # The first seed's losses lie on a line, the second's on 2.4 - 0.07·x + 0.03·x².
    bowl, chord = mean_over_seeds([-0.05, -0.0275]), mean_over_seeds([-0.05, -0.02])
    assert between.value == pytest.approx(bowl.value)
    assert between.low == pytest.approx(min(bowl.low, chord.low))
    assert between.high == pytest.approx(max(bowl.high, chord.high))
    assert decay_difference(losses, 1.5) is None
    assert decay_difference({**losses, 0.0: {0: None, 1: 2.4}}, 0.5) is None


def test_a_line_has_the_runs_that_differ_along_it_alone(carried_out: CarriedOut) -> None:
    runs = carried_out()
    along_lr, along_decay = line(runs, 64, "lr"), line(runs, 64, "decay")
    assert sorted(along_lr) == sorted(along_decay) == [-2, -1, 0, 1, 2]
    assert along_lr[0.0] == along_decay[0.0]
    assert along_lr[1.0] != along_decay[1.0]
    assert all(set(by_seed) == {0, 1, 2} for by_seed in along_lr.values())


def test_an_outcome_is_read_as_the_search_tells_it() -> None:
    parameter = {"kind": "matrix", "size": 4, "top_singular_value": 1.5}
    measured = {
        "diagnostics": {
            "parameters": {
                "up": {**parameter, "spectrum": [1.0, 0.5]},
                "gone": {**parameter, "top_singular_value": None, "spectrum": None},
                "large": parameter,
                "readout": {**parameter, "kind": "readout"},
            },
            "kinds": {"matrix": {"kappa": 0.8, "rms_ratio": 1.1, "update_ratio_over_law": 0.9}},
        },
        "coordinate_deltas": {"logits": [0.1, None]},
    }
    setting = Setting(width=64, seed=1, lr_octaves=-0.5)
    found = observed(setting, 0.01, 2.0, 2.5, measured)
    assert found == Observation(
        setting=setting,
        lr=0.01,
        weight_decay=2.0,
        loss=2.5,
        top_singular_values={"up": 1.5, "large": 1.5},
        spectra={"up": [1.0, 0.5]},
        kappa=0.8,
        rms_ratio=1.1,
        update_ratio=0.9,
        coordinates={"logits": [0.1, 0.0]},
    )
    assert observed(setting, 0.01, 2.0, None, {}) == Observation(
        setting=setting, lr=0.01, weight_decay=2.0, loss=None
    )
