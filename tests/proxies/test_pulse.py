"""Signs of life of a run: one when its workers begin, and then one as often as is asked for."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from widthwise.proxies import RunOptions, pulse
from widthwise.proxies.pulse import Beat, last_beat
from widthwise.proxies.runs import run

from .tiny import tiny_run

STEPS = 6
SPEC = tiny_run(STEPS, batch_tokens=32)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[RunOptions], list[Beat]]:
    """Return a function that trains, and returns what stood in the file one after the other."""

    def written(options: RunOptions) -> list[Beat]:
        found: list[Beat] = []
        write = pulse.write_json

        def also_kept(path: Path, document: dict[str, float]) -> None:
            write(path, document)
            beat = last_beat(path)
            assert beat is not None
            found.append(beat)

        with monkeypatch.context() as patch:
            patch.setattr(pulse, "write_json", also_kept)
            run(SPEC, options)
        return found

    return written


def test_a_run_says_when_it_begins_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: Callable[[RunOptions], list[Beat]]
) -> None:
    options = RunOptions(
        evaluations=2, checkpoint=tmp_path / "checkpoint", pulse=str(tmp_path / "pulse.json")
    )
    monkeypatch.setattr(pulse, "SECONDS_BETWEEN_BEATS", math.inf)
    [begun] = beats(options)
    assert (begun.workers, begun.first_step, begun.step, begun.tokens_per_second) == (1, 0, 0, None)
    monkeypatch.setattr(pulse, "SECONDS_BETWEEN_BEATS", 0.0)
    again = replace(options, checkpoint=tmp_path / "other")
    every = beats(again)
    assert [beat.step for beat in every] == list(range(STEPS + 1))
    assert {(beat.first_step, beat.started) for beat in every} == {(0, every[0].started)}
    assert all(beat.tokens_per_second for beat in every[1:])
    [resumed] = beats(again)
    assert (resumed.first_step, resumed.step) == (STEPS, STEPS)
    assert resumed.started > every[0].started


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    assert run(SPEC, RunOptions(pulse=str(tmp_path / "missing" / "pulse.json"))).status == "completed"
    assert last_beat(tmp_path / "missing" / "pulse.json") is None
