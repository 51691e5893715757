"""How folders stand: read from another process, while it runs and afterwards, without a change to them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import Trial

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon
from widthwise.proxies.files import locked
from widthwise.search import SearchSpace, SweepConfig
from widthwise.search.ledger import Ledger
from widthwise.search.sweeping import SweepResult, result_of
from widthwise.transfer import Recipe, cli
from widthwise.transfer.commands.sweep import Sweep
from widthwise.transfer.standing import standing


def status(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["status", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def swept(tmp_path: Path) -> Ledger:
    """Return a sweep's books with a trial of every ending, and one that runs; a blank and a % in its path."""
    config = SweepConfig(
        model=GPTConfig(width=32, context=64),
        horizon=Horizon(batch_tokens=1024, tokens=10240),
        space=SearchSpace(lr=(0.02, 0.02), weight_decay=(0.5, 0.5), decay=("l2",)),
    )
    ledger = Ledger(config, tmp_path / "a 50% sweep", resume=False)
    for _ in range(6):
        trial = ledger.next()
        assert isinstance(trial, Trial)
        ledger.run(trial)
    for number, loss in ((0, 3.5), (1, 4.5), (5, 4.25)):
        ledger.report(number, 5, loss)
    ledger.finish(0, "completed", {"loss": 3.25, "tokens": 10240, "seconds": 1.5})
    ledger.finish(1, "stopped", {"loss": 4.5, "tokens": 5120, "seconds": 0.75})
    ledger.finish(2, "diverged", {"loss": math.inf, "tokens": 1024, "seconds": 0.25})
    ledger.finish(3, "failed", {"error": "OSError: no space left"})
    ledger.finish(4, "failed", {})
    return ledger


def test_a_finished_sweep_whose_study_is_away_prints_its_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    ledger = Ledger(SweepConfig(trials=1, seeds=1, finalists=1), out, resume=False)
    trial = ledger.next()
    assert isinstance(trial, Trial)
    ledger.run(trial)
    ledger.finish(0, "completed", {"loss": 3.25, "tokens": 10240, "seconds": 1.5})
    result = result_of(ledger, "data")
    ledger.close()
    Recipe.from_sweep(result).save(out / "recipe.json")
    expected = standing(out)

    def swept(_: Sweep) -> SweepResult:
        (out / "study.db").unlink()
        return result

    monkeypatch.setattr(Sweep, "_swept", swept)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", "--resume", "--out", str(out), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (stop.value.code, document.pop("out")) == (0, str(out))
    assert document.pop("recipe")["schema"]
    assert [document] == expected


def test_a_confirmation_that_waits_is_to_come(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ledger = Ledger(SweepConfig(trials=1, seeds=3, finalists=1), tmp_path, resume=False)
    for _ in range(2):
        trial = ledger.next()
        assert isinstance(trial, Trial)
        ledger.run(trial)
        if trial.number == 0:
            ledger.finish(0, "completed", {"loss": 3.25, "tokens": 10240, "seconds": 1.5})
    printed = status(capsys, tmp_path)[1]
    ledger.close()
    assert printed.splitlines()[1].startswith("  1 completed, 1 running, 1 to come; 10,240 tokens in 2 s")


def test_a_sweep_is_seen_as_it_runs_and_when_it_is_dead(
    capsys: pytest.CaptureFixture[str], swept: Ledger
) -> None:
    before = contents(swept.out)

    def said(state: str, left: str = "") -> list[str]:
        return [
            f"{swept.out}: sweep, {state}",
            f"  1 completed, 1 stopped, 1 diverged, 2 failed, 1 {state}, 34 to come; 16,384 tokens in 2 s{left}",
            "  best: trial 0, loss 3.2500, lr 0.02, weight_decay 0.5, decay l2",
            f"  {state}: trial 5, loss 4.2500, step 5",
            "  failed: trial 3: OSError: no space left",
            "  failed: trial 4: the worker died",
        ]

    code, printed, told = status(capsys, swept.out)
    [left] = re.findall(r", about \d+ s left", printed)
    assert (code, printed, told) == (0, "\n".join([*said("running", left), ""]), "")
    [part] = standing(swept.out)
    # 29 proposals that take 0.83 s each, as those that ended, and 6 confirmations of 1.5 s, since the last end.
    assert 0 < part["seconds_left"] < 29 * 2.5 / 3 + 6 * 1.5
    swept.close()
    stopped = status(capsys, swept.out)
    # A command to copy: the blank is quoted.
    going_on = f"  go on with: widthwise sweep --resume --out '{swept.out}'"
    assert stopped == (0, "\n".join([*said("interrupted"), going_on, ""]), "")
    assert contents(swept.out) == before
    # A recipe of a former end does not make it finished.
    (swept.out / "recipe.json").write_text("{}")
    _, printed, _ = status(capsys, swept.out.parent, "--json")
    [part] = json.loads(printed)["parts"]
    unfinished = [{"trial": "5", "step": 5, "loss": 4.25}]
    assert (part["state"], part["best"]["loss"], part["running"]) == ("interrupted", 3.25, unfinished)
    assert (part["to_come"], part["seconds_left"]) == (34, None)
    resumed = Ledger(swept.config, swept.out, resume=True)
    resumed.next()
    resumed.finish(5, "completed", {"loss": 3.5, "tokens": 10240, "seconds": 1.5})
    resumed.close()
    _, printed, _ = status(capsys, swept.out, "--json")
    [part] = json.loads(printed)["parts"]
    assert (part["state"], part["running"]) == ("finished", [])
    following = f"  next: widthwise scale '{swept.out}' --width 1024"
    assert status(capsys, swept.out)[1].splitlines()[-1] == following


VERDICT = "inconclusive: the horizon is too short"


def write_verdict(folder: Path) -> None:
    (folder / "check.json").write_text(json.dumps({"verdict": {"sentence": VERDICT}}))


def write_target(folder: Path, **result: Any) -> None:
    folder.mkdir()
    (folder / ".lock").touch()
    plan = {"rule": "fan-sqrt", "ratios": {}, "kinds": {}, "model": {"width": 128}}
    (folder / "plan.json").write_text(
        json.dumps({**plan, "horizon": {"batch_tokens": 1024, "tokens": 90_000}})
    )
    line = {"step": 30, "tokens": 30_000, "loss": 2.5, "tokens_per_second": 500.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    if result:
        (folder / "result.json").write_text(json.dumps({"steps": 30, "seconds": 60.0, **result}))


def test_a_target_run_is_seen_as_it_runs_and_when_it_has_ended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_target(tmp_path / "one")
    write_target(tmp_path / "two", status="diverged", loss=None, tokens=30_000)
    with locked(tmp_path / "one"):
        seen = status(capsys, tmp_path)
    speed = "500 tokens/s"
    assert seen[1].splitlines() == [
        f"{tmp_path / 'one'}: target, running",
        f"  30,000 of 89,088 tokens, validation loss 2.5000, {speed}, 2 min left",
        f"{tmp_path / 'two'}: target, finished",
        f"  30,000 of 89,088 tokens, diverged, {speed}",
    ]
    assert status(capsys, tmp_path / "one")[1].splitlines() == [
        f"{tmp_path / 'one'}: target, interrupted",
        f"  30,000 of 89,088 tokens, validation loss 2.5000, {speed}",
        "  go on with the same command and --resume",
    ]


def test_what_a_checkpoint_keeps_after_the_last_evaluation_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_target(tmp_path / "one")
    for name in ("step_000000030", "step_000000040", ".step_000000050.unfinished", "step_000000060.copy"):
        (tmp_path / "one" / "checkpoints" / name).mkdir(parents=True)
    assert status(capsys, tmp_path / "one")[1].splitlines()[1].startswith("  40,960 of 89,088 tokens, ")


def test_a_target_run_is_at_its_end_with_its_last_whole_batch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_target(tmp_path / "one", status="completed", loss=2.25, tokens=89_088)
    assert status(capsys, tmp_path / "one")[1].splitlines() == [
        f"{tmp_path / 'one'}: target, finished",
        "  89,088 of 89,088 tokens, validation loss 2.2500, 500 tokens/s",
    ]


def test_a_check_that_trained_nothing_is_finished(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_verdict(tmp_path)
    assert status(capsys, tmp_path) == (0, f"{tmp_path}: check, finished\n  {VERDICT}\n", "")
    (tmp_path / "check.json").write_text("{}")
    message = f"{tmp_path / 'check.json'}: verdict: is required"
    assert status(capsys, tmp_path) == (2, "", f"widthwise: error: {message}\n")


def test_a_check_is_told_in_runs_and_with_its_verdict_once_finished(
    capsys: pytest.CaptureFixture[str], swept: Ledger
) -> None:
    swept.study.set_user_attr("what", "check")
    _, said, _ = status(capsys, swept.out)
    assert said.startswith(f"{swept.out}: check, running\n  1 completed, 1 stopped, ")
    assert "  running: run 5, loss 4.2500, step 5\n  failed: run 3: " in said
    assert "best" not in said
    swept.finish(5, "completed", {"loss": 3.5, "tokens": 10240, "seconds": 1.5})
    running = swept.next()
    assert isinstance(running, Trial)
    swept.run(running)
    assert "  running: run 6, no loss yet\n" in status(capsys, swept.out)[1]
    swept.finish(6, "completed", {"loss": 3.5, "tokens": 10240, "seconds": 1.5})
    swept.close()
    assert status(capsys, swept.out)[1].endswith("  go on with the same command and --resume\n")
    write_verdict(swept.out)
    _, said, _ = status(capsys, swept.out)
    assert said.splitlines()[:2] == [f"{swept.out}: check, finished", f"  {VERDICT}"]
    assert said.splitlines()[2].startswith("  3 completed, ")
    assert "best" not in said


def test_a_folder_with_nothing_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = f"folder: {tmp_path} holds no sweep, check or target run"
    assert status(capsys, tmp_path) == (2, "", f"widthwise: error: {message}\n")
    (tmp_path / "study.db").write_text("no database")
    code, _, said = status(capsys, tmp_path)
    assert (code, len(said.splitlines())) == (2, 1)
    broken = f"folder: {tmp_path / 'study.db'} cannot be read as a study (file is not a database)"
    advice = "put a copy of it back, or begin anew in another folder"
    assert said == f"widthwise: error: {broken}; {advice}\n"
    (tmp_path / "trials.jsonl").write_text("{}\n")
    assert (
        status(capsys, tmp_path)[2] == f"widthwise: error: {broken}; {advice} with --warm-start {tmp_path}\n"
    )


def test_a_subfolder_that_cannot_be_read_hides_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_target(tmp_path / "one", status="completed", loss=2.25, tokens=89_088)
    broken = tmp_path / "two" / "study.db"
    broken.parent.mkdir()
    broken.write_text("no database")
    code, printed, said = status(capsys, tmp_path)
    assert (code, printed.splitlines()[0]) == (0, f"{tmp_path / 'one'}: target, finished")
    assert said.startswith(
        f"widthwise: left out: {broken.parent}: folder: {broken} cannot be read as a study ("
    )
