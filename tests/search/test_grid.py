"""Given runs: which comes next, whatever was killed before; and the real thing on a real Ray."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import Trial, TrialState

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.outcome import RunOptions, TrainResult
from widthwise.proxies.runs import RunSpec, base_settings, run
from widthwise.proxies.validation import ConfigError
from widthwise.search.grid import Grid, Outcome, Run, run_all
from widthwise.search.outlook import Outlook

from ..reported import reports

CONFIG = {"widths": [32, 64], "rule": {"name": "fan-sqrt"}}


def spec(lr: float = 0.02, steps: int = 60) -> RunSpec:
    hyperparameters = Hyperparameters(lr=lr, weight_decay=0.4, huber_c=2.0, clip_norm=1.0)
    return RunSpec(
        model=GPTConfig(width=32, context=64),
        base_width=32,
        horizon=Horizon(batch_tokens=1024, tokens=1024 * steps),
        hyperparameters=hyperparameters,
        settings=base_settings(hyperparameters),
        data="elsewhere",
    )


def run_of(key: str, seed: int = 0, lr: float = 0.02, steps: int = 60) -> Run:
    return Run(key=key, spec=spec(lr, steps), seed=seed, options={"evaluations": 3, "validation_batches": 2})


def three(outcomes: Mapping[str, Outcome]) -> list[Run]:
    """Want three runs, and after these one more."""
    rest = [run_of("d", seed=3)] if len(outcomes) >= 3 else []
    return [run_of(key, seed) for seed, key in enumerate("abc")] + rest


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Grid]]:
    """Return a function that opens a grid in `tmp_path`; all are closed at the end."""
    grids: list[Grid] = []

    def open_grid(more: Any = three, config: Any = CONFIG, *, resume: bool = False) -> Grid:
        grids.append(Grid(more, tmp_path / "grid", config, data="/data", what="check", resume=resume))
        return grids[-1]

    yield open_grid
    for grid in grids:
        grid.close()


def begin(grid: Grid) -> tuple[int, Run]:
    trial = grid.next()
    assert isinstance(trial, Trial)
    return trial.number, grid.run(trial)


def complete(grid: Grid, number: int, loss: float = 3.0) -> None:
    measured = {"diagnostics": {"kinds": {"matrix": {"rms": 0.5}}}}
    outcome = {"loss": loss, "tokens": 61440, "seconds": 1.5, "measured": measured}
    grid.finish(number, "completed", outcome)


def test_the_time_left_is_known_once_a_run_of_each_width_has_ended(opened: Callable[..., Grid]) -> None:
    wide = spec().model_copy(update={"model": GPTConfig(width=64, context=64)})
    runs = [*(run_of(key) for key in "abc"), Run(key="d", spec=wide, seed=0), Run(key="e", spec=wide, seed=0)]
    grid = opened(lambda outcomes: runs)
    numbers = [begin(grid)[0] for _ in range(4)]
    took = {0: 1.0, 1: 3.0, 3: 9.0}
    for number, seconds in took.items():
        assert grid.outlook().seconds is None
        grid.finish(numbers[number], "completed", {"loss": 3.0, "tokens": 61440, "seconds": seconds})
    # One narrow run still runs, one wide one is still to come.
    assert grid.outlook() == Outlook(2, 2.0 + 9.0)


def test_runs_come_in_the_order_wanted_until_nothing_new_is(opened: Callable[..., Grid]) -> None:
    grid = opened()
    started = [begin(grid) for _ in range(3)]
    assert [(run.key, run.seed, run.options["evaluations"]) for _, run in started] == [
        ("a", 0, 3),
        ("b", 1, 3),
        ("c", 2, 3),
    ]
    # The data is the grid's, wherever the spec had it from.
    assert started[0][1].spec == spec().model_copy(update={"data": "/data"})
    assert (grid.next(), grid.outlook().trials) == ("wait", 3)
    grid.report(0, 20, 3.5)
    for number in (1, 0):
        complete(grid, number, 3.0 + number)
    assert grid.next() == "wait"
    grid.finish(2, "diverged", {"loss": math.inf, "tokens": 1024, "seconds": 0.5, "measured": {}})
    assert (begin(grid)[1].key, grid.outlook().trials) == ("d", 1)
    assert not grid.is_finished()
    complete(grid, 3)
    assert grid.next() == "finished"
    assert grid.is_finished()

    outcomes = grid.outcomes()
    assert list(outcomes) == ["a", "b", "c", "d"]
    assert outcomes["a"] == Outcome(
        status="completed",
        loss=3.0,
        tokens=61440,
        seconds=1.5,
        curve=((20, 3.5),),
        measured={"diagnostics": {"kinds": {"matrix": {"rms": 0.5}}}},
    )
    assert (outcomes["c"].status, outcomes["c"].loss) == ("diverged", None)
    assert grid.study.get_trials()[2].value == math.inf
    lines = [json.loads(line) for line in (grid.out / "runs.jsonl").read_text().splitlines()]
    assert [(line["key"], line["seed"], line["status"]) for line in lines] == [
        ("a", 0, "completed"),
        ("b", 1, "completed"),
        ("c", 2, "diverged"),
        ("d", 3, "completed"),
    ]


def test_a_run_that_is_no_longer_wanted_is_not_started(opened: Callable[..., Grid]) -> None:
    grid = opened(lambda outcomes: [] if outcomes else three({}))
    complete(grid, begin(grid)[0])
    assert grid.next() == "finished"
    assert list(grid.outcomes()) == ["a"]


def test_a_resumed_grid_keeps_what_ended_and_takes_up_what_was_interrupted(
    opened: Callable[..., Grid],
) -> None:
    first = opened()
    complete(first, begin(first)[0], 3.25)
    interrupted, run = begin(first)
    first.close()
    # What was started is run as it was wanted, even where it would not be any more.
    second = opened(lambda outcomes: [run_of("a"), run_of("c")], resume=True)
    assert second.outcomes()["a"].loss == 3.25
    assert begin(second) == (interrupted, run)
    assert begin(second)[1].key == "c"
    for number in (1, 2):
        complete(second, number)
    assert second.is_finished()
    assert list(second.outcomes()) == ["a", "b", "c"]
    assert [trial.state for trial in second.study.get_trials()] == [TrialState.COMPLETE] * 3


def test_a_failed_run_is_made_up_for(opened: Callable[..., Grid]) -> None:
    grid = opened()
    number, _ = begin(grid)
    grid.finish(number, "failed", {"error": "the worker died"})
    keys = []
    for _ in range(4):
        number, run = begin(grid)
        complete(grid, number)
        keys.append(run.key)
    assert keys == ["a", "b", "c", "d"]
    assert list(grid.outcomes()) == keys
    assert grid.is_finished()
    assert grid.records()[0]["error"] == "the worker died"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a/b"], "key: must be letters, digits, '.', '_' and '-', got 'a/b'"),
        (["a", "b", "a"], "key: must be unique, got 'a' twice"),
    ],
)
def test_a_key_names_one_run(opened: Callable[..., Grid], keys: list[str], message: str) -> None:
    grid = opened(lambda outcomes: [run_of(key) for key in keys])
    with pytest.raises(ConfigError) as caught:
        grid.next()
    assert str(caught.value) == message


def test_a_resumed_grid_must_be_the_one_that_was_started(opened: Callable[..., Grid], tmp_path: Path) -> None:
    out = tmp_path / "grid"
    with pytest.raises(ConfigError) as caught:
        opened(resume=True)
    assert str(caught.value) == f"out: {out} holds no check to resume"
    out.mkdir()
    (out / "study.db").touch()
    with pytest.raises(ConfigError) as caught:
        opened()
    assert str(caught.value) == f"out: {out} holds a sweep; name another folder"
    (out / "study.db").unlink()
    opened().close()
    with pytest.raises(ConfigError) as caught:
        opened()
    rule = "holds a check already; add --resume to go on with it, or name another folder"
    assert str(caught.value) == f"out: {out} {rule}"
    with pytest.raises(ConfigError) as caught:
        opened(config={**CONFIG, "rule": {"name": "sp"}}, resume=True)
    rule = f"must be as the check in {out} was started, fan-sqrt"
    assert str(caught.value) == f"rule.name: {rule}, got sp"


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ("tokens.txt", "the validation split must hold at least context + 1 = 65 tokens, got 50"),
        ("tokens.bin", "token 500 is beyond the vocabulary: vocab_size must be > 500, got 256"),
    ],
)
def test_data_that_do_not_suffice_are_told_before_anything_is_started(
    tmp_path: Path, written: str, rule: str
) -> None:
    np.full(500, 500, dtype=np.uint16).tofile(path := tmp_path / written)
    with pytest.raises(ConfigError) as caught:
        run_all(three, tmp_path / "grid", config=CONFIG, data=str(path))
    assert str(caught.value) == f"data: {path}: {rule}"
    assert not (tmp_path / "grid").exists()


# Steps of a run that is still being trained when its first evaluation has been seen.
LONG = 1200
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from dataclasses import asdict
from pathlib import Path
from tests.search.test_grid import CONFIG, LONG, run_of
from widthwise.search.grid import Placement, run_all

def more(outcomes):
    # 1e6 diverges at once; the last is wanted only where that is known.
    known = "diverging" in outcomes and outcomes["diverging"].status == "diverged"
    return [run_of("one"), run_of("diverging", lr=1e6)] + [run_of("two", seed=1, steps=LONG)] * known

outcomes = run_all(
    more, Path(sys.argv[3]), config=CONFIG, data=sys.argv[2], resume="resume" in sys.argv,
    placement=Placement(concurrency=1),
)
print(json.dumps({key: asdict(outcome) for key, outcome in outcomes.items()}))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_real_runs_survive_the_death_of_the_driver(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "grid"
    arguments = (Path(__file__).parents[2], real_text, out)

    running = start(*arguments, script=SCRIPT)
    running.until(lambda: reports(out / "runs.db", 2))
    running.kill()
    status, printed, said = start(*arguments, "resume", script=SCRIPT).finish()
    assert (status, len(said.splitlines())) == (0, 3), said
    outcomes = json.loads(printed)
    assert [(key, outcome["status"]) for key, outcome in outcomes.items()] == [
        ("one", "completed"),
        ("diverging", "diverged"),
        ("two", "completed"),
    ]
    assert outcomes["diverging"]["loss"] is None
    for key, seed, steps in (("one", 0, 60), ("two", 1, LONG)):
        expected = trained(run_of(key, seed, steps=steps), real_text)
        assert outcomes[key]["loss"] == expected.loss
        assert outcomes[key]["curve"] == [[metrics.step, metrics.loss] for metrics in expected.history]
        assert outcomes[key]["measured"]["grad_norm"] == expected.history[-1].grad_norm
    # What has ended is not run again.
    again = run_all(lambda _: [run_of("one")], out, config=CONFIG, data=str(real_text), resume=True)
    assert {key: outcome.loss for key, outcome in again.items()} == {
        key: outcome["loss"] for key, outcome in outcomes.items()
    }


def trained(given: Run, text: Path) -> TrainResult:
    """Train as a worker does, here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spec = given.spec.model_copy(update={"data": str(text)})
        return run(spec, RunOptions(seed=given.seed, **given.options))
    finally:
        torch.set_num_threads(threads)
