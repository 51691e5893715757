"""Trials that fall behind are stopped, and good slow starters are not."""

import math
from collections.abc import Callable

from widthwise.search import SearchSpace
from widthwise.search.ledger import Ledger
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
    # A repeated report, of a worker that was started again, is not an event.
    assert not ledger.report(bad, 21, 9.0)
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


def test_a_trial_at_its_full_budget_is_not_stopped(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    steps = ledger.config.horizon.steps
    for loss in (1.0, 2.0, 3.0, 4.0):
        trial = ledger.next()
        assert not isinstance(trial, str)
        ledger.hyperparameters(trial)
        assert not ledger.report(trial.number, steps, loss)
        ledger.finish(trial.number, "completed", {"loss": loss})
