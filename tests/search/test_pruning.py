"""Trials that fall behind are stopped, and good slow starters are not."""

import math
import random
from collections.abc import Callable

import optuna
from optuna.pruners import SuccessiveHalvingPruner

from widthwise.search import SearchSpace
from widthwise.search.ledger import Ledger
from widthwise.search.pruning import is_behind
from widthwise.search.space import Point

from .conftest import STEPS
from .playing import begin, complete, play

ONE_ARM = {"space": SearchSpace(decay=("l2",)), "trials": 8}


def test_trials_that_fall_behind_are_stopped(opened: Callable[..., Ledger]) -> None:
    ledger = opened(seeds=2, finalists=1, **ONE_ARM)
    for number in range(3):
        good, tried = begin(ledger)
        # A third of the way is the first rung, the next is twice as far. The first three are spared.
        worse = float(number)
        assert [ledger.report(good, step, 3 + worse - step / STEPS) for step in (10, 20, 40, 60)] == [
            False
        ] * 4
        complete(ledger, good, tried)
    bad, _ = begin(ledger)
    assert not ledger.report(bad, 10, 9.0)
    assert not ledger.report(bad, 20, math.nan)
    assert ledger.report(bad, 21, 9.0)
    # Who was started again asks again.
    assert not ledger.report(bad, 10, 9.0)
    assert ledger.report(bad, 21, 9.0)
    ledger.finish(bad, "stopped", {"loss": 9.0, "tokens": 21504, "seconds": 0.5})
    play(ledger, 4)
    confirmation, _ = begin(ledger)
    assert not any(ledger.report(confirmation, step, 9.0) for step in (20, 40, 60))


def test_every_form_of_decay_keeps_three_trials(opened: Callable[..., Ledger]) -> None:
    starts = [Point(lr=0.03, weight_decay=1.0, decay="l2")] * 3 + [
        Point(lr=0.03, weight_decay=1.0, decay="huber", huber_c=2.0)
    ]
    ledger = opened(warm_start=tuple(starts))
    for _ in range(3):
        number, tried = begin(ledger)
        ledger.report(number, 20, 2.0)
        complete(ledger, number, tried)
    number, tried = begin(ledger)
    assert tried.decay == "huber"
    assert not any(ledger.report(number, step, 9.0) for step in (20, 40))


def test_without_pruning_nothing_is_stopped(opened: Callable[..., Ledger]) -> None:
    ledger = opened(prune=False, **ONE_ARM)
    play(ledger, 3)
    good, _ = begin(ledger)
    ledger.report(good, 20, 2.0)
    bad, _ = begin(ledger)
    assert not any(ledger.report(bad, step, 9.0) for step in (20, 40, 60))


def test_the_rungs_survive_a_restart(opened: Callable[..., Ledger]) -> None:
    first = opened(**ONE_ARM)
    play(first, 3)
    good, _ = begin(first)
    first.report(good, 20, 2.0)
    first.close()
    second = opened(resume=True, **ONE_ARM)
    begin(second)
    bad, _ = begin(second)
    assert second.report(bad, 20, 9.0)


def test_who_was_killed_before_the_answer_has_it_after_the_restart(opened: Callable[..., Ledger]) -> None:
    first = opened(**ONE_ARM)
    for loss in (1.0, 2.0, 3.0):
        number, tried = begin(first)
        first.report(number, 20, loss)
        complete(first, number, tried)
    bad, _ = begin(first)
    assert not first.report(bad, 10, 9.0)
    assert first.report(bad, 20, 9.0)
    # Tune has yet to stop it.
    first.close()
    second = opened(resume=True, **ONE_ARM)
    assert begin(second)[0] == bad
    # From its last checkpoint.
    assert not second.report(bad, 10, 9.0)
    assert second.report(bad, 20, 9.0)


def test_trials_are_stopped_as_optunas_pruner_stops_them() -> None:
    chance, stopped = random.Random(1), 0
    for _ in range(20):
        study = optuna.create_study(pruner=SuccessiveHalvingPruner(min_resource=20, reduction_factor=2))
        curves: list[dict[int, float]] = []
        for _ in range(12):
            trial, curve = study.ask(), dict[int, float]()
            for step in range(8, 121, 8):
                curve[step] = chance.random()
                trial.report(curve[step], step)
                is_stopped = trial.should_prune()
                assert is_behind(curve, curves, first=20) == is_stopped
                if is_stopped:
                    break
            stopped += is_stopped
            curves.append(curve)
    assert 100 < stopped < 240


def test_the_first_evaluation_beyond_a_rung_counts() -> None:
    assert is_behind({12: 1.6}, [{12: 1.5, 15: 9.0}], first=10)
    assert not is_behind({12: 1.6}, [{9: 0.5, 12: 1.7, 15: 0.5}], first=10)
    assert not is_behind({12: 1.0, 15: 9.0}, [{12: 1.5}], first=10)
    # It may lie beyond two.
    assert is_behind({8: 1.0, 21: 1.6}, [{10: 2.0, 20: 1.5}], first=10)
    assert not is_behind({8: 1.0, 21: 1.6}, [{10: 2.0}], first=10)


def test_a_trial_at_its_full_budget_is_not_stopped(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    steps = ledger.config.horizon.steps
    for loss in (1.0, 2.0, 3.0, 4.0):
        trial = ledger.next()
        assert not isinstance(trial, str)
        ledger.hyperparameters(trial)
        assert not ledger.report(trial.number, steps, loss)
        ledger.finish(trial.number, "completed", {"loss": loss})
