"""What is said of a run that an alarm stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from widthwise.transfer import cli, launching


def test_the_alarm_that_stopped_a_run_is_named_and_not_one_before(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after a resumption: the loss's alarm had been passed over at first, and stops the run when it comes again.
    raised = [(10, "loss", "η is too high"), (20, "rms", "λ is too low"), (30, "loss", "noise")]
    alarms = [
        {"step": step, "quantity": what, "kind": "matrix", "cause": cause} for step, what, cause in raised
    ]

    def launch(_: object, out: Path, *__: object, **___: object) -> dict[str, Any]:
        out.mkdir()
        (out / "alarms.jsonl").write_text("".join(f"{json.dumps(alarm)}\n" for alarm in alarms))
        return {"status": "stopped", "steps": 30, "alarms": alarms[:2]}

    monkeypatch.setattr(launching, "launch", launch)
    command = ["launch", recipe, "--width", "64", "--data", "python", "--out", str(tmp_path / "target")]
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    told = "an alarm stopped the run at step 30 (noise); there is no checkpoint"
    rest = "go on with --resume --abort-on divergence"
    captured = capsys.readouterr().err.splitlines()
    assert (stop.value.code, captured[-1]) == (1, f"widthwise: failed: {told}; {rest}")
