"""The sweep's books, driven by hand over a real study: what comes next, whatever was killed before."""

import json
import math
import re
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState

from widthwise.proxies.files import locked
from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search import SearchSpace, Storage, folders, sweep
from widthwise.search.books import MAX_FAILURES
from widthwise.search.executing import Placement
from widthwise.search.ledger import Ledger
from widthwise.search.outlook import Outlook
from widthwise.search.samplers import sampler
from widthwise.search.space import Point
from widthwise.search.status import study_status
from widthwise.search.stored import stored_config
from widthwise.search.sweeping import result_of

from .conftest import STEPS, configured
from .playing import begin, complete, made_up_loss, play, quadratic


def states(ledger: Ledger) -> list[TrialState]:
    return [trial.state for trial in ledger.study.get_trials()]


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


@pytest.mark.parametrize("finished", [0, 5, 8])
def test_a_reopened_sweep_goes_on_as_if_it_had_never_stopped(
    opened: Callable[..., Ledger], tmp_path: Path, finished: int
) -> None:
    undisturbed = play(opened(tmp_path / "undisturbed"), 10)

    first = opened()
    tried = play(first, finished)
    number, hyperparameters = begin(first)
    folder = first.folder(number)
    first.close()

    second = opened(resume=True)
    assert states(second)[number] == TrialState.RUNNING
    again, drawn = begin(second)
    assert (again, drawn, second.folder(again)) == (number, hyperparameters, folder)
    complete(second, again, drawn)
    tried.append({"number": again, **drawn.model_dump()})
    tried += play(second, 9 - finished)
    assert tried == undisturbed
    assert second.is_finished()
    assert [record["number"] for record in second.records()] == list(range(10))


def test_a_trial_killed_before_its_settings_were_drawn_draws_the_same(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    undisturbed = play(opened(tmp_path / "undisturbed"), 6)
    first = opened()
    assert play(first, 4) == undisturbed[:4]
    first.next()
    first.close()
    assert play(opened(resume=True), 2) == undisturbed[4:]


def test_several_interrupted_trials_are_handed_out_in_their_order(opened: Callable[..., Ledger]) -> None:
    first = opened()
    running = [begin(first) for _ in range(3)]
    complete(first, *running[1])
    first.close()
    second = opened(resume=True)
    assert [begin(second) for _ in range(2)] == [running[0], running[2]]
    assert begin(second)[0] == 3


def test_a_failed_trial_is_made_up_for_from_the_same_place(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    undisturbed = play(opened(tmp_path / "undisturbed"), 6)
    ledger = opened()
    play(ledger, 2)
    number, _ = begin(ledger)
    ledger.finish(number, "failed", {"error": "the worker died"})
    # The one that makes up for it is interrupted itself, before its settings are drawn.
    ledger.next()
    ledger.close()
    later = play(opened(resume=True), 4)
    assert [{**tried, "number": tried["number"] - 1} for tried in later] == undisturbed[2:]


def test_a_trial_whose_worker_dies_is_begun_again_twice(opened: Callable[..., Ledger]) -> None:
    # It imports Ray Tune, for this one test.
    from widthwise.search.tuning import _Fuse, _Proposer

    ledger = opened()
    proposer, numbers = _Proposer(ledger, 1, 1, (), _Fuse()), []
    for attempt in ("first", "second", "third"):
        numbers.append(proposer.suggest(attempt)["number"])
        # So Tune tells of a worker that died in a trial, and of one that died before it.
        proposer.on_trial_complete(attempt, error=True)
    assert numbers == [0, 0, 0]
    assert ledger.failures == ["the worker died"]
    assert proposer.suggest("fourth")["number"] == 1


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


def test_a_failed_confirmation_is_made_up_for(opened: Callable[..., Ledger]) -> None:
    ledger = opened(finalists=1, seeds=2)
    play(ledger, 6)
    number, _ = begin(ledger)
    ledger.finish(number, "failed", {"error": "the worker died"})
    assert not ledger.is_finished()
    play(ledger, 1)
    assert ledger.is_finished()
    best = ledger.finalists()[0].number
    assert [(trial.number, ledger.seed(trial)) for trial in ledger.confirmations(best)] == [(7, 6)]


def test_too_many_failures_end_the_session_and_a_resumed_one_tries_again(
    opened: Callable[..., Ledger],
) -> None:
    ledger = opened()
    for index in range(MAX_FAILURES):
        number, _ = begin(ledger)
        ledger.finish(number, "failed", {"error": f"reason {index}"})
    assert ledger.failures == ["reason 0", "reason 1", "reason 2"]
    assert ledger.next() == "finished"
    assert not ledger.is_finished()
    ledger.close()
    again = opened(resume=True)
    play(again, 10)
    assert again.is_finished()
    assert len(again.records()) == 10 + MAX_FAILURES


def test_a_sweep_killed_while_it_enqueued_confirmations_enqueues_each_once(
    opened: Callable[..., Ledger],
) -> None:
    first = opened()
    play(first, 6)
    best = first.finalists()[0]
    first.study.enqueue_trial(best.params, user_attrs={"confirms": best.number, "seed": 6})
    first.close()
    second = opened(resume=True)
    play(second, 4)
    assert second.next() == "finished"
    confirmed = {trial.number: second.confirmations(trial.number) for trial in second.finalists()}
    assert {number: [second.seed(one) for one in tried] for number, tried in confirmed.items()} == {
        number: [6, 7] for number in confirmed
    }


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


def test_what_confirms_a_grids_best_goes_on_after_a_death(opened: Callable[..., Ledger]) -> None:
    fields: dict[str, Any] = {"sampler": "grid", "trials": 8, "finalists": 1, "seeds": 2}
    ledger = opened(**fields)
    play(ledger, 8)
    number, tried = begin(ledger)
    ledger.put_back(number)
    assert begin(ledger) == (number, tried)
    ledger.close()
    assert begin(opened(resume=True, **fields)) == (number, tried)


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


def test_a_sweep_killed_while_it_tried_the_fitted_minimum_goes_on(opened: Callable[..., Ledger]) -> None:
    first = opened(**quadratic())
    play(first, 12)
    _, tried = begin(first)
    first.close()
    second = opened(**quadratic(), resume=True)
    number, again = begin(second)
    assert (number, again) == (12, tried)
    second.finish(number, "failed", {"error": "the worker died"})
    assert play(second, 5)[-1]["lr"] == again.lr
    assert second.is_finished()
    # More trials make another quadratic.
    second.close()
    third = opened(**quadratic(trials=14), resume=True)
    play(third, 2)
    assert not third.is_finished()
    later = begin(third)[1]
    assert (later.lr, later.weight_decay) == pytest.approx((0.03, 1.0))


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


def test_a_resumed_sweep_may_have_more_trials_and_seeds(opened: Callable[..., Ledger]) -> None:
    first = opened()
    play(first, 10)
    first.close()
    larger = opened(resume=True, trials=8, finalists=1, seeds=4, concurrency=3)
    larger.require_data("tokens")
    play(larger, 2)
    best = larger.finalists()[0].number
    play(larger, 4 - 1 - len(larger.confirmations(best)))
    assert larger.is_finished()
    assert stored_config(larger.out).trials == 8


def test_a_resumed_sweep_may_have_fewer_trials_but_not_fewer_than_it_holds(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    first = opened(trials=6)
    play(first, 4)
    first.close()
    with pytest.raises(ConfigError) as caught:
        opened(resume=True, trials=3)
    assert str(caught.value) == f"trials: must be >= 4, which {tmp_path / 'sweep'} holds, got 3"
    assert opened(resume=True, trials=4, finalists=1, seeds=1).is_finished()


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


def test_a_folder_with_a_sweep_is_not_swept_again(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    opened().close()
    before = sorted((tmp_path / "sweep").iterdir())
    with pytest.raises(ConfigError) as caught:
        opened()
    assert str(caught.value) == (
        f"out: {tmp_path / 'sweep'} holds a sweep already; add --resume to go on with it, or name another folder"
    )
    assert sorted((tmp_path / "sweep").iterdir()) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", "a recipe that no sweep in it made"),
        ("runs.db", "a check"),
        ("plan.json", "a target run"),
    ],
)
def test_a_folder_of_something_else_is_not_swept_into(
    opened: Callable[..., Ledger], tmp_path: Path, name: str, content: str
) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError) as caught:
        opened()
    assert str(caught.value) == f"out: {folder} holds {content}; name another folder"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: "mine"}


def test_a_difference_inside_a_section_is_named_by_its_path(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    first = opened()
    width = first.config.model.width
    first.close()
    with pytest.raises(ConfigError) as caught:
        opened(resume=True, model=first.config.model.model_copy(update={"width": 2 * width}))
    rule = f"model.width: must be as the sweep in {tmp_path / 'sweep'} was started, {width}"
    assert str(caught.value) == f"{rule}, got {2 * width}"


def test_a_share_of_a_gpu_needs_a_gpu() -> None:
    Placement(gpus_per_trial=0.5).require_gpus(1)
    Placement().require_gpus(0)
    with pytest.raises(ConfigError) as caught:
        Placement(gpus_per_trial=0.5).require_gpus(0)
    assert str(caught.value) == "gpus_per_trial: must be 0 where Ray has no GPU, got 0.5"


def test_an_empty_folder_cannot_be_resumed(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, resume=True)
    assert str(caught.value) == f"out: {tmp_path} holds no sweep to resume"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "fields", "stored", "given"),
    [
        ("seed", {"seed": 6}, 5, 6),
        ("betas", {"betas": (0.9, 0.99)}, [0.9, 0.95], [0.9, 0.99]),
        ("prune", {"prune": False}, True, False),
    ],
)
def test_a_resumed_sweep_must_be_the_one_that_was_started(
    opened: Callable[..., Ledger], tmp_path: Path, name: str, fields: dict[str, Any], stored: Any, given: Any
) -> None:
    opened().close()
    with pytest.raises(ConfigError) as caught:
        opened(resume=True, **fields)
    rule = f"{name}: must be as the sweep in {tmp_path / 'sweep'} was started, {stored}"
    assert str(caught.value) == f"{rule}, got {given}"
    # The refused one has let go of the folder.
    opened(resume=True)


def test_a_resumed_sweep_must_see_the_same_tokens_wherever_they_lie(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    first = opened(data="here")
    first.require_data("one")
    first.close()
    again = opened(resume=True, data="there")
    again.require_data("one")
    with pytest.raises(ConfigError) as caught:
        again.require_data("two")
    folder = tmp_path / "sweep"
    assert str(caught.value) == (
        f"data: must hold the tokens that the sweep in {folder} was started with, but differs"
    )


def test_a_resumption_that_is_refused_for_its_data_changes_nothing(opened: Callable[..., Ledger]) -> None:
    first = opened(data="here", trials=5)
    first.require_data("one")
    first.close()
    refused = opened(resume=True, data="elsewhere", trials=6)
    with pytest.raises(ConfigError):
        refused.require_data("two")
    stored = refused.study.user_attrs["config"]
    assert (stored["data"], stored["trials"]) == ("here", 5)
    refused.close()
    again = opened(resume=True, data="there", trials=6)
    again.require_data("one")
    stored = again.study.user_attrs["config"]
    assert (stored["data"], stored["trials"]) == ("there", 6)


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


def test_a_trial_at_its_full_budget_is_not_stopped(opened: Callable[..., Ledger]) -> None:
    ledger = opened()
    steps = ledger.config.horizon.steps
    for loss in (1.0, 2.0, 3.0, 4.0):
        trial = ledger.next()
        assert not isinstance(trial, str)
        ledger.hyperparameters(trial)
        assert not ledger.report(trial.number, steps, loss)
        ledger.finish(trial.number, "completed", {"loss": loss})


def test_a_folder_in_use_is_refused_to_other_processes_too(
    opened: Callable[..., Ledger], start: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    opened()
    message = f"out: {out} is in use by another process that is still running"
    with pytest.raises(ConfigError) as caught:
        opened(resume=True)
    assert str(caught.value) == message
    assert start("sweep", "--resume", "--out", out).finish() == (2, "", f"widthwise: error: {message}\n")


@pytest.mark.parametrize("exists", [True, False])
def test_a_sweep_that_is_refused_leaves_nothing(tmp_path: Path, real_text: Path, exists: bool) -> None:
    out = tmp_path / "a" / "sweep"
    if exists:
        out.mkdir(parents=True)
        (out / "mine").touch()
    with pytest.raises(ConfigError, match=r"^storage: .* cannot be opened \("):
        sweep(
            configured(data=str(real_text)),
            out,
            storage=Storage.parse("postgresql+psycopg://me@127.0.0.1:1/no"),
        )
    assert [path.name for path in tmp_path.rglob("*")] == (["a", "sweep", "mine"] if exists else [])


def test_a_sweep_that_comes_second_leaves_the_firsts_files(tmp_path: Path) -> None:
    out, first = tmp_path / "sweep", ExitStack()

    @folders.nothing_left(out)
    def second() -> None:
        out.mkdir()
        first.enter_context(locked(out))
        (out / "study.db").touch()
        first.enter_context(locked(out))

    with first:
        with pytest.raises(ConfigError, match=" is in use by another process "):
            second()
        assert {path.name for path in out.iterdir()} == {".lock", "study.db"}


def test_a_folder_that_cannot_be_made_is_one_line(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "sweep"
    with pytest.raises(ConfigError) as caught:
        opened(out)
    assert str(caught.value) == f"out: {out} cannot be written (Not a directory)"


def of_another_optuna(path: Path) -> None:
    """Mark a study as of a version of Optuna that is still to come."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v9.0.0.a'")
        database.commit()


AGAIN = "; put a copy of it back, or begin anew in another folder"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.write_bytes(b""), f"(it holds no study of ours){AGAIN}"),
        (lambda path: path.write_bytes(b"not a database" * 1000), f"(file is not a database){AGAIN}"),
        (
            of_another_optuna,
            f"(The runtime optuna version {optuna.__version__} is no longer compatible with the table schema "
            f"(set up by optuna {optuna.__version__}). Please try updating optuna to the latest version by "
            "`$ pip install -U optuna`.)",
        ),
    ],
    ids=["empty", "other", "version"],
)
def test_a_study_that_cannot_be_read_is_one_line(
    opened: Callable[..., Ledger], tmp_path: Path, damage: Callable[[Path], object], why: str
) -> None:
    opened().close()
    path = tmp_path / "sweep" / "study.db"
    damage(path)
    for attempt in (lambda: opened(resume=True), lambda: stored_config(tmp_path / "sweep")):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert str(caught.value) == f"out: {path} cannot be read as a sweep's study {why}"


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


def test_a_sweep_that_died_while_its_study_was_made_can_be_started_again(
    opened: Callable[..., Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "identify", dies)
        with pytest.raises(KeyboardInterrupt):
            opened()
    assert not (tmp_path / "sweep" / "study.db").exists()
    ledger = opened()
    number, tried = begin(ledger)
    complete(ledger, number, tried)
    assert [record["number"] for record in ledger.records()] == [0]
    assert sorted(path.name for path in (tmp_path / "sweep").glob("*study*")) == ["study.db"]


def test_a_folder_that_has_gone_is_told_in_place_of_what_goes_wrong_then(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    ledger = opened()
    ledger.require_there()
    ledger.out.rename(tmp_path / "moved")
    told = f"the sweep in {ledger.out} is not there any more; go on with --resume where it is now"
    with pytest.raises(RunError, match=f"^{re.escape(told)}$"):
        ledger.require_there()
