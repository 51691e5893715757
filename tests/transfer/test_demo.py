"""The demo: the whole chain on this machine, and again at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widthwise.transfer import Recipe, cli

OPTIONS = "--width 32 --target-width 64 --trials 3 --tokens 40960 --out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--trials 0", "trials: must be >= 1, got 0"),
        ("--width 0", "model.width: must be >= 1, got 0"),
        ("--width 65", "model.width: must be a multiple of head_dim = 16, got 65"),
        ("--tokens 5", "horizon.tokens: must be >= batch_tokens = 2048, got 5"),
        ("--seed -1", "seed: must be >= 0, got -1"),
        ("--target-width 0", "target_width: must be >= 1, got 0"),
        ("--target-width 100", "target_width: must be a multiple of head_dim = 16, got 100"),
        ("--trials many", "trials: must be a whole number, got 'many'"),
        (
            "--data short.txt",
            "data: short.txt: the training split must hold at least context + 1 = 129 tokens, got 6",
        ),
        (
            "--data missing.txt",
            "data: no such file or folder: missing.txt; "
            "use 'python', a text file, a .bin shard or a folder of them",
        ),
    ],
)
def test_an_impossible_demo_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_bytes(b"Short.")
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", *options.split()])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out, captured.err) == (2, "", f"widthwise: error: {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_prints_what_it_found_and_a_second_one_repeats_nothing(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    running = start("demo", "--data", real_text, *OPTIONS.split(), out)
    status, printed, said = running.finish(seconds=300)
    assert status == 0, said
    running.require_gone()

    results = {name: json.loads((out / name / "result.json").read_text()) for name in ("target", "baseline")}
    rules = {"target": "fan-sqrt", "baseline": "sp"}
    for name, result in results.items():
        assert (result["status"], result["steps"], result["width"]) == ("completed", 20, 64)
        assert f"\n{name}, width 64, rule {rules[name]}: {result['loss']:.4f}, " in printed
    difference = results["target"]["loss"] - results["baseline"]["loss"]
    verdict = "lower" if difference < 0 else "higher"
    assert f"\nwith the plan the loss is {abs(difference):.4f} {verdict} (one seed each)\n" in printed
    evidence = Recipe.load(out / "sweep" / "recipe.json").evidence or {}
    assert f"\nproxy, width 32: validation loss {evidence['loss']:.4f} nats per token" in printed
    listed = printed.rpartition("files: ")[2].split(", ")
    assert len(listed) == 6
    assert all(Path(name.strip()).exists() for name in listed)

    status, repeated, said = start("demo", "--json", "--data", real_text, *OPTIONS.split(), out).finish(
        seconds=60
    )
    assert status == 0
    assert json.loads(repeated) == {"results": results, "report": str(out / "report.html")}
    # Neither a trial nor a step was taken.
    assert "trial" not in [line.partition(" ")[0] for line in said.splitlines()]
    assert "step" not in [line.partition(" ")[0] for line in said.splitlines()]
