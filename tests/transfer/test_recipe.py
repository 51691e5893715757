"""Recipes: the smallest one loads, all fields are saved, and every fault of a file is named in one line."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.validation import ConfigError
from widthwise.search import SearchSpace, SweepConfig, SweepResult
from widthwise.search.fitting import Fit
from widthwise.search.space import Point
from widthwise.search.sweeping import Finalist, SeedLosses
from widthwise.transfer import Recipe
from widthwise.transfer.commands.sweep import Sweep, show
from widthwise.transfer.recipe import evidence_notes
from widthwise.transfer.sweep_files import as_options, as_toml

SMALLEST = """
{"schema": "widthwise/recipe/1",
 "hyperparameters": {"lr": 0.02, "weight_decay": 0.4, "huber_c": 2.0, "betas": [0.9, 0.95], "eps": 1e-8,
                     "decay": "huber", "threshold": "mean", "corrected": true},
 "proxy": {"width": 64, "depth": 2, "head_dim": 16, "context": 128, "vocab_size": 256},
 "horizon": {"batch_tokens": 2048, "tokens": 409600, "warmup_fraction": 0.1, "schedule": "cosine"}}
"""
ABSENT = object()


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.json"
    path.write_text(text)
    return path


def edited(path: str, value: Any) -> str:
    """Return the smallest recipe with the field at a dotted path replaced, added or (ABSENT) removed."""
    document = json.loads(SMALLEST)
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place[name]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document)


def test_the_smallest_recipe_loads(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, SMALLEST))
    assert recipe.hyperparameters == Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0)
    assert recipe.proxy == GPTConfig(width=64, depth=2, head_dim=16, context=128, vocab_size=256)
    assert recipe.horizon == Horizon(batch_tokens=2048, tokens=409600)
    assert (recipe.evidence, recipe.provenance) == (None, None)


def test_huber_c_may_be_null_where_the_decay_is_not_huber(tmp_path: Path) -> None:
    document = json.loads(edited("hyperparameters.decay", "l2"))
    document["hyperparameters"]["huber_c"] = None
    assert Recipe.load(written(tmp_path, json.dumps(document))).hyperparameters.huber_c is None


def test_a_saved_recipe_holds_every_field_and_loads_as_it_was(tmp_path: Path) -> None:
    recipe = Recipe(
        hyperparameters=Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0),
        proxy=GPTConfig(width=64),
        horizon=Horizon(),
        evidence={"loss": 2.5},
    )
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    document = json.loads((tmp_path / "recipe.json").read_text())
    assert list(document) == [
        "schema",
        "hyperparameters",
        "proxy",
        "horizon",
        "rule",
        "evidence",
        "provenance",
    ]
    assert set(document["proxy"]) == set(GPTConfig.model_fields)
    assert [one.name for one in tmp_path.iterdir()] == ["recipe.json"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST)
    recipe = Recipe.load(path).model_copy(update={"evidence": {"loss": float("nan")}})
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        recipe.save(path)
    assert path.read_text() == SMALLEST
    assert [one.name for one in tmp_path.iterdir()] == ["recipe.json"]


FAULTY_TEXTS = [
    ("", "is empty, must be a recipe"),
    (" \n", "is empty, must be a recipe"),
    (SMALLEST[:60], "not valid JSON at line 3, column 27: Expecting value"),
    ('{"schema": }', "not valid JSON at line 1, column 12: Expecting value"),
    ("[]", "must be an object, got a list"),
    ("null", "must be an object, got null"),
    ("3", "must be an object, got a number"),
    ("{}", "schema: is required, must be 'widthwise/recipe/1'"),
]
FAULTY_FIELDS: list[tuple[str, Any, str]] = [
    ("schema", "widthwise/recipe/2", "schema: must be 'widthwise/recipe/1', got 'widthwise/recipe/2'"),
    ("schema", ["x"], "schema: must be 'widthwise/recipe/1', got ['x']"),
    ("proxi", {}, "proxi: unknown field; did you mean 'proxy'?"),
    ("proxy", ABSENT, "proxy: is required"),
    ("proxy", [], "proxy: must be an object, got []"),
    ("proxy.width", ABSENT, "proxy.width: is required"),
    ("proxy.width", 64.5, "proxy.width: must be a whole number, got 64.5"),
    ("proxy.width", "64", "proxy.width: must be a whole number, got '64'"),
    ("proxy.width", 0, "proxy.width: must be >= 1, got 0"),
    ("proxy.width", 100, "proxy.width: must be a multiple of head_dim = 16, got 100"),
    ("proxy.widht", 64, "proxy.widht: unknown field; did you mean 'width'?"),
    ("horizon.tokens", ABSENT, "horizon.tokens: is required"),
    ("horizon.tokens", 2047, "horizon.tokens: must be >= batch_tokens = 2048, got 2047"),
    ("horizon.schedule", "cosin", "horizon.schedule: must be 'cosine', 'linear' or 'wsd', got 'cosin'; did you mean 'cosine'?"),  # noqa: E501
    ("hyperparameters.lr", ABSENT, "hyperparameters.lr: is required"),
    ("hyperparameters.lr", 0, "hyperparameters.lr: must be > 0, got 0"),
    ("hyperparameters.lr", True, "hyperparameters.lr: must be a number, got true"),
    ("hyperparameters.lr", float("nan"), "hyperparameters.lr: must be finite, got nan"),
    ("hyperparameters.lr", float("inf"), "hyperparameters.lr: must be finite, got inf"),
    ("hyperparameters.weight_decay", -0.1, "hyperparameters.weight_decay: must be >= 0, got -0.1"),
    ("hyperparameters.weight_decay", "0.4", "hyperparameters.weight_decay: must be a number, got '0.4'"),
    ("hyperparameters.huber_c", None, "hyperparameters.huber_c: is required where decay is 'huber'"),
    ("hyperparameters.betas", [0.9], "hyperparameters.betas.1: is required"),
    ("hyperparameters.betas", [0.9, 1.0], "hyperparameters.betas.1: must be in [0, 1), got 1.0"),
]  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    return str(caught.value)


@pytest.mark.parametrize(("text", "message"), FAULTY_TEXTS)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    assert refusal(path) == f"{path}: {message}"


@pytest.mark.parametrize(("field", "value", "message"), FAULTY_FIELDS)
def test_a_faulty_field_is_refused_by_its_path(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = written(tmp_path, edited(field, value))
    assert refusal(path) == f"{path}: {message}"


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    missing, binary = tmp_path / "none.json", tmp_path / "binary.json"
    binary.write_bytes(b"{\xff\xfe}")
    assert refusal(missing) == f"{missing}: no such file, must be a recipe"
    assert refusal(tmp_path) == f"{tmp_path}: is a folder, must be a recipe"
    assert refusal(binary) == f"{binary}: not UTF-8 text at byte 1, must be a recipe"
    assert refusal(binary / "below") == f"{binary / 'below'}: cannot be read: Not a directory"


@pytest.mark.parametrize("text", ['{"schema": ' + "9" * 5000 + "}", "[" * 100_000])
def test_json_beyond_the_parsers_limits_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert refusal(path).startswith(f"{path}: not valid JSON: ")


def swept(config: SweepConfig, best: Hyperparameters, records: list[dict[str, Any]]) -> SweepResult:
    finalist = Finalist(number=3, hyperparameters=best, losses={5: 2.0, 6: 2.5, 7: 3.5})
    return SweepResult(
        config=config,
        finalists=[finalist],
        fit=Fit(trials=4, problem="4 trials near the best, 9 are needed"),
        records=records,
        finished=True,
        seconds=12.34,
        ended=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
        data_fingerprint="abc",
    )


def record(
    number: int, decay: str, loss: float, status: str = "completed", confirms: int | None = None
) -> dict[str, Any]:
    ended = {"status": status, "loss": loss, "confirms": confirms, "fitted": False}
    tried = {"hyperparameters": {"decay": decay}, "horizon": SweepConfig().horizon.tokens}
    return {"number": number, **tried, **ended}


def test_the_finalists_fit_a_terminal() -> None:
    screen = StringIO()
    tuned = Hyperparameters(lr=0.03, weight_decay=17.0, huber_c=0.76)
    out, console = Path("my [red] sweep"), Console(file=screen, width=80)
    show(swept(SweepConfig(), tuned, [record(3, "huber", 2.0)]), out, console)
    title, *lines = screen.getvalue().splitlines()
    assert title.strip() == "finalists, the recommended first"
    [row] = [line for line in lines if "17" in line]
    assert row.replace("│", " ").split() == [
        "3",
        "0.03",
        "17",
        "0.76",
        "2.6667",
        "3.0000",
        "±",
        "0.7638",
        "3",
    ]
    assert "confirmed: mean loss without the seed that they were chosen on" in lines
    recipe = out / "recipe.json"
    assert lines[-1] == f"recipe: {recipe}; next: widthwise scale '{recipe}' --width 1024"


def test_a_recipe_of_a_sweep_holds_its_evidence_and_its_whole_configuration() -> None:
    config = SweepConfig(data="python", space=SearchSpace(decay=("huber", "l2", "none")), seed=5)
    tuned = Hyperparameters(lr=0.03, weight_decay=17.0, huber_c=0.76)
    records = [
        record(0, "l2", 2.3),
        record(1, "l2", 2.2),
        record(2, "l2", 1.0, "stopped"),
        record(3, "huber", 2.0),
        record(4, "huber", 1.9, confirms=3),
    ]
    recipe = Recipe.from_sweep(swept(config, tuned, records))
    evidence, provenance = recipe.evidence or {}, recipe.provenance or {}
    [finalist] = evidence.pop("finalists")
    assert evidence == {
        "loss": 8 / 3,
        "confirmed": 3.0,
        "seed_spread": pytest.approx(0.7637626),
        "fit": Fit(trials=4, problem="4 trials near the best, 9 are needed").as_json(),
        "luckiest": 3,
        "best_by_decay": {"huber": 2.0, "l2": 2.2, "none": None},
        "at_edge": ["weight_decay", "huber_c"],
        "trials": {"completed": 4, "stopped": 1},
    }
    assert (finalist["losses"], finalist["confirmed"]) == ({"5": 2.0, "6": 2.5, "7": 3.5}, 3.0)
    result = swept(config, tuned, records)
    courses = {
        seed: [{"step": 200, "loss": loss, "gradient_norm": 0.5, "kinds": {}}]
        for seed, loss in ((6, 2.5), (7, 3.5))
    }
    measured = replace(result, finalists=[replace(result.best, courses=courses)])
    bands = (Recipe.from_sweep(measured).evidence or {})["bands"]
    assert (bands["seeds"], bands["fractions"]) == (2, [1.0])
    assert (bands["run"]["loss"]["low"], bands["run"]["loss"]["high"]) == ([2.5], [3.5])
    assert SweepConfig.parse(json.loads(json.dumps(provenance["config"]))) == config
    assert (provenance["seconds"], provenance["finished"]) == (12.3, "2026-01-02T03:04:05+00:00")


@pytest.mark.parametrize(
    ("losses", "mean", "confirmed", "score"),
    [
        ({0: 2.0}, 2.0, None, 2.0),
        ({0: 2.0, 1: 3.0, 2: 3.0}, 8 / 3, 3.0, 3.0),
        ({7: 2.0, 1: math.inf}, math.inf, math.inf, math.inf),
    ],
)
def test_finalists_are_compared_by_the_seeds_they_were_not_chosen_on(
    losses: dict[int, float], mean: float, confirmed: float | None, score: float
) -> None:
    found = SeedLosses(losses=losses)
    assert (found.mean, found.confirmed, found.score) == (mean, confirmed, score)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["spread"] == found.spread


@pytest.mark.parametrize(
    ("lr", "bounds", "edge"),
    [
        (0.01, (0.01, 1.0), True),
        # The range's logarithm is two decades: a twentieth of it is 10^0.1 = 1.26.
        (0.0125, (0.01, 1.0), True),
        (0.0127, (0.01, 1.0), False),
        (0.1, (0.01, 1.0), False),
        (0.78, (0.01, 1.0), False),
        (0.8, (0.01, 1.0), True),
        (0.1, (0.1, 0.1), False),
    ],
)
def test_a_best_value_close_to_an_end_of_its_range_is_named(
    lr: float, bounds: tuple[float, float], edge: bool
) -> None:
    config = SweepConfig(space=SearchSpace(lr=bounds))
    tuned = Hyperparameters(lr=lr, weight_decay=2.0, decay="l2")
    assert swept(config, tuned, []).at_edge == (["lr"] if edge else [])


WIDEN = (
    "widen it in a new sweep, "
    "with [space] {} = [LOW, HIGH] in --config FILE.toml, and --warm-start this one's folder"
)


def test_the_evidence_is_said_a_line_each() -> None:
    assert evidence_notes({"huber": 2.25, "l2": None}, ["weight_decay", "huber_c"], SearchSpace()) == [
        "best loss by form of decay, one seed each: huber 2.2500, l2 none completed",
        f"note: λ is at the edge of its range [0.2, 20]: {WIDEN.format('weight_decay')}",
        f"note: c is at the edge of its range [0.75, 4]: {WIDEN.format('huber_c')}",
    ]
    assert evidence_notes({}, ["lr"], None) == [f"note: η is at the edge of its range: {WIDEN.format('lr')}"]


def sweep_of(config: SweepConfig, folder: Path) -> SweepConfig:
    """Return what ``widthwise sweep`` makes of the options and the file that `config` is written as."""
    (folder / "config.toml").write_text(as_toml(config))
    return Sweep(config=folder / "config.toml", **as_options(config))._config(None)


def test_a_configuration_is_written_as_options_and_a_file(tmp_path: Path) -> None:
    usual = SweepConfig(model=GPTConfig(width=32), trials=7, seeds=2, concurrency=3, data="a b.txt")
    assert as_toml(usual) == ""
    assert sweep_of(usual, tmp_path) == usual
    unusual = SweepConfig(
        model=GPTConfig(width=32, mlp="relu2", norm_gain=True),
        horizon=Horizon(schedule="wsd", tokens=4096),
        space=SearchSpace(lr=(1e-8, 0.5), decay=("l2", "none")),
        betas=(0.8, 0.9),
        prune=False,
        clip_norm=2.0,
        warm_start=(Point(lr=0.1, weight_decay=0.5, decay="l2"),),
    )
    assert as_toml(unusual).splitlines() == [
        "betas = [0.8, 0.9]",
        "clip_norm = 2.0",
        "prune = false",
        "[model]",
        "norm_gain = true",
        'mlp = "relu2"',
        "[horizon]",
        'schedule = "wsd"',
        "[space]",
        "lr = [1e-08, 0.5]",
        'decay = ["l2", "none"]',
        "[[warm_start]]",
        "lr = 0.1",
        "weight_decay = 0.5",
        'decay = "l2"',
    ]
    assert sweep_of(unusual, tmp_path) == unusual
    for shape in ({"tied": True}, {"tied": True, "readout_multiplier": 1.0}, {"readout_multiplier": 0.25}):
        config = SweepConfig(model=GPTConfig(width=24, head_dim=8, **shape))  # type: ignore[arg-type]
        assert sweep_of(config, tmp_path) == config


def test_what_toml_cannot_say_is_said_in_a_comment(tmp_path: Path) -> None:
    unclipped = SweepConfig(clip_norm=None)
    assert as_toml(unclipped) == "# clip_norm: none, which only SweepConfig(clip_norm=None) can say\n"
    assert sweep_of(unclipped, tmp_path) == SweepConfig()
