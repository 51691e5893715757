"""SIGTERM, SIGHUP and Ctrl-C within a session of Ray, and what holds of signals after it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from widthwise.search import cluster


def mine(*_: object) -> None:
    raise AssertionError


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Give SIGTERM and SIGINT a handler of the caller's; nohup, where the tests run under it, has none for SIGHUP."""
    callers = {signal.SIGTERM: mine, signal.SIGINT: mine, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in callers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_is_ctrl_c_once_for_its_repeats_and_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    with cluster._terminated_as_interrupted() as take:
        # As Ray does while it starts.
        signal.signal(signal.SIGTERM, mine)
        take()
        monkeypatch.setattr(cluster.time, "monotonic", lambda: now)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        now += 1.5
        signal.raise_signal(signal.SIGTERM)
        now += 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_dropped_while_ray_started_is_made_up_for(number: signal.Signals) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with cluster._terminated_as_interrupted() as take:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            take()


class Interrupted:
    """Is interrupted where Python drops what is raised."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


class Failing:
    def __del__(self) -> None:
        raise ValueError("another")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_python_drops_comes_again_and_is_not_printed(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: told.append(str(one.exc_value)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    callers = sys.unraisablehook
    with cluster._terminated_as_interrupted():
        with pytest.raises(KeyboardInterrupt):
            _let_go(Interrupted(number))
        assert told == []
        Failing()
        assert told == ["another"]
    assert sys.unraisablehook is callers


def _let_go(one: Interrupted) -> None:
    del one
    Event().wait(60)


def test_the_callers_handlers_are_there_again_after_an_end_by_sigterm() -> None:
    def terminated() -> None:
        with cluster._terminated_as_interrupted():
            # As Tune does, which leaves it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        terminated()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == [mine, mine]


EMBEDDED = """
import atexit, signal, sys
from contextlib import suppress
from pathlib import Path
from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon
from widthwise.search import SweepConfig, sweep
atexit.register(print, "the program's own end")
config = SweepConfig(
    model=GPTConfig(width=32, context=64),
    horizon=Horizon(batch_tokens=1024, tokens=51200),
    data=sys.argv[2],
    concurrency=1,
    trials=2,
    seeds=1,
)
mine = lambda *_: None
signal.signal(signal.SIGTERM, mine)
print(sweep(config, Path(sys.argv[1])).finished, signal.getsignal(signal.SIGTERM) is mine, flush=True)
print(sweep(config, Path(sys.argv[1]), resume=True).finished)
sys.exit(3)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_program_outlives_sigterm_to_all_processes_and_can_go_on_with_its_sweep(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    running = start(out, real_text, script=EMBEDDED)
    running.until((out / "trials" / "trial_0000" / "checkpoint.pt").exists)
    # As scancel and systemd do: Ray's own processes end under the driver.
    os.killpg(running.process.pid, signal.SIGTERM)
    status, printed, _ = running.finish()
    assert (status, printed) == (3, "False True\nTrue\nthe program's own end\n")
    running.require_gone()
