"""A sharded run on nodes that leave and come back: it goes on with those there are, and learns the same."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import GPTConfig, RunOptions
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.runs import run
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import LaunchOptions, Recipe, cli, launching
from widthwise.transfer.commands.options import worker_range
from widthwise.transfer.launch_options import passes, require_possible
from widthwise.transfer.own_model import own_model

STEPS, EVALUATIONS = 1000, 100
RECIPE = Recipe(
    hyperparameters=Hyperparameters(lr=0.01, weight_decay=1.0, huber_c=2.0, clip_norm=1.0),
    proxy=GPTConfig(width=16, context=32),
    horizon=Horizon(batch_tokens=256, tokens=256 * STEPS),
)
# Its steps take their time while there is a file, so that nodes leave and come back in the middle.
PACED = """
import time
from pathlib import Path
from torch import nn


class Paced(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.readout = nn.Linear(width, 256)

    def forward(self, tokens):
        if self.training and Path("{folder}/slowly").exists():
            time.sleep(0.1)
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.readout(x)
"""


def test_a_pass_is_never_larger_than_planned() -> None:
    for wanted in range(1, 9):
        for accumulate in (1, 2, 3):
            sequences = wanted * accumulate * 2  # two to a pass
            for there in range(1, wanted + 1):
                parts = passes(accumulate, wanted=wanted, there=there)
                share = -(-sequences // there)
                assert -(-share // parts) <= 2
                assert parts == 1 or -(-share // (parts - 1)) > 2 or sequences % there


@pytest.mark.parametrize(("text", "found"), [("4", (None, 4)), ("2-4", (2, 4)), ("3-3", (3, 3))])
def test_ranges_of_workers(text: str, found: tuple[int | None, int]) -> None:
    assert worker_range(text) == found


@pytest.mark.parametrize("text", ["", "a", "-2", "2-", "2-4-6", "1.5"])
def test_what_is_no_range_of_workers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^workers: must be a whole number or a range like 2-4, got "):
        worker_range(text)


def test_a_range_begins_with_its_fewest() -> None:
    with pytest.raises(ConfigError, match=r"^workers: must be a range from fewest to most, got '4-2'$"):
        worker_range("4-2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2, "min_workers": 4}, "min_workers: must be <= workers 2, got 4"),
        (
            {"workers": 4, "min_workers": 2, "parallel": "hsdp"},
            "workers: a range needs parallel 'ddp' or 'fsdp', got 'hsdp'",
        ),
        ({"workers": 3, "min_workers": 2}, "workers: must divide the 8 sequences of a batch, got 3"),
    ],
)
def test_what_cannot_be_elastic(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        require_possible(RECIPE.at(width=64), LaunchOptions(**options))
    assert str(raised.value) == message


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trains_on(node: Any) -> bool:
    return any("RayTrainWorker" in name for name in node.processes().values())


@pytest.fixture
def paced(start: Callable[..., Any], real_text: Path) -> Callable[..., tuple[Any, Path]]:
    """Return a function that starts a run whose steps take their time while there is a file ``slowly``."""

    def begin(folder: Path, workers: str, parallel: str, address: str) -> tuple[Any, Path]:
        (folder / "paced.py").write_text(PACED.replace("{folder}", str(folder)))
        (folder / "slowly").touch()
        RECIPE.save(folder / "recipe.json")
        program = f"import os; os.chdir({str(folder)!r}); from widthwise.transfer.cli import main; main()"
        command = ["launch", "recipe.json", "--width", 64, "--data", real_text, "--evaluations", EVALUATIONS]
        command += ["--model", "paced:Paced", "--workers", workers, "--parallel", parallel]
        out = folder / "target"
        return start(*command, "--out", out, "--address", address, script=program), out

    return begin


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_goes_on_without_a_node_and_takes_one_back(
    cluster: Any,
    paced: Callable[..., tuple[Any, Path]],
    real_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parallel: str,
) -> None:
    nodes = [cluster(), cluster()]
    running, out = paced(tmp_path, "1-2", parallel, cluster.address)
    monkeypatch.chdir(tmp_path)

    def moves_on(evaluations: int = 2) -> None:
        wanted = (lines(out) or [{"step": 0}])[-1]["step"] + evaluations * STEPS // EVALUATIONS
        running.until(lambda: lines(out) and lines(out)[-1]["step"] >= wanted, seconds=300)

    moves_on()
    assert all(map(trains_on, nodes))
    nodes.pop().kill_all()
    moves_on()
    nodes.append(cluster())
    running.until(lambda: trains_on(nodes[-1]), seconds=300)
    moves_on()
    assert all(map(trains_on, nodes))
    (tmp_path / "slowly").unlink()
    status, _, said = running.finish(seconds=300)
    assert status == 0, said

    plan = RECIPE.at(width=64)
    options = LaunchOptions(data=str(real_text))
    spec = launching._spec(plan, options, own_model(plan, "paced:Paced"))
    expected = run(spec, RunOptions(evaluations=EVALUATIONS)).history
    assert [line["step"] for line in lines(out)] == [metrics.step for metrics in expected]
    for line, metrics in zip(lines(out), expected, strict=True):
        # Sums in another order differ by a rounding, which training then amplifies.
        tolerance = 1e-5 if metrics.step <= 100 else 1e-3
        assert line["loss"] == pytest.approx(metrics.loss, abs=tolerance)
        assert line["train_loss"] == pytest.approx(metrics.train_loss, abs=tolerance)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_with_too_few_nodes_says_that_it_waits_and_goes_on(
    cluster: Any,
    paced: Callable[..., tuple[Any, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = [cluster(), cluster()]
    running, out = paced(tmp_path, "2-4", "ddp", cluster.address)
    running.until(lambda: lines(out), seconds=300)
    nodes.pop().kill_all()
    told = "the run needs 2 workers, and Ray has room for"
    # Ray takes a dead node for a living one for a while, which has nothing free.
    waits = re.compile(rf"waiting for nodes: {told} 1(; room for 1 more is not free)?\n")
    running.until(lambda: waits.search(running.err.read_text()), seconds=300)
    with pytest.raises(SystemExit):
        cli.main(["status", str(out)])
    assert waits.search(capsys.readouterr().out)
    cluster()
    running.until(lambda: f"widthwise: nodes are back: {told} 2\n" in running.err.read_text(), seconds=300)
    (tmp_path / "slowly").unlink()
    status, _, said = running.finish(seconds=400)
    assert status == 0, said
    assert said.count("waiting for nodes") == 1
    assert said.count("training on 2 workers, from step ") == 2
    assert not (out / "waiting.json").exists()
