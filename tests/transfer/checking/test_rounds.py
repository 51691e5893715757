"""Which runs are wanted: stages, extensions and ends, whatever the order in which runs end."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from widthwise.transfer.checking.observing import Observation, Setting
from widthwise.transfer.checking.rounds import Design, next_offset, wanted

CarriedOut = Callable[..., list[Observation]]
MakeDesign = Callable[..., Design]


def test_a_settings_name_says_all_of_it(design: MakeDesign) -> None:
    plan = design(points=9, steps={"lr": 0.3, "decay": 1 / 3})
    for axis in ("lr", "decay"):
        for octaves in plan.offsets(axis):
            setting = Setting(width=64, seed=3, **{f"{axis}_octaves": octaves})
            assert Setting.of(setting.key) == setting
    assert Setting(width=64, seed=3, lr_octaves=-0.5).key == "width64_lr-0.5_decay0_seed3"


def test_the_transferred_settings_come_first_then_the_base_then_the_rest(
    design: MakeDesign, world: Any
) -> None:
    plan, truth, seen, stages = design(), world(), {}, []
    while todo := wanted(plan, seen):
        stages.append(todo)
        seen |= {setting: truth.observe(setting) for setting in todo}
    first, second, third = stages
    assert [(one.width, one.seed) for one in first] == [(w, s) for w in (128, 64, 32) for s in range(3)]
    assert all(one.is_transferred for one in first)
    assert {one.width for one in second} == {32}
    assert {one.width for one in third} == {64, 128}
    assert len(second) == len(third) / 2 == 3 * 2 * 4


@pytest.mark.parametrize(
    ("truth", "widths"),
    [({"coordinate": 0.5}, set()), ({"decay_optimum": -3.0}, {32}), ({"wall": 0.0}, set())],
    ids=["a broken parametrisation", "λ not tuned at the base", "a recipe that diverges"],
)
def test_nothing_is_run_once_the_verdict_stands(
    carried_out: CarriedOut, truth: dict[str, float], widths: set[int]
) -> None:
    runs = carried_out(**truth)
    assert {one.setting.width for one in runs if not one.setting.is_transferred} == widths
    assert {one.setting.width for one in runs} == {32, 64, 128}


def test_a_full_design_is_carried_out_even_where_the_verdict_stands(
    design: MakeDesign, carried_out: CarriedOut
) -> None:
    broken = carried_out(design(full=True), coordinate=0.5)
    assert {one.setting for one in broken} == {one.setting for one in carried_out()}
    assert len(broken) == 81


def test_the_order_in_which_runs_end_changes_nothing(
    design: MakeDesign, carried_out: CarriedOut, world: Any
) -> None:
    plan = design(points=3)
    truth = {"lr_drift": 0.9, "seed_noise": 0.2, "curvature": 0.01, "noise": 1e-4}
    whole, observer = {one.setting for one in carried_out(plan, **truth)}, world(**truth)
    generator, seen = np.random.default_rng(0), {}
    # One run at a time, any of those wanted: as after kills and resumptions.
    while todo := wanted(plan, seen):
        assert set(todo) <= whole
        setting = todo[generator.integers(len(todo))]
        seen[setting] = observer.observe(setting)
    assert set(seen) == whole
    assert max(one.lr_octaves for one in whole) > 1


def losses(**means: float | None) -> dict[float, dict[int, float | None]]:
    """Return a line from ``at_MINUS_or_plus_octaves`` names; None is a seed that diverged."""
    places = {name: float(name.replace("m", "-").replace("p", "")) for name in means}
    return {places[name]: {0: loss, 1: loss} for name, loss in means.items()}


@pytest.mark.parametrize(
    ("line", "further"),
    [
        (losses(m1=1.2, p0=1.0, p1=1.1), None),
        (losses(m1=1.2, p0=1.1, p1=1.0), 2.0),
        (losses(m1=1.0, p0=1.1, p1=1.2), -2.0),
        (losses(m1=1.2, p0=1.1, p1=None), 0.5),
        (losses(m1=None, p0=1.0, p1=1.1), -0.5),
        (losses(m4=1.0, m3=1.1, p0=1.3), None),
        (losses(m1=None, p0=None, p1=None), None),
    ],
    ids=["inside", "above", "below", "before a wall", "after a wall", "at the limit", "nothing"],
)
def test_a_line_is_extended_where_its_lowest_loss_is_at_an_end(
    line: dict[float, dict[int, float | None]], further: float | None
) -> None:
    assert next_offset(line, step=1.0, limit=4.0) == further


def test_a_wall_is_approached_once() -> None:
    line = {**losses(m1=1.2, p0=1.1, p1=None), 0.5: {0: 1.0, 1: 1.0}}
    assert next_offset(line, step=1.0, limit=4.0) is None
