"""The sweep's books, driven by hand over a real study: what comes next, and what is recommended."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState

from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search import SearchSpace, sweep
from widthwise.search.executing import Placement
from widthwise.search.ledger import Ledger
from widthwise.search.outlook import Outlook
from widthwise.search.samplers import sampler
from widthwise.search.space import Point
from widthwise.search.status import study_status
from widthwise.search.stored import stored_config
from widthwise.search.sweeping import result_of

from .conftest import STEPS, configured
from .playing import begin, complete, made_up_loss, play, quadratic, states


def test_proposals_come_first_then_the_finalists_with_other_seeds(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    assert ledger.outlook() == Outlook(6 + 2 * 2, None)
    play(ledger, 5)
    last, tried = begin(ledger)
    assert ledger.next() == "wait"
    complete(ledger, last, tried)
    proposals = ledger.records()
    best, second = sorted(proposals, key=lambda record: record["loss"])[:2]
    assert [trial.number for trial in ledger.finalists()] == [best["number"], second["number"]]
    assert not ledger.is_finished()
    play(ledger, 4)
    assert ledger.next() == "finished"
    assert ledger.is_finished()

    records = ledger.records()
    assert [record["number"] for record in records] == list(range(10))
    assert [record["seed"] for record in records] == [5] * 6 + [6, 7, 6, 7]
    confirmed = [best["number"]] * 2 + [second["number"]] * 2
    assert [record["confirms"] for record in records] == [None] * 6 + confirmed
    for record in records[6:]:
        assert record["hyperparameters"] == records[record["confirms"]]["hyperparameters"]
    assert [trial.number for trial in ledger.confirmations(best["number"])] == [6, 7]
    assert [trial.number for trial in ledger.finalists()] == [best["number"], second["number"]]


def test_the_study_is_optunas_and_its_best_value_is_the_best_record(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    play(ledger, 10)
    study = optuna.load_study(storage=f"sqlite:///{ledger.out / 'study.db'}", study_name="widthwise")
    assert study.best_value == min(record["loss"] for record in ledger.records())
    ledger.close()
    assert stored_config(ledger.out) == ledger.config


def test_a_checkpoint_that_a_stopped_trial_wrote_after_its_end_is_removed(
    opened: Callable[..., Ledger],
) -> None:
    ledger = opened()
    stopped, running = (begin(ledger)[0] for _ in range(2))
    ledger.finish(stopped, "stopped", {"loss": 4.5, "tokens": 30720, "seconds": 0.75})
    folders = [ledger.folder(number) for number in (stopped, running)]
    for tidied in (ledger.tidy, lambda: opened(resume=True)):
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        tidied()
        assert [folder.exists() for folder in folders] == [False, True]
        ledger.close()


def test_trials_jsonl_says_how_every_trial_ended(opened: Callable[..., Ledger]) -> None:
    ledger = opened(space=SearchSpace(decay=("huber",)), trials=8)
    running = [begin(ledger) for _ in range(5)]
    numbers = [number for number, _ in running]
    ledger.report(0, 30, 3.5)
    ledger.finish(0, "completed", {"loss": 3.25, "tokens": 61440, "seconds": 1.5})
    ledger.report(1, 30, 4.5)
    ledger.finish(1, "stopped", {"loss": 4.5, "tokens": 30720, "seconds": 0.75})
    ledger.finish(2, "diverged", {"loss": math.inf, "tokens": 20480, "seconds": 0.5})
    ledger.finish(3, "failed", {"error": "OSError: no space left"})

    assert numbers == [0, 1, 2, 3, 4]
    ended = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL]
    assert states(ledger) == [*ended, TrialState.RUNNING]
    assert ledger.study.get_trials()[2].value == math.inf
    lines = [json.loads(line) for line in (ledger.out / "trials.jsonl").read_text().splitlines()]
    assert lines == ledger.records()
    common = {"width": 32, "seed": 5, "confirms": None, "fitted": False, "horizon": 1024 * STEPS}
    outcomes = [
        {"status": "completed", "loss": 3.25, "tokens": 61440, "seconds": 1.5, "error": None},
        {"status": "stopped", "loss": 4.5, "tokens": 30720, "seconds": 0.75, "error": None},
        {"status": "diverged", "loss": None, "tokens": 20480, "seconds": 0.5, "error": None},
        {"status": "failed", "loss": None, "tokens": 0, "seconds": 0.0, "error": "OSError: no space left"},
    ]
    curves = [[[30, 3.5]], [[30, 4.5]], [], []]
    assert lines == [
        {
            "number": number,
            "hyperparameters": tried.model_dump(include={"lr", "weight_decay", "decay", "huber_c"}),
            **common,
            **outcome,
            "curve": curve,
        }
        for (number, tried), outcome, curve in zip(running, outcomes, curves, strict=False)
    ]
    # Diverged and stopped ones are no finalists.
    assert [trial.number for trial in ledger.finalists()] == [0]


def test_confirming_runs_measure_what_a_target_is_watched_by(opened: Callable[..., Ledger]) -> None:
    ledger = opened(trials=2, finalists=1, seeds=2)
    play(ledger, 1)
    course = [{"step": 30, "loss": 2.0, "gradient_norm": 0.5, "kinds": {}}]
    measures = []
    for measured in ({"grad_norm": 1.0}, {"course": course}):
        trial = ledger.next()
        assert isinstance(trial, Trial)
        measures.append(ledger.run(trial).options["diagnostics"])
        loss = made_up_loss(ledger.hyperparameters(trial))
        outcome = {"loss": loss, "tokens": 61440, "seconds": 1.5, "measured": measured}
        ledger.finish(trial.number, "completed", outcome)
    assert measures == [False, True]
    [finalist] = result_of(ledger, "abc").finalists
    assert finalist.courses == {6: course}
    assert "courses" not in finalist.as_json()


def test_a_grid_is_tried_whole_whatever_fails(opened: Callable[..., Ledger]) -> None:
    fields: dict[str, Any] = {"sampler": "grid", "trials": 8, "seeds": 1}
    ledger = opened(**fields)
    running = [begin(ledger) for _ in range(3)]
    ledger.finish(0, "failed", {"error": "OSError: no space left"})
    ledger.close()
    with pytest.raises(ConfigError) as caught:
        opened(resume=True, **fields | {"trials": 12})
    rule = f"trials: must be as the sweep in {ledger.out} was started, 8, got 12"
    assert str(caught.value) == rule
    again = opened(resume=True, **fields)
    # The two that were interrupted, what failed, and the rest.
    played = play(again, 8)
    assert [one["number"] for one in played] == [1, 2, *range(3, 9)]
    assert again.is_finished()
    points = {(one["lr"], one["weight_decay"], one["decay"]) for one in played}
    assert points == {
        (point["lr"], point["weight_decay"], point["decay"]) for point in again.config.space.grid(8)
    }
    assert running[0][1].lr == played[2]["lr"]


def test_the_minimum_of_the_fitted_quadratic_is_tried_with_all_seeds_and_recommended(
    opened: Callable[..., Ledger],
) -> None:
    ledger = opened(**quadratic())
    play(ledger, 12)
    fitted, *confirmations = play(ledger, 5)
    assert (ledger.outlook().trials, ledger.next(), ledger.is_finished()) == (0, "finished", True)
    # The losses are a quadratic in (log η, log λ) with its minimum at (0.03, 1).
    assert (fitted["lr"], fitted["weight_decay"]) == pytest.approx((0.03, 1.0))
    best = ledger.finalists()[0].number
    records = ledger.records()
    assert [(one["seed"], one["confirms"], one["fitted"]) for one in records[12:]] == [
        (5, None, True),
        (6, best, False),
        (7, best, False),
        (6, 12, False),
        (7, 12, False),
    ]
    assert [one["lr"] for one in confirmations[2:]] == [fitted["lr"]] * 2
    result = result_of(ledger, "data")
    assert (result.best.number, result.best.fitted, list(result.best.losses)) == (12, True, [5, 6, 7])
    assert (result.luckiest, [one.fitted for one in result.finalists]) == (best, [True, False])
    assert result.best_by_decay == {"l2": records[best]["loss"]}


def test_a_fitted_minimum_that_the_seeds_do_not_confirm_is_not_recommended(
    opened: Callable[..., Ledger],
) -> None:
    ledger = opened(**quadratic())
    play(ledger, 12)
    for worse in (0.5, 0.0, 0.01, 0.5, 0.51):
        number, _ = begin(ledger)
        ledger.finish(number, "completed", {"loss": 2.2 + worse})
    result = result_of(ledger, "data")
    assert (result.best.number, [one.fitted for one in result.finalists]) == (result.luckiest, [False, True])


STARTS = (
    {"lr": 0.02, "weight_decay": 0.5, "decay": "l2"},
    {"lr": 0.03, "weight_decay": 2.0, "decay": "huber"},
)


def test_settings_to_start_with_come_first(opened: Callable[..., Ledger]) -> None:
    ledger = opened(warm_start=tuple(Point.parse(start) for start in STARTS))
    assert [one["lr"] for one in play(ledger, 1)] == [0.02]
    number, _ = begin(ledger)
    ledger.finish(number, "failed", {"error": "the worker died"})
    # A coefficient that a setting does not say is drawn.
    second, third = play(ledger, 2)
    assert (second["lr"], second["decay"], second["huber_c"] > 0) == (0.03, "huber", True)
    assert third["lr"] not in (0.02, 0.03)


def test_proposals_end_when_they_have_not_been_better_for_long(opened: Callable[..., Ledger]) -> None:
    fields = {"patience": 3, "warm_start": (Point.parse(STARTS[0]),), "finalists": 1, "seeds": 2}
    ledger = opened(trials=30, **fields)
    for number in range(4):
        assert begin(ledger)[0] == number
    for number, loss in enumerate((3.0, 2.0, 2.5, 2.6)):
        ledger.finish(number, "completed", {"loss": loss})
    # Two since the best: another one is proposed, and after it none.
    ledger.finish(begin(ledger)[0], "diverged", {})
    assert ledger.outlook().trials == 1
    number, _ = begin(ledger)
    assert ledger.study.get_trials()[number].user_attrs["confirms"] == 1
    ledger.finish(number, "completed", {"loss": 2.1})
    assert (ledger.next(), ledger.is_finished()) == ("finished", True)
    ledger.close()
    # A resumed sweep may be given more patience.
    assert not opened(trials=30, **fields | {"patience": 4}, resume=True).is_finished()


def test_proposals_with_too_short_a_horizon_are_not_run(opened: Callable[..., Ledger]) -> None:
    fields = {"min_horizon": 5.0, "sampler": "random", "seeds": 1}
    ledger = opened(**fields)
    tried = play(ledger, 3)
    # It dies between a proposal and its refusal.
    ledger.study.sampler = sampler(ledger.config, ledger._place())
    while not ledger.config.is_too_short(
        (short := ledger.hyperparameters(ledger.study.ask())).lr, short.weight_decay
    ):
        raise AssertionError("choose another seed: this proposal is long enough")
    ledger.close()
    again = opened(**fields, resume=True)
    tried += play(again, 3)
    assert again.is_finished()
    assert len(again.records()) == len(tried) == 6
    for one in tried:
        assert again.config.decay_horizon(one["lr"], one["weight_decay"]) >= 5
    refused = [one for one in again.study.get_trials() if one.user_attrs["status"] == "refused"]
    assert refused
    assert {one.value for one in refused} == {math.inf}


def test_a_single_seed_confirms_nothing(opened: Callable[..., Ledger]) -> None:
    ledger = opened(seeds=1)
    assert ledger.outlook().trials == 6
    play(ledger, 6)
    assert ledger.next() == "finished"


def test_a_share_of_a_gpu_needs_a_gpu() -> None:
    Placement(gpus_per_trial=0.5).require_gpus(1)
    Placement().require_gpus(0)
    with pytest.raises(ConfigError) as caught:
        Placement(gpus_per_trial=0.5).require_gpus(0)
    assert str(caught.value) == "gpus_per_trial: must be 0 where Ray has no GPU, got 0.5"


def test_the_best_trial_of_a_status_is_no_confirmation(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    ledger = opened(trials=5, finalists=1, seeds=2)
    while not ledger.is_finished():
        number, tried = begin(ledger)
        lucky = 10.0 * (ledger.record(number)["confirms"] is not None)
        ledger.finish(number, "completed", {"loss": made_up_loss(tried) - lucky})
    best = min(
        (one for one in ledger.records() if one["confirms"] is None), key=lambda record: record["loss"]
    )
    status = study_status(tmp_path / "sweep")
    assert status is not None
    found = status["best"]
    assert (found["trial"], found["loss"]) == (str(best["number"]), best["loss"])


def test_plain_adamw_is_an_arm_of_its_own_without_a_coefficient(opened: Callable[..., Ledger]) -> None:
    ledger = opened(space=SearchSpace(decay=("l2",)))
    _, tried = begin(ledger)
    assert (tried.decay, tried.huber_c) == ("l2", None)
    assert "huber_c" not in ledger.study.get_trials()[0].params


def test_what_is_not_searched_is_the_configurations(opened: Callable[..., Ledger]) -> None:
    fixed = {"betas": (0.8, 0.9), "eps": 1e-6, "threshold": "ema", "corrected": False, "clip_norm": None}
    _, tried = begin(opened(**fixed))
    assert tried.model_dump(include=set(fixed)) == fixed


def test_a_finished_sweep_needs_no_ray(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    play(ledger, 10)
    ledger.close()
    result = sweep(configured(), ledger.out, resume=True)
    assert result.finished
    assert result.records == ledger.records()
    best = min(result.finalists, key=lambda finalist: finalist.mean)
    assert (result.best, list(best.losses), best.spread) == (best, [5, 6, 7], 0.0)


def test_a_sweep_in_which_all_diverged_has_no_result(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    for _ in range(6):
        ledger.finish(begin(ledger)[0], "diverged", {"tokens": 1024, "seconds": 0.5})
    assert ledger.is_finished()
    ledger.close()
    with pytest.raises(RunError) as caught:
        sweep(configured(), ledger.out, resume=True)
    assert str(caught.value) == (
        "no trial completed with every seed: all diverged; lower the bounds of space.lr"
    )


def test_a_finalist_that_diverges_with_another_seed_is_none(opened: Callable[..., Ledger]) -> None:
    ledger = opened(seeds=2)
    play(ledger, 6)
    best, second = ledger.finalists()
    ledger.finish(begin(ledger)[0], "diverged", {"tokens": 1024, "seconds": 0.5})
    play(ledger, 1)
    ledger.close()
    result = sweep(configured(seeds=2), ledger.out, resume=True)
    assert [finalist.number for finalist in result.finalists] == [second.number, best.number]
    last = result.finalists[1].as_json()
    assert (last["losses"], last["mean"], last["spread"]) == ({"5": best.value, "6": None}, None, None)
