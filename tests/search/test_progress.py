"""What is shown of a sweep while it runs, and what is expected of it."""

import math
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any, cast

import pytest
from rich.console import Console

from widthwise.search import SearchSpace
from widthwise.search.ledger import Ledger
from widthwise.search.outlook import Outlook
from widthwise.search.progress import Progress

from .playing import begin, made_up_loss, play, quadratic


def test_a_worker_that_died_is_one_line(
    opened: Callable[..., Ledger], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = opened(trials=5)
    number, _ = begin(ledger)
    with Progress(ledger) as progress:
        ledger.put_back(number)
        progress.died(number)
    said = f"widthwise: trial {number}: its worker died; it is started again, from its last checkpoint"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_progress_says_what_a_trial_is_for(
    opened: Callable[..., Ledger], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = opened(trials=5, finalists=1, seeds=2)
    with Progress(ledger) as progress:
        while not ledger.is_finished():
            number, tried = begin(ledger)
            ledger.finish(number, "completed", {"loss": made_up_loss(tried), "seconds": 61.0})
            progress.ended(number)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trial ")]
    records = ledger.records()
    assert len(said) == len(records)
    for done, (line, record) in enumerate(zip(said, records, strict=True), 1):
        role = " (fitted minimum)" if record["fitted"] else ""
        if record["confirms"] is not None:
            role = f" (confirms trial {record['confirms']} with seed {record['seed']})"
        # Five proposals and a confirmation.
        left = "" if done == 6 else f", about {timedelta(seconds=61 * (6 - done))} left"
        ending = f"completed, loss {record['loss']:.4f}; {done}/6 trials{left}"
        assert line == f"trial {record['number']}{role} {ending}"
    assert {record["confirms"] is None for record in records} == {True, False}


def test_a_terminal_shows_how_the_sweep_stands_below_its_bar(opened: Callable[..., Ledger]) -> None:
    ledger = opened(space=SearchSpace(lr=(0.0625, 0.0625), weight_decay=(4.0, 4.0), huber_c=(2.0, 2.0)))
    ends = {0: ("completed", 3.5), 1: ("completed", 3.25), 2: ("stopped", 4.0), 3: ("diverged", math.inf)}
    # The sixth waits for a place.
    ledger.places = 5
    with Progress(ledger, enabled=False) as progress:
        numbers = [begin(ledger)[0] for _ in range(6)]
        for number in numbers:
            progress.began(number)
            if number != 1:
                progress.reported(number, {"progress": 0.5, "tokens": 30720, "seconds": 2.0})
        assert progress.bar.lines == ["5 running; 76,800 tokens/s"]
        for number, (status, loss) in ends.items():
            ledger.finish(number, status, {"loss": loss, "tokens": 61440, "seconds": 4.0})
            progress.ended(number)
        tried = ledger.record(1)["hyperparameters"]
        c = "c 2 (huber)" if tried["decay"] == "huber" else "c ∞ (l2)"
        lines = [
            "2 running, 2 completed, 1 stopped early, 1 diverged; 30,720 tokens/s",
            f"best: trial 1, loss 3.2500, η 0.0625, λ 4, {c}",
        ]
        screen = Console(width=80, file=StringIO())
        screen.print(progress.bar.get_renderable())
        shown = cast(StringIO, screen.file).getvalue().splitlines()
    assert shown[0].startswith("sweep ")
    assert "4/10 trials" in shown[0]
    assert [line.rstrip() for line in shown[1:]] == lines


def test_the_time_left_counts_what_is_to_come_by_what_has_ended(opened: Callable[..., Ledger]) -> None:
    ledger = opened(trials=12, finalists=2, seeds=3)
    ledger.places = 3
    with Progress(ledger, enabled=False) as progress:
        numbers = []
        for _ in range(3):
            number, _ = begin(ledger)
            progress.began(number)
            progress.reported(number, {"progress": 0.25, "tokens": 15360, "seconds": 1.0})
            numbers.append(number)

        def end(number: int, status: Any, seconds: float) -> None:
            ledger.finish(number, status, {"loss": 3.0, "tokens": 61440, "seconds": seconds})
            progress.ended(number)

        # Nothing is known until one has completed.
        assert progress.seconds_left() is None
        end(numbers[0], "stopped", 2.0)
        assert progress.seconds_left() is None
        end(numbers[1], "completed", 6.0)
        # Proposals take 4 s, stopped ones counted; the confirmations, 2 seeds of 2 finalists, 6 s.
        assert ledger.outlook() == Outlook(10 + 4, 10 * 4.0 + 4 * 6.0)
        # One has run for a second; three run at a time.
        assert progress.seconds_left() == pytest.approx((64.0 - 1.0) / 3)
        end(numbers[2], "failed", 3.0)
        assert progress.seconds_left() == pytest.approx(64.0 / 3)
        # A node was lost.
        ledger.places = 2
        assert progress.seconds_left() == pytest.approx(64.0 / 2)


def test_the_fitted_minimum_is_counted_before_it_is_tried(opened: Callable[..., Ledger]) -> None:
    ledger = opened(**quadratic(seeds=2))
    assert ledger.outlook() == Outlook(12 + 1, None)
    play(ledger, 12)
    assert ledger.fitted() is None
    # With a confirmation of its own.
    assert ledger.outlook() == Outlook(3, 3 * 1.5)
    number, _ = begin(ledger)
    ledger.finish(number, "completed", {"loss": 2.0, "tokens": 61440, "seconds": 4.0})
    # It measured on the way, as the others will.
    assert ledger.outlook() == Outlook(2, 2 * 4.0)
    play(ledger, 2)
    assert (ledger.is_finished(), ledger.outlook(), len(ledger.records())) == (True, Outlook(0, 0.0), 15)


def test_a_finished_sweep_that_goes_on_counts_the_confirmations_of_its_new_finalists(
    opened: Callable[..., Ledger],
) -> None:
    fields = {"finalists": 3, "seeds": 3, "space": SearchSpace(lr=(0.02, 0.045), decay=("l2",))}
    ledger = opened(trials=5, **fields)
    while not ledger.is_finished():
        number, _ = begin(ledger)
        ledger.finish(number, "completed", {"loss": 3.0 + 0.01 * number, "tokens": 61440, "seconds": 1.0})
    assert (len(ledger.records()), ledger.outlook()) == (11, Outlook(0, 0.0))
    ledger.close()
    ledger = opened(resume=True, trials=8, **fields)
    # The old finalists' seeds have run; that they stay finalists is all that is known.
    assert ledger.outlook() == Outlook(3, 3.0)
    for _ in range(3):
        number, _ = begin(ledger)
        ledger.finish(number, "completed", {"loss": 2.0, "tokens": 61440, "seconds": 1.0})
    assert ledger.outlook() == Outlook(6, 6.0)
    number, _ = begin(ledger)
    assert ledger.outlook() == Outlook(6, 6.0)
    ledger.finish(number, "completed", {"loss": 2.0, "tokens": 61440, "seconds": 1.0})
    assert ledger.outlook() == Outlook(5, 5.0)
