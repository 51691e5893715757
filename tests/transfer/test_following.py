"""A target run's progress: each evaluation is shown once, and none of an earlier attempt's."""

import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies.files import write_atomic, write_json
from widthwise.proxies.pulse import PULSE, Beat
from widthwise.transfer.following import following


def line(step: int, speed: float) -> str:
    return json.dumps({"step": step, "loss": 1 / step, "tokens_per_second": speed}) + "\n"


@pytest.mark.parametrize(
    ("before", "done", "told"),
    [
        ("", None, ["step 4: loss 0.2500, 20 tokens/s", "step 8: loss 0.1250, 30 tokens/s"]),
        (
            line(4, 20) + line(8, 99),
            4,
            ["going on from step 4", "step 8: loss 0.1250, 30 tokens/s"],
        ),
        (
            "",
            0,
            ["going on from step 0", "step 4: loss 0.2500, 20 tokens/s", "step 8: loss 0.1250, 30 tokens/s"],
        ),
    ],
    ids=["new", "resumed before its last evaluation", "resumed before the first"],
)
def test_evaluations_are_shown_as_they_appear(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, done: int | None, told: list[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    if before:
        path.write_text(before)
    with following(tmp_path, 8, done=done):
        write_atomic(path, line(4, 20) + line(8, 30))
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()) == ("", told)


def test_a_half_written_line_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, shown = tmp_path / "metrics.jsonl", "step 4: loss 0.2500, 20 tokens/s"
    whole = line(4, 20)
    with following(tmp_path, 8) as say:
        path.write_text(whole + line(8, 30)[:12])
        say("written")
    assert capsys.readouterr().err.splitlines() == ["written", shown]
    path.write_text(whole[:-1])
    with following(tmp_path, 8, begun="begun"):
        path.write_text(whole)
    assert capsys.readouterr().err.splitlines() == ["begun", shown]


def alarm(quantity: str, cause: str) -> str:
    found = {
        "step": 4,
        "tokens": 8,
        "quantity": quantity,
        "kind": "run",
        "value": 2.0,
        "low": None,
        "high": 1.0,
    }
    return json.dumps({**found, "cause": cause, "advice": "mend it"}) + "\n"


def test_a_cause_of_several_alarms_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with following(tmp_path, 8):
        alarms = alarm("loss", "this") + alarm("gradient_norm", "this") + alarm("loss", "that")
        write_atomic(tmp_path / "alarms.jsonl", alarms + alarm("gain", "that"))
    outside = "2, above the proxies' band at 1; likely cause:"
    assert capsys.readouterr().err.splitlines() == [
        f"widthwise: alarm at step 4: validation loss {outside} this; mend it",
        f"widthwise: alarm at step 4: gradient norm {outside} as above",
        f"widthwise: alarm at step 4: gain of the run weights {outside} that; mend it",
    ]


def beat(started: float, step: int) -> dict[str, Any]:
    return Beat(started=started, workers=2, first_step=1, step=step, tokens_per_second=10.0).model_dump()


def test_workers_that_begin_are_told_and_long_silence_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / PULSE
    write_json(path, beat(1.0, 1))
    with following(tmp_path, 80):  # of an earlier attempt
        pass
    with following(tmp_path, 80):
        write_json(path, beat(2.0, 3))
    with following(tmp_path, 80):
        write_json(path, beat(2.0, 5))
    begun = "training on 2 workers, from step 1"
    assert capsys.readouterr().err.splitlines() == [begun]
    monkeypatch.setattr("widthwise.transfer.following.SECONDS_OF_SILENCE", -1.0)
    with following(tmp_path, 80):
        write_json(path, beat(2.0, 7))
    assert capsys.readouterr().err.splitlines() == ["step 7 of 80: 10 tokens/s"]


def test_nothing_is_shown_where_nothing_shall_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    with following(tmp_path, 8, done=0, enabled=False):
        path.write_text(line(4, 20))
    assert capsys.readouterr() == ("", "")
