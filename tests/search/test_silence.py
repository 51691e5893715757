"""A head of Ray that does not answer."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from widthwise.search import silence
from widthwise.search.silence import NO_ANSWER, SILENT, not_for_ever

SWEEP = "sweep --width 32 --context 64 --batch-tokens 1024 --trials 30 --seeds 1 --log none"
DEATH = "the local Ray's raylet was killed by SIGKILL"


@pytest.mark.parametrize(("death", "said"), [(None, [SILENT, NO_ANSWER]), (DEATH, [DEATH, NO_ANSWER])])
def test_silence_is_said_and_then_ends_the_process(
    death: str | None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "SECONDS_OF_SILENCE", 0.01)
    monkeypatch.setattr(silence, "SECONDS_TO_THE_END", 1.0)
    monkeypatch.setattr(silence, "local_death", lambda: death)
    told: list[str] = []
    ended = Event()

    def end(why: str) -> None:
        told.append(why)
        if why == NO_ANSWER:
            ended.set()

    with not_for_ever(told.append, end):
        assert ended.wait(60)
    assert told == said


def test_an_answer_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Any] = []

    class Kept(silence.Timer):
        def start(self) -> None:
            timers.append(self)
            super().start()

    monkeypatch.setattr(silence, "Timer", Kept)
    told: list[str] = []
    with not_for_ever(told.append, told.append):
        assert len(timers) == 2
    for timer in timers:
        timer.join()
    assert told == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_head_that_hangs_ends_the_sweep_which_leaves_nothing_and_goes_on(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    running = start(*SWEEP.split(), "--tokens", 102400, "--data", real_text, "--out", out, "--quiet")
    running.until((out / "trials" / "trial_0000" / "checkpoint.pt").exists)
    [head] = [pid for pid, name in running.processes().items() if "gcs_server" in name]
    os.kill(head, signal.SIGSTOP)
    status, printed, said = running.finish()
    assert (status, printed) == (1, "")
    assert said == f"widthwise: failed: {NO_ANSWER}; what has ended is kept: go on with --resume\n"
    running.require_gone()
    status, _, said = start("sweep", "--resume", "--trials", 6, "--out", out, "--quiet").finish()
    assert (status, said) == (0, "")
