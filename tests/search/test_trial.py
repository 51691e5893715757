"""A trial's talk with Tune: it trains on meanwhile, leaves when it is stopped, and repeats what may be lost."""

import errno
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from ray import tune

from widthwise.proxies import GPT
from widthwise.proxies.config import Hyperparameters
from widthwise.search import trial
from widthwise.search.ledger import trial_spec

from .conftest import configured


class Driver:
    """Hears one report after the other, each when it is `ready`, and stops the trial after so many."""

    def __init__(self, last: int) -> None:
        self.last, self.ready = last, SimpleQueue[None]()
        self.heard: list[list[int]] = []

    def report(self, values: dict[str, Any]) -> None:
        self.ready.get()
        self.heard.append([one["step"] for one in values["evaluations"]])
        if len(self.heard) == self.last:
            raise SystemExit(0)


class Told(trial.Reports):
    """Keeps what a trial tells; the trial is killed after so many steps."""

    def __init__(self, steps: float = float("inf")) -> None:
        self.steps, self.reports = steps, list[dict[str, Any]]()

    def tell(self, evaluation: Any) -> None:
        self.reports.append(dict(evaluation))

    def look(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SystemExit(0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    one = Driver(last=3)
    monkeypatch.setattr(tune, "report", one.report)
    return one


def test_a_trial_waits_for_no_answer_but_the_last_and_tells_of_what_it_came_to_meanwhile(
    driver: Driver,
) -> None:
    reports = trial.Reports()
    for step in (1, 2, 3):
        reports.tell({"step": step})
    assert driver.heard == []
    for _ in range(2):
        driver.ready.put(None)
    reports.end({"status": "completed"})
    assert driver.heard == [[1], [2, 3]]


@pytest.mark.parametrize(("seconds", "heard"), [(0.0, [[1], [2], [3], []]), (3600.0, [[1], [2, 3]])])
def test_evaluations_that_follow_closely_are_told_together(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, seconds: float, heard: list[list[int]]
) -> None:
    monkeypatch.setattr(trial, "SECONDS_BETWEEN_REPORTS", seconds)
    driver.last = 99
    reports = trial.Reports()
    for step in (1, 2, 3):
        driver.ready.put(None)
        reports.tell({"step": step})
        # By then the driver has heard of it.
        reports._heard.wait()
    driver.ready.put(None)
    reports.end({"status": "completed"})
    assert driver.heard == heard


def test_a_trial_leaves_when_it_is_stopped(driver: Driver) -> None:
    driver.last = 1
    reports = trial.Reports()
    reports.tell({"step": 1})
    reports.look()
    driver.ready.put(None)
    with pytest.raises(SystemExit):
        reports.end({"status": "completed"})
    with pytest.raises(SystemExit):
        reports.look()
    with pytest.raises(SystemExit):
        reports.tell({"step": 2})
    assert driver.heard == [[1]]


def test_a_report_that_fails_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(values: object) -> None:
        raise ValueError("no session")

    monkeypatch.setattr(tune, "report", refuse)
    reports = trial.Reports()
    with pytest.raises(ValueError, match=r"^no session$"):
        reports.end({"status": "completed"})


UNANSWERED = """
from threading import Event
from ray import tune
from widthwise.search.trial import Reports
tune.report = lambda values: Event().wait()
Reports().tell({"step": 1})
"""


def test_a_worker_that_ends_waits_for_no_answer(start: Callable[..., Any]) -> None:
    assert start(script=UNANSWERED).finish()[0] == 0


def config_of(folder: Path) -> dict[str, Any]:
    hyperparameters = Hyperparameters(lr=0.03, weight_decay=0.5, huber_c=2.0)
    return {
        "spec": trial_spec(configured(data="python"), hyperparameters).model_dump_json(),
        "folder": str(folder),
        "options": {"evaluations": 6, "validation_batches": 1},
    }


def test_a_stopped_trial_leaves_no_model_behind(tmp_path: Path, driver: Driver) -> None:
    threads = torch.get_num_threads()
    # What a process imports in its first trial keeps frames of it.
    trial.outcome_of(config_of(tmp_path / "first"), Told())
    gc.collect()
    gc.disable()
    driver.last = 1
    driver.ready.put(None)
    try:
        with pytest.raises(SystemExit):
            trial.trainable(config_of(tmp_path / "stopped"))
        assert driver.heard == [[10]]
        assert not [one for one in gc.get_objects() if issubclass(type(one), GPT)]
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def test_a_trial_that_goes_on_repeats_its_evaluations_which_may_not_have_been_heard(
    tmp_path: Path,
) -> None:
    killed, resumed = Told(steps=35), Told()
    with pytest.raises(SystemExit):
        trial.outcome_of(config_of(tmp_path), killed)
    outcome = trial.outcome_of(config_of(tmp_path), resumed)
    assert [one["step"] for one in killed.reports] == [10, 20, 30]
    assert [one["step"] for one in resumed.reports] == [10, 20, 30, 40, 50, 60]
    assert resumed.reports[:3] == killed.reports
    assert {name: outcome[name] for name in ("status", "step")} == {"status": "completed", "step": 60}


@pytest.mark.parametrize(("temporary", "full"), [("{sweep}", "{sweep}"), ("/proc", "/proc")])
def test_a_trial_names_the_disk_that_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: str, full: str
) -> None:
    class Full(Told):
        def tell(self, evaluation: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    sweep = tmp_path / "sweep"
    (sweep / "trials").mkdir(parents=True)
    # /proc never has room; where none of the disks says so, it was the sweep's own.
    monkeypatch.setattr(tempfile, "tempdir", temporary.format(sweep=sweep))
    outcome = trial.outcome_of(config_of(sweep / "trials" / "trial_0000"), Full())
    assert (outcome["status"], outcome["full"]) == (trial.UNKEPT, full.format(sweep=sweep))


def test_a_trial_whose_sweeps_folder_has_gone_makes_none_anew_and_can_be_gone_on_with(tmp_path: Path) -> None:
    class Moved(Told):
        def tell(self, evaluation: Any) -> None:
            (tmp_path / "sweep").rename(tmp_path / "moved")

    outcome = trial.outcome_of(config_of(tmp_path / "sweep" / "trials" / "trial_0000"), Moved())
    assert (outcome["status"], outcome["full"]) == (trial.UNKEPT, None)
    assert outcome["error"].startswith("FileNotFoundError: ")
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
