"""Who proposes: every sampler finds a minimum it can see, and proposes the same after a restart."""

import math
from typing import Any, get_args

import optuna
import pytest

from widthwise.search import SearchSpace, SweepConfig
from widthwise.search.config import Sampler
from widthwise.search.samplers import drawing, quasi_random, sampler
from widthwise.search.space import Point


def proposals(config: SweepConfig, count: int, *, restart_at: int | None = None) -> list[dict[str, Any]]:
    """Propose `count` times, telling a made-up loss; at `restart_at`, a trial dies before its settings are drawn."""
    study = optuna.create_study(directions=["minimize"] * (2 if config.halvings else 1))
    drawn = []
    for place in range(count):
        study.sampler = sampler(config, place)
        trial = study.ask()
        if place == restart_at:
            study.sampler = sampler(config, place)
            trial = optuna.trial.Trial(study, trial._trial_id)
        with drawing():
            tried = config.space.suggest(trial)
            if config.halvings:
                tried["halvings"] = trial.suggest_int("halvings", 0, config.halvings)
        distance = math.log(tried["lr"] / 0.03) ** 2 + 0.1 * math.log(tried["weight_decay"] / 2) ** 2
        loss = distance if tried["lr"] < 0.15 else math.inf
        study.tell(trial, (loss, -tried["halvings"]) if config.halvings else loss)
        drawn.append({**tried, "distance": distance})
    return drawn


@pytest.mark.parametrize("name", get_args(Sampler))
def test_proposals_depend_on_the_seed_alone_and_find_the_minimum(name: Sampler) -> None:
    config = SweepConfig(sampler=name, trials=12, seed=3)
    found = proposals(config, 12)
    assert proposals(config, 12, restart_at=11) == found
    assert proposals(config.model_copy(update={"seed": 4}), 2) != found[:2]
    assert min(one["distance"] for one in found) < 0.6
    assert {one["decay"] for one in found} == {"huber", "l2"}


@pytest.mark.parametrize("name", ["tpe", "gp", "qmc", "random"])
def test_proposals_of_loss_against_tokens_are_of_every_horizon(name: Sampler) -> None:
    known = Point(lr=0.02, weight_decay=1.0, decay="l2")
    config = SweepConfig(sampler=name, trials=12, min_tokens=51_200, warm_start=(known,))
    # A Gaussian process takes a second or more for each.
    count = 6 if name == "gp" else 12
    found = proposals(config, count)
    assert proposals(config, count, restart_at=count - 1) == found
    assert (found[0]["lr"], found[0]["halvings"]) == (0.02, 0)
    assert {one["halvings"] for one in found} == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "qmc", "random"])
def test_a_warm_start_is_not_followed_by_what_the_same_seed_has_proposed_before(name: Sampler) -> None:
    config = SweepConfig(sampler=name, trials=12, seed=3)
    known = tuple(Point(lr=lr, weight_decay=1.0, decay="l2") for lr in (0.02, 0.03))
    before = [one["lr"] for one in proposals(config, 4)]
    warm = [one["lr"] for one in proposals(config.model_copy(update={"warm_start": known}), 4)]
    assert warm[:2] == [0.02, 0.03]
    assert not set(warm[2:]) & set(before)


def test_quasi_random_points_fill_the_space_evenly() -> None:
    space = SearchSpace(lr=(0.01, 0.16), weight_decay=(0.5, 8.0), huber_c=(2.0, 2.0))
    points = [quasi_random(SweepConfig(space=space, seed=1), place) for place in range(16)]
    for name, low in (("lr", 0.01), ("weight_decay", 0.5)):
        octaves = [math.floor(math.log2(point[name] / low)) for point in points]
        # Sixteen points of a Sobol' sequence: as many in each quarter of every axis.
        assert sorted(octaves) == [octave for octave in range(4) for _ in range(4)]
    assert [point["decay"] for point in points].count("l2") == 8
    assert {point["huber_c"] for point in points} == {2.0}


@pytest.mark.parametrize(
    ("fields", "sides"),
    [
        ({"decay": ("huber", "l2")}, (4, 3)),
        ({"decay": ("l2",)}, (5, 4)),
        ({"decay": ("huber",), "lr": (0.1, 0.1)}, (1, 24)),
        ({"decay": ("huber-prox",), "weight_decay": (1.0, 1.0)}, (24, 1)),
    ],
)
def test_a_grid_is_tried_once_and_whole(fields: dict[str, Any], sides: tuple[int, int]) -> None:
    space = SearchSpace(**{"lr": (0.01, 0.08), "huber_c": (1.0, 4.0), **fields})
    rates, decays = sides
    count = rates * decays * len(space.decay)
    found = proposals(SweepConfig(sampler="grid", space=space, trials=count), count)
    seen = {name: {one[name] for one in found} for name in ("lr", "weight_decay", "huber_c")}
    tried = {(one["lr"], one["weight_decay"], one["decay"]) for one in found}
    assert (len(seen["lr"]), len(seen["weight_decay"]), len(tried)) == (rates, decays, count)
    assert seen["huber_c"] == {2.0 if decay.startswith("huber") else None for decay in space.decay}
    if rates > 1:
        assert (min(seen["lr"]), max(seen["lr"])) == space.lr
