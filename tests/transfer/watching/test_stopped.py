"""What is said of a run that an alarm stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.transfer import cli, launching

RAISED = [
    (10, "loss", "run", "η is too high"),
    (20, "rms", "matrix", "λ is too low"),
    (30, "loss", "run", "noise"),
]


@pytest.mark.parametrize(
    ("raised", "stopped"),
    [
        # As after a resumption: the loss's alarm had been passed over at first, and stops the run when it comes again.
        (RAISED, "an alarm stopped the run at step 30 (validation loss: noise)"),
        (
            [*RAISED, (30, "gain", "matrix", "noise")],
            "2 alarms stopped the run at step 30 (validation loss, gain of the matrix weights: noise)",
        ),
        # Where the file has gone, or was put back from a copy.
        (RAISED[:2], "an alarm stopped the run at step 30"),
        ([], "an alarm stopped the run at step 30"),
    ],
)
def test_the_alarms_that_stopped_a_run_are_named_and_none_before(
    recipe: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: list[tuple[int, str, str, str]],
    stopped: str,
) -> None:
    names = ("step", "quantity", "kind", "cause")
    alarms = [dict(zip(names, one, strict=True)) for one in raised]

    def launch(_: object, out: Path, *__: object, **___: object) -> dict[str, Any]:
        out.mkdir()
        if alarms:
            (out / "alarms.jsonl").write_text("".join(f"{json.dumps(alarm)}\n" for alarm in alarms))
        return {"status": "stopped", "steps": 30, "alarms": alarms[:2]}

    monkeypatch.setattr(launching, "launch", launch)
    command = ["launch", recipe, "--width", "64", "--data", "python", "--out", str(tmp_path / "target")]
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    told = f"{stopped}; there is no checkpoint; go on with --resume --abort-on divergence"
    captured = capsys.readouterr().err.splitlines()
    assert (stop.value.code, captured[-1]) == (1, f"widthwise: failed: {told}")
