"""What TensorBoard is told of a sweep, read from its files by their format: every point once, whatever was killed."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from widthwise.proxies import GPTConfig, Horizon
from widthwise.proxies.validation import ConfigError
from widthwise.search import SweepConfig, sweep
from widthwise.search import tracking as tracking_module
from widthwise.search.ledger import Ledger
from widthwise.search.tracking import Tracking

from ..events import events, points

HORIZON = Horizon(batch_tokens=1024, tokens=1024 * 60)
LOSSES = {20: 3.5, 40: 3.0, 60: 2.75}
POINTS = [(1024 * step, loss) for step, loss in LOSSES.items()]


@pytest.fixture
def said() -> list[str]:
    """Return what the user was warned of."""
    return []


@pytest.fixture
def opened(tmp_path: Path, said: list[str]) -> Iterator[Callable[..., tuple[Ledger, Tracking]]]:
    """Return a function that opens a sweep in `tmp_path` and what tells its trackers, as `sweep` does."""
    ledgers: list[Ledger] = []

    def begin(*, resume: bool = False, trackers: tuple[Any, ...] = ("tensorboard",)) -> Any:
        config = SweepConfig(model=GPTConfig(width=32, context=64), horizon=HORIZON, trials=6)
        for ledger in ledgers:
            ledger.close()
        ledgers.append(Ledger(config, tmp_path / "sweep", resume=resume))
        return ledgers[-1], Tracking(ledgers[-1], trackers, tokens_per_step=1024, warn=said.append)

    yield begin
    for ledger in ledgers:
        ledger.close()


def train(ledger: Ledger, tracking: Tracking, steps: list[int], status: str | None = "completed") -> int:
    """Let the next trial report its losses at `steps` and end, as Ray Tune does; return its number."""
    trial = ledger.next()
    assert not isinstance(trial, str)
    run = ledger.run(trial)
    tracking.began(trial.number)
    for step in steps:
        ledger.report(trial.number, step, LOSSES.get(step, float("nan")))
        tracking.reported(trial.number, {"step": step, "loss": LOSSES.get(step, float("nan"))})
    if status is not None:
        ledger.finish(trial.number, status, {"loss": run.spec.hyperparameters.lr, "tokens": 61440})  # type: ignore[arg-type]
        tracking.ended(trial.number)
    return trial.number


def hparams(out: Path, number: int) -> list[Any]:
    """Return what TensorBoard's table is told: the columns, the start, and the end where there was one."""
    values = [
        value
        for event in events(out / "tensorboard" / f"trial_{number:04d}")
        for value in event.summary.value
    ]
    contents = [value.metadata.plugin_data.content for value in values if value.tag.startswith("_hparams_/")]
    return [HParamsPluginData.FromString(content) for content in contents]


def test_a_trial_is_a_run_with_its_settings_and_its_loss_by_tokens(opened: Callable[..., Any]) -> None:
    ledger, tracking = opened()
    with tracking:
        for status in ("completed", "diverged"):
            train(ledger, tracking, [20, 40, 60], status)
        train(ledger, tracking, [20, 30])  # the second loss is not finite
    assert points(ledger.out, 0) == points(ledger.out, 1) == POINTS
    assert points(ledger.out, 2) == POINTS[:1]
    record = ledger.record(0)
    expected = {name: value for name, value in record["hyperparameters"].items() if value is not None}
    columns, start, end = hparams(ledger.out, 0)
    assert [info.name.tag for info in columns.experiment.metric_infos] == ["loss"]
    told = {
        name: value.string_value or value.number_value
        for name, value in start.session_start_info.hparams.items()
    }
    assert told == {**expected, "width": 32, "seed": 0}
    assert end.session_end_info.status == 1  # STATUS_SUCCESS


def test_a_damaged_file_of_what_trackers_have_seen_costs_a_warning(
    opened: Callable[..., Any], said: list[str]
) -> None:
    ledger, tracking = opened()
    with tracking:
        train(ledger, tracking, [20, 40, 60])
    path = ledger.out / "tracked.json"
    path.write_text("{")
    ledger, tracking = opened(resume=True)
    with tracking:
        train(ledger, tracking, [20])
    [line] = said
    assert line.startswith(f"{path}: ")
    assert line.endswith("; trackers are told of all trials anew")
    assert json.loads(path.read_text())["seen"] == {"tensorboard": ["trial_0000", "trial_0001"]}


def test_a_trackers_error_is_told_without_the_password_in_it(
    opened: Callable[..., Any], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise ConnectionError("API request to http://me:secret@host:5000/api failed")

    monkeypatch.setattr(tracking_module, "begin_with", refuses)
    ledger, tracking = opened()
    with tracking:
        train(ledger, tracking, [20])
    why = "ConnectionError: API request to http://***@host:5000/api failed"
    assert said == [f"tensorboard is told no more ({why}); --resume makes up for it"]


def test_a_killed_sweep_has_every_point_once(opened: Callable[..., Any]) -> None:
    ledger, tracking = opened()
    with tracking:
        assert json.loads((ledger.out / "tracked.json").read_text()) == {"sweep": tracking.sweep, "seen": {}}
        train(ledger, tracking, [20, 40, 60])
        train(ledger, tracking, [20, 40], status=None)
    # As a kill leaves it: a torn file, and the study has heard of one end more than TensorBoard has.
    whole = json.loads((ledger.out / "tracked.json").read_text())
    ledger.run(ledger.next())
    ledger.report(2, 20, LOSSES[20])
    ledger.finish(2, "completed", {"loss": 2.5})
    [torn] = (ledger.out / "tensorboard" / "trial_0001").iterdir()
    torn.write_bytes(torn.read_bytes()[:-3])

    ledger, tracking = opened(resume=True)
    with tracking:
        # The trial goes on from a checkpoint that is older than what was reported.
        assert train(ledger, tracking, [40, 60]) == 1
    assert points(ledger.out, 0) == points(ledger.out, 1) == POINTS
    assert points(ledger.out, 2) == POINTS[:1]
    assert [len(hparams(ledger.out, number)) for number in range(3)] == [3, 3, 3]
    seen = json.loads((ledger.out / "tracked.json").read_text())
    assert seen == {
        "sweep": whole["sweep"],
        "seen": {"tensorboard": ["trial_0000", "trial_0002", "trial_0001"]},
    }


def test_a_tracker_that_was_not_asked_for_is_told_of_all_when_it_is(opened: Callable[..., Any]) -> None:
    ledger, tracking = opened(trackers=())
    with tracking:
        train(ledger, tracking, [20, 40, 60])
    assert not (ledger.out / "tensorboard").exists()
    assert not (ledger.out / "tracked.json").exists()
    ledger, tracking = opened(resume=True)
    with tracking:
        pass
    assert points(ledger.out, 0) == POINTS


def test_a_tracker_that_fails_is_left_alone_until_the_sweep_is_resumed(
    opened: Callable[..., Any], said: list[str]
) -> None:
    ledger, tracking = opened()
    (ledger.out / "tensorboard").write_text("a file where the folder should be")
    with tracking:
        train(ledger, tracking, [20, 40, 60])
        train(ledger, tracking, [20])
    path = ledger.out / "tensorboard"
    reason = f"FileExistsError: [Errno 17] File exists: '{path}'"
    assert said == [f"tensorboard is told no more ({reason}); --resume makes up for it"]
    assert [record["status"] for record in ledger.records()] == ["completed"] * 2

    (ledger.out / "tensorboard").unlink()
    ledger, tracking = opened(resume=True)
    with tracking:
        pass
    assert [points(ledger.out, number) for number in range(2)] == [POINTS, POINTS[:1]]


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_anything_is_written(
    tracker: Any, real_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)  # as where it is not installed
    with pytest.raises(ConfigError) as error:
        sweep(SweepConfig(data=str(real_text), log=(tracker,)), tmp_path / "sweep")
    assert str(error.value) == f"log: {tracker} needs its package: pip install {tracker}"
    assert not (tmp_path / "sweep").exists()


def test_a_run_that_is_begun_again_is_put_away_first(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    class Heard:
        def __init__(self, name: str, settings: Any) -> None:
            heard.append(f"begin {name}")

        def point(self, tokens: int, loss: float) -> None:
            heard.append(f"point {tokens}")

        def end(self, status: str | None) -> None:
            heard.append(f"end {status}")

    monkeypatch.setattr("widthwise.search.tracking.begin_with", lambda *_: Heard)
    ledger, tracking = opened()
    with tracking:
        number = train(ledger, tracking, [20], status=None)
        ledger.put_back(number)
        assert train(ledger, tracking, [20, 40]) == number
    begun = ["begin trial_0000", f"point {1024 * 20}"]
    assert heard == [*begun, "end None", *begun, f"point {1024 * 40}", "end completed"]


class Slow:
    """A tracker that answers when it is let go."""

    def __init__(self) -> None:
        self.answers, self.asked = Event(), Event()
        self.told: list[int] = []

    def begin(self, name: str, settings: Any) -> "Slow":
        return self

    def point(self, tokens: int, loss: float) -> None:
        self.asked.set()
        assert self.answers.wait(60)
        self.told.append(tokens)

    def end(self, status: str | None) -> None:
        pass


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Return the tracker that stands in the place of TensorBoard, whose time to answer at the end is short."""
    tracker = Slow()
    monkeypatch.setattr("widthwise.search.tracking.begin_with", lambda *_: tracker.begin)
    monkeypatch.setattr("widthwise.search.tracking.SECONDS_TO_LEAVE", 0.01)
    return tracker


def test_an_interrupted_sweep_does_not_wait_for_a_slow_tracker(
    opened: Callable[..., Any], said: list[str], slow: Slow
) -> None:
    ledger, tracking = opened()
    with tracking:
        train(ledger, tracking, [20, 40, 60])
        assert slow.asked.wait(60)
    assert said == ["tensorboard did not answer in time, and the last was not told; --resume makes up for it"]
    slow.answers.set()
    tracking.thread.join(60)
    assert slow.told == [1024 * 20]  # and nothing afterwards
    assert json.loads((ledger.out / "tracked.json").read_text())["seen"] == {}


def test_a_finished_sweep_waits_for_its_trackers(
    opened: Callable[..., Any], said: list[str], slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, tracking = opened()
    monkeypatch.setattr(ledger, "is_finished", lambda: True)
    tracking.warn = lambda line: (said.append(line), slow.answers.set())
    with tracking:
        train(ledger, tracking, [20, 40, 60])
    assert said == ["tensorboard did not answer in time; waiting, Ctrl-C gives up"]
    assert slow.told == [tokens for tokens, _ in POINTS]
