"""The demo: the whole chain on this machine, and again at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widthwise.transfer import Recipe

OPTIONS = "--width 32 --target-width 64 --trials 3 --tokens 40960 --out"


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
