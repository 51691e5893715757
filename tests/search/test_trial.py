"""A trial's talk with Tune: it trains on meanwhile, leaves when it is stopped, and repeats what may be lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import pytest
from ray import tune

from widthwise.proxies.config import Hyperparameters
from widthwise.search import trial
from widthwise.search.ledger import trial_spec

from .conftest import configured


class Driver:
    """Hears one report after the other, each when it is `ready`, and stops the trial that reports `last`."""

    def __init__(self, last: int) -> None:
        self.last, self.ready = last, SimpleQueue[None]()
        self.heard: list[int] = []
        self.answered = Event()

    def report(self, values: dict[str, int]) -> None:
        self.ready.get()
        self.heard.append(values["step"])
        self.answered.set()
        if values["step"] == self.last:
            raise SystemExit(0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    one = Driver(last=3)
    monkeypatch.setattr(tune, "report", one.report)
    return one


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as one:
        yield one


def test_a_trial_waits_for_no_answer_but_the_one_before_and_leaves_when_it_is_stopped(
    driver: Driver, thread: ThreadPoolExecutor
) -> None:
    reports = trial.Reports(thread)
    reports.tell({"step": 1})
    reports.look()
    assert driver.heard == []
    driver.ready.put(None)
    reports.tell({"step": 2})
    assert driver.heard == [1]
    driver.ready.put(None)
    reports.tell({"step": 3})
    assert driver.heard == [1, 2]
    reports.look()
    driver.answered.clear()
    driver.ready.put(None)
    assert driver.answered.wait(10)
    with pytest.raises(SystemExit):
        reports.wait()
    with pytest.raises(SystemExit):
        reports.look()
    with pytest.raises(SystemExit):
        reports.tell({"step": 4})
    assert driver.heard == [1, 2, 3]


class Told(trial.Reports):
    """Keeps what a trial tells; the trial is killed after so many steps."""

    def __init__(self, steps: float = float("inf")) -> None:
        self.steps, self.reports = steps, list[dict[str, Any]]()

    def tell(self, report: Any) -> None:
        self.reports.append(dict(report))

    def look(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SystemExit(0)


def test_a_trial_that_goes_on_repeats_its_last_evaluation_which_may_not_have_been_heard(
    tmp_path: Path,
) -> None:
    hyperparameters = Hyperparameters(lr=0.03, weight_decay=0.5, huber_c=2.0)
    spec = trial_spec(configured(data="python"), hyperparameters)
    config = {
        "spec": spec.model_dump_json(),
        "folder": str(tmp_path),
        "options": {"evaluations": 6, "validation_batches": 1},
    }
    killed, resumed = Told(steps=35), Told()
    with pytest.raises(SystemExit):
        trial.outcome_of(config, killed)
    outcome = trial.outcome_of(config, resumed)
    assert [one["step"] for one in killed.reports] == [10, 20, 30]
    assert [one["step"] for one in resumed.reports] == [30, 40, 50, 60]
    assert resumed.reports[0] == killed.reports[-1]
    assert {name: outcome[name] for name in ("status", "step")} == {"status": "completed", "step": 60}
