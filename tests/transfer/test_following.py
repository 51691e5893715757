"""A target run's progress: each evaluation is shown once, and none of an earlier attempt's."""

import json
from pathlib import Path

import pytest

from widthwise.proxies.files import write_atomic
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


def test_nothing_is_shown_where_nothing_shall_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    with following(tmp_path, 8, done=0, enabled=False):
        path.write_text(line(4, 20))
    assert capsys.readouterr() == ("", "")
