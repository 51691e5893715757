"""The sweep's books after a death, a failure, or with more to do: what comes next is as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search.books import MAX_FAILURES
from widthwise.search.ledger import Ledger
from widthwise.search.stored import stored_config

from .playing import begin, complete, play, quadratic, states


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
    # It imports Ray Tune, which few tests here need.
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


@pytest.mark.parametrize(
    ("full", "told"),
    [
        ("/scratch", "the disk of /scratch is full; make room, and go on with --resume"),
        (None, "FileNotFoundError: no; go on with --resume"),
    ],
)
def test_a_trial_whose_checkpoint_could_not_be_written_ends_the_session_and_goes_on_in_the_next(
    opened: Callable[..., Ledger], full: str | None, told: str
) -> None:
    from widthwise.search.trial import UNKEPT
    from widthwise.search.tuning import _Fuse, _Proposer

    ledger, fuse = opened(), _Fuse()
    proposer = _Proposer(ledger, 2, 2, (), fuse)
    for trial_id in ("first", "second"):
        proposer.suggest(trial_id)
    proposer.on_trial_complete("first", {"status": UNKEPT, "full": full, "error": "FileNotFoundError: no"})
    assert isinstance(fuse.error, RunError)
    assert str(fuse.error) == told
    # Nothing more is taken from Tune, or given to it.
    proposer.on_trial_complete("second", {"status": "completed", "loss": 1.0})
    assert proposer.suggest("third") is None
    assert (states(ledger), ledger.failures) == ([TrialState.RUNNING] * 2, [])
    ledger.close()
    again = opened(resume=True)
    assert [begin(again)[0] for _ in range(2)] == [0, 1]


def test_no_trial_begins_in_a_folder_that_has_gone(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    from widthwise.search.tuning import _Fuse, _Proposer

    ledger, fuse = opened(), _Fuse()
    ledger.out.rename(tmp_path / "moved")
    assert _Proposer(ledger, 1, 1, (), fuse).suggest("first") is None
    assert str(fuse.error).startswith(f"the sweep in {ledger.out} is not there any more; ")
    assert ledger.live == {}


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


def test_what_confirms_a_grids_best_goes_on_after_a_death(opened: Callable[..., Ledger]) -> None:
    fields: dict[str, Any] = {"sampler": "grid", "trials": 8, "finalists": 1, "seeds": 2}
    ledger = opened(**fields)
    play(ledger, 8)
    number, tried = begin(ledger)
    ledger.put_back(number)
    assert begin(ledger) == (number, tried)
    ledger.close()
    assert begin(opened(resume=True, **fields)) == (number, tried)


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
    larger.close()
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
