"""The real program, from the sweep that measures the bands to a run that they end and one that goes on after it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widthwise.transfer import Recipe, cli
from widthwise.transfer.watching.telling import told_all, told_in_short

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SHAPE = "--width 32 --depth 1 --context 32 --tokens 32768 --batch-tokens 512"
SPACE = "[space]\nlr = [0.025, 0.035]\nweight_decay = [1.5, 2.5]\nhuber_c = [1.8, 2.2]\ndecay = ['huber']\n"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_sweep_measures_the_bands_that_its_targets_are_watched_by(
    start: Callable[..., Any], real_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.toml").write_text(SPACE)
    few = "--trials 2 --finalists 1 --seeds 3 --concurrency 2 --config"
    options = ["--data", real_text, "--out", tmp_path / "sweep"]
    swept = start("sweep", *SHAPE.split(), *few.split(), tmp_path / "space.toml", *options)
    status, _, said = swept.finish(seconds=300)
    assert status == 0, said
    recipe = tmp_path / "sweep" / "recipe.json"
    bands = (Recipe.load(recipe).evidence or {})["bands"]
    # The seed that the finalist was chosen on has not measured.
    assert (bands["seeds"], list(bands["kinds"])) == (2, ["matrix", "embedding", "readout"])
    assert list(bands["fractions"]) == [count / 8 for count in range(1, 9)]

    def launch(out: str, *more: object) -> tuple[int, str, str]:
        command = ["launch", recipe, "--width", 128, "--data", real_text, "--evaluations", 8]
        ended: tuple[int, str, str] = start(*command, "--out", tmp_path / out, *more).finish(seconds=300)
        return ended

    status, printed, said = launch("sound", "--peak-tflops", "0.1")
    assert status == 0, said
    assert "alarms: none\n" in printed
    assert "alarm" not in said
    assert json.loads((tmp_path / "sound" / "result.json").read_text())["alarms"] == []
    measured = lines(tmp_path / "sound" / "metrics.jsonl")
    for one in measured:
        assert one["mfu"] == pytest.approx(one["flops"] / one["seconds"] / 1e11)
        assert set(one["diagnostics"]["kinds"]) == {"matrix", "embedding", "readout"}

    status, _, said = launch(
        "sp", "--rule", "sp", "--abort-on", "alarm", "--workers", 2, "--parallel", "fsdp"
    )
    result = json.loads((tmp_path / "sp" / "result.json").read_text())
    step = result["steps"]
    assert (status, result["status"]) == (1, "stopped")
    assert step < 64
    first, *others = (line for line in said.splitlines() if line.startswith("widthwise: alarm"))
    assert all(line.endswith("likely cause: as above") for line in others)
    assert "η is too high for the width: rule 'sp' gives matrices ×1, µP ×0.25" in first
    why, count = told_in_short(result["alarms"]), len(result["alarms"])
    assert why.endswith(": η is too high for the width: rule 'sp' gives matrices ×1, µP ×0.25")
    failed = (
        f"widthwise: failed: {f'{count} alarms' if count > 1 else 'an alarm'} stopped the run at step {step} ({why}); "
        f"the checkpoint of step {step} is kept; go on with --resume --abort-on divergence"
    )
    assert said.splitlines()[-1] == failed
    again = launch("sp", "--rule", "sp", "--abort-on", "alarm", "--workers", 2, "--resume")
    assert (again[0], again[2].splitlines()[-1]) == (1, failed)
    with pytest.raises(SystemExit):
        cli.main(["status", str(tmp_path / "sp")])
    shown = capsys.readouterr().out
    assert all(f"  {line}\n" in shown for line in told_all(result["alarms"]))

    status, printed, said = launch("sp", "--rule", "sp", "--workers", 2, "--resume")
    assert status == 0, said
    result = json.loads((tmp_path / "sp" / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("completed", 64)
    assert f"alarms: {len(result['alarms'])}, in {tmp_path / 'sp' / 'alarms.jsonl'}\n" in printed
    assert lines(tmp_path / "sp" / "alarms.jsonl")[0]["step"] <= step
