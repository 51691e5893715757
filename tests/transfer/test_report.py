"""The report: one page without a network, its numbers those of the files, whatever state the files are in."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna import Trial

from widthwise.proxies import GPTConfig, Horizon
from widthwise.proxies.outcome import Metrics, RunOptions
from widthwise.proxies.runs import RunSpec, base_settings, run
from widthwise.proxies.validation import ConfigError
from widthwise.search.config import SweepConfig
from widthwise.search.ledger import Ledger
from widthwise.search.sweeping import result_of
from widthwise.transfer import Recipe, cli
from widthwise.transfer.cli import _parse
from widthwise.transfer.commands.launch import Launch
from widthwise.transfer.commands.sweep import Sweep
from widthwise.transfer.reporting import report
from widthwise.transfer.reporting.formats import (
    Evidence,
    FinalistLine,
    MetricsLine,
    PlanFile,
    PlanKind,
    TrialLine,
)
from widthwise.transfer.reporting.reading import read_contents
from widthwise.transfer.reporting.summary import finalists

from .conftest import commands

MODEL = GPTConfig(width=16, depth=1, context=32)
HORIZON = Horizon(batch_tokens=128, tokens=128 * 12)
OPTIONS = {"evaluations": 4, "validation_batches": 1}
HOSTILE = "<script>alert('1 & 2')<"


class Page(HTMLParser):
    """A page's visible text, its tags, its section ids and everything that it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.references: list[str | None] = []
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.tags[tag] += 1
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.references.append(value)
            if tag == "section" and name == "id":
                self.ids.append(str(value))

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def train_trial(ledger: Ledger, trial: Trial) -> None:
    """Train one trial of a sweep in this process, where Ray would take longer to start than it trains."""
    tuned = ledger.hyperparameters(trial)
    config = ledger.config
    spec = RunSpec(
        model=config.model,
        base_width=config.model.width,
        horizon=config.horizon,
        hyperparameters=tuned,
        settings=base_settings(tuned),
        data=config.data,
    )
    result = run(
        spec,
        RunOptions(seed=ledger.seed(trial), **OPTIONS),
        lambda metrics: ledger.report(trial.number, metrics.step, metrics.loss),
    )
    outcome = {"loss": result.loss, "tokens": result.tokens, "seconds": result.seconds}
    ledger.finish(trial.number, result.status, outcome)


def train_target(folder: Path, recipe: Recipe, rule: str, data: str) -> None:
    folder.mkdir()
    plan = recipe.at(width=32, rule=rule)
    recipe.save(folder / "recipe.json")
    (folder / "plan.json").write_text(json.dumps(plan.document() | {"data": "python", "seed": 0}))
    spec = RunSpec(
        model=plan.model,
        base_width=recipe.proxy.width,
        horizon=plan.horizon,
        hyperparameters=recipe.hyperparameters,
        settings={kind: plan.settings(kind) for kind in plan.kinds},
        data=data,
    )
    with (folder / "metrics.jsonl").open("w") as file:

        def keep(metrics: Metrics) -> None:
            file.write(json.dumps(asdict(metrics)) + "\n")

        result = run(spec, RunOptions(**OPTIONS, diagnostics=True), keep)
    ending = {name: getattr(result, name) for name in ("status", "loss", "steps", "tokens", "seconds")}
    (folder / "result.json").write_text(json.dumps({**ending, "rule": rule, "width": 32}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, real_text: Path) -> Path:
    """Return a folder like the demo's: a sweep of real trials, a target and a baseline."""
    root = tmp_path_factory.mktemp("made")
    threads = torch.get_num_threads()
    # Models this small only wait for their threads.
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {"trials": 5, "finalists": 2, "seeds": 2, **OPTIONS}
    config = SweepConfig(model=MODEL, horizon=HORIZON, data=str(real_text), **sizes)
    ledger = Ledger(config, root / "sweep", resume=False)
    while isinstance(trial := ledger.next(), Trial):
        train_trial(ledger, trial)
    recipe = Recipe.from_sweep(result_of(ledger, HOSTILE))
    ledger.close()
    recipe.save(root / "sweep" / "recipe.json")
    train_target(root / "target", recipe, "fan-sqrt", str(real_text))
    train_target(root / "baseline", recipe, "sp", str(real_text))
    torch.set_num_threads(threads)
    return root


@pytest.fixture
def demo(made: Path, tmp_path: Path) -> Path:
    """Return a copy to change."""
    return Path(shutil.copytree(made, tmp_path / "demo"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def loss_of(folder: Path) -> float:
    return float(json.loads((folder / "result.json").read_text())["loss"])


def test_the_page_refers_to_nothing_outside_itself(demo: Path) -> None:
    written = report(demo)
    assert written == demo / "report.html"
    page = Page(written)
    assert page.references == []
    assert not {"link", "iframe", "img", "base"} & set(page.tags)
    assert "@import" not in written.read_text()
    # Not that a browser would be allowed to.
    assert """http-equiv="Content-Security-Policy" content="default-src 'none';""" in written.read_text()
    assert [path.name for path in demo.iterdir() if path.name.startswith(".")] == []


def test_the_page_has_every_section_and_every_chart(demo: Path) -> None:
    written = report(demo)
    assert Page(written).ids == ["sweep", "recipe", "plan", "target", "reproduce", "provenance"]
    drawn = ("landscape-1", "slices-1", "finalists-1", "curves-1", "targets")
    for name in (*drawn, "weights-rms", "weights-updates", "weights-gradients"):
        assert f'id="chart-{name}"' in written.read_text()


def test_the_numbers_are_those_of_the_files(demo: Path) -> None:
    text = Page(report(demo)).text
    recipe = Recipe.load(demo / "sweep" / "recipe.json")
    assert recipe.evidence is not None
    for finalist in recipe.evidence["finalists"]:
        assert f"{finalist['mean']:.4f} {finalist['confirmed']:.4f} {finalist['spread']:.4f}" in text
        assert all(f"{loss:.4f} (seed {seed})" in text for seed, loss in finalist["losses"].items())
    plan = recipe.at(width=32)
    for kind, planned in plan.kinds.items():
        assert f"{kind} {planned.lr:.4g}" in text
        assert planned.why in text
    for name in ("target", "baseline"):
        result = json.loads((demo / name / "result.json").read_text())
        assert f"32 completed {result['loss']:.4f} {result['tokens']:,} {result['steps']}" in text


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [(0.25, "0.2500 nats per token better"), (-0.125, "0.1250 nats per token worse")],
)
def test_the_headline_says_which_is_better_and_by_how_much(demo: Path, gain: float, verdict: str) -> None:
    rewrite(demo / "target" / "result.json", loss=2.5)
    rewrite(demo / "baseline" / "result.json", loss=2.5 + gain)
    assert (
        f"Target at width 32: 2.5000 with the plan (fan-sqrt), {2.5 + gain:.4f} with the proxy's values carried "
        f"over (sp): the plan is {verdict} One seed each."
    ) in Page(report(demo)).text


def test_a_difference_that_seeds_explain_is_too_close_to_call(demo: Path) -> None:
    recipe = demo / "sweep" / "recipe.json"
    evidence = json.loads(recipe.read_text())["evidence"]
    rewrite(recipe, evidence=evidence | {"seed_spread": 10.0})
    assert (
        "varies by 10.0000 (standard deviation); two runs may differ as much by chance"
        in Page(report(demo)).text
    )
    rewrite(recipe, evidence=evidence | {"seed_spread": 0.01})
    rewrite(demo / "target" / "result.json", loss=2.0)
    rewrite(demo / "baseline" / "result.json", loss=2.1)
    assert (
        "varies by 0.0100 (standard deviation); the difference is 10.0 times that." in Page(report(demo)).text
    )


def test_a_baseline_that_diverged_is_said_to_have(demo: Path) -> None:
    rewrite(demo / "baseline" / "result.json", status="diverged", loss=None, tokens=256)
    assert "(fan-sqrt), diverged with the proxy's values carried over (sp)" in Page(report(demo)).text


def test_runs_of_different_length_are_not_compared(demo: Path) -> None:
    rewrite(demo / "baseline" / "result.json", tokens=999)
    text = Page(report(demo)).text
    assert "better" not in text.partition("Landscape")[0]
    assert (
        f"target at width 32 (sp): {loss_of(demo / 'baseline'):.4f} nats per token after 999 tokens" in text
    )


def test_a_sweeps_or_a_runs_own_folder_is_reported(demo: Path) -> None:
    assert Page(report(demo / "sweep")).ids == ["sweep", "recipe", "reproduce", "provenance"]
    page = Page(report(demo / "target"))
    assert page.ids == ["recipe", "plan", "target", "reproduce", "provenance"]
    assert (
        f"Target at width 32 (fan-sqrt): {loss_of(demo / 'target'):.4f} nats per token after 1,536 tokens"
        in page.text
    )


def test_the_commands_are_those_of_the_files(demo: Path) -> None:
    text = Page(report(demo)).text
    tail = "--tokens 1536 --batch-tokens 128 --data python --seed 0"
    assert "cat > config.toml <<'END' evaluations = 4 validation_batches = 1 END" in text
    shape = (
        "--width 16 --depth 1 --head-dim 16 --context 32 --vocab-size 256 --tokens 1536 --batch-tokens 128"
    )
    assert f"widthwise sweep --config config.toml {shape} --data /" in text
    assert ".txt --trials 5 --finalists 2 --seeds 2 --seed 0 --sampler tpe --out sweep " in text
    for name, rule in (("target", "fan-sqrt"), ("baseline", "sp")):
        command = f"widthwise launch sweep/recipe.json --width 32 --depth 1 --rule {rule} {tail} --out {name}"
        assert command in text


def test_the_commands_are_taken(demo: Path) -> None:
    page = report(demo)
    [swept] = [_parse("sweep", Sweep, argv) for argv in commands(page, "sweep")]
    assert isinstance(swept, Sweep)
    assert (swept.width, swept.trials, swept.sampler) == (16, 5, "tpe")
    for argv, rule in zip(commands(page, "launch"), ("fan-sqrt", "sp"), strict=True):
        launched = _parse("launch", Launch, argv)
        assert isinstance(launched, Launch)
        assert (launched.width, launched.tokens, launched.rule) == (32, 1536, rule)


def test_without_the_sweeps_configuration_its_command_is_made_of_what_there_is(demo: Path) -> None:
    path = demo / "sweep" / "recipe.json"
    provenance = json.loads(path.read_text())["provenance"]
    del provenance["config"]
    rewrite(path, provenance=provenance)
    text = Page(report(demo / "sweep")).text
    assert "widthwise sweep --width 16 --trials 5 --finalists 2 --seeds 2 --data /" in text
    assert "config.toml" not in text


def test_the_evidence_is_said(demo: Path) -> None:
    path = demo / "sweep" / "recipe.json"
    evidence = json.loads(path.read_text())["evidence"]
    by_decay = {"huber": 2.25, "l2": None}
    rewrite(path, evidence=evidence | {"best_by_decay": by_decay, "at_edge": ["weight_decay", HOSTILE]})
    text = Page(report(demo)).text
    assert "Best loss by form of decay, one seed each: huber 2.2500, l2 none completed." in text
    assert (
        "Note: λ is at the edge of its range [0.2, 20]: widen it in a new sweep, with [space] weight_decay"
        in text
    )
    assert f"Note: {HOSTILE} is at the edge of its range: widen it" in text


def test_what_the_report_reads_is_what_is_written(demo: Path) -> None:
    [line, *_] = (demo / "sweep" / "trials.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == set(TrialLine.model_fields)
    # The log of a run adds the utilisation to its metrics.
    assert set(MetricsLine.model_fields) - {"mfu"} <= {one.name for one in fields(Metrics)}
    evidence = json.loads((demo / "sweep" / "recipe.json").read_text())["evidence"]
    assert set(Evidence.model_fields) <= set(evidence)
    assert set(evidence["finalists"][0]) == set(FinalistLine.model_fields)
    plan = json.loads((demo / "target" / "plan.json").read_text())
    assert set(PlanFile.model_fields) <= set(plan)
    assert set(PlanKind.model_fields) == set(plan["kinds"]["matrix"])


@pytest.mark.parametrize(("kinds", "option"), [(["embedding", "readout"], "embedding,readout"), ([], "none")])
def test_the_commands_have_the_choices_beside_the_rule(demo: Path, kinds: list[str], option: str) -> None:
    rewrite(demo / "target" / "plan.json", horizon_rule="sde", decay_kinds=kinds)
    command = f"--depth 1 --rule fan-sqrt --horizon-rule sde --decay-kinds {option} --tokens 1536"
    assert command in Page(report(demo)).text


def test_a_sweep_in_progress_shows_the_trials_so_far(demo: Path) -> None:
    folder = demo / "sweep"
    (folder / "recipe.json").unlink()
    trials = folder / "trials.jsonl"
    lines = trials.read_text().splitlines()
    trials.write_text(f'{lines[0]}\n{lines[1]}\n{{"number": 2, "hyperpar')
    page = Page(report(folder))
    assert page.ids == ["sweep", "reproduce"]
    assert "Sweep of 2 trials so far: " in page.text
    trials.unlink()
    assert "Sweep of 0 trials so far: none completed" in Page(report(folder)).text


def test_finalists_without_a_recipe_are_read_off_the_trials(demo: Path) -> None:
    with_recipe = Page(report(demo / "sweep")).text
    (demo / "sweep" / "recipe.json").unlink()
    without = Page(report(demo / "sweep")).text
    table = with_recipe.partition("losses (nats per token)")[2].partition("Best loss by")[0]
    assert table
    assert table in without


def test_a_finalist_that_diverged_with_another_seed_is_the_last_without_a_recipe_too(demo: Path) -> None:
    folder = demo / "sweep"
    best = json.loads((folder / "recipe.json").read_text())["evidence"]["finalists"][0]
    (folder / "recipe.json").unlink()
    path = folder / "trials.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [
        one | {"status": "diverged", "loss": None} if one["confirms"] == best["number"] else one
        for one in records
    ]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in changed))
    found = finalists(read_contents(folder).sweeps[0])
    assert (len(found), found[-1].number) == (2, best["number"])
    last = found[-1]
    assert (last.losses["1"], last.mean, last.confirmed, last.spread) == (None, None, None, None)
    assert "– – –" in Page(report(folder)).text


def test_a_run_in_progress_shows_its_last_evaluation(demo: Path) -> None:
    folder = demo / "target"
    (folder / "result.json").unlink()
    metrics = folder / "metrics.jsonl"
    first = metrics.read_text().splitlines()[0]
    metrics.write_text(f"{first}\n{first[:30]}")
    loss = json.loads(first)["loss"]
    assert (
        f"(fan-sqrt): {loss:.4f} nats per token after 384 tokens (in progress)" in Page(report(folder)).text
    )
    metrics.unlink()
    assert "(fan-sqrt): in progress, not evaluated yet" in Page(report(folder)).text


def test_trials_that_failed_or_diverged_and_losses_that_are_no_numbers_are_shown(demo: Path) -> None:
    nothing = {"lr": None, "weight_decay": None, "decay": None, "huber_c": None}
    failed = {"number": 90, "hyperparameters": nothing, "status": "failed", "loss": None, "error": "x"}
    plain = {"lr": 0.1, "weight_decay": 0.0, "decay": "none", "huber_c": None}
    diverged = {
        "number": 91,
        "hyperparameters": plain,
        "status": "diverged",
        "loss": None,
        "curve": [[3, None]],
    }
    with (demo / "sweep" / "trials.jsonl").open("a") as file:
        file.write(f"{json.dumps(failed)}\n{json.dumps(diverged | {'number': 92})}\n{json.dumps(diverged)}\n")
    with (demo / "target" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "tokens": 9999, "loss": NaN, "train_loss": Infinity}\n')
    text = Page(report(demo)).text
    assert "2 diverged, 1 failed" in text
    assert "3 trials without a learning rate or weight decay above 0 not shown." in text


def test_names_from_files_stay_text(demo: Path) -> None:
    shutil.move(demo / "target", demo / HOSTILE)
    rewrite(demo / HOSTILE / "result.json", rule=HOSTILE, status=HOSTILE)
    trials = demo / "sweep" / "trials.jsonl"
    trials.write_text(
        trials.read_text().replace('"l2"', json.dumps(HOSTILE)).replace('"huber"', json.dumps(HOSTILE))
    )
    page = Page(report(demo))
    # Plotly, and one for each of eight charts: no more.
    charts = 8
    assert page.tags["script"] == 1 + charts
    assert HOSTILE in page.text
    assert "<script>alert" not in (demo / "report.html").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ("[1]", "line 1: must be an object"),
        ("{}", "line 1: step: is required (and 2 more)"),
        ('{"step": 1, "tokens": "1", "loss": 2.0}', "line 1: tokens: must be a whole number, got '1'"),
    ],
)
def test_damage_before_the_end_is_an_error(demo: Path, line: str, message: str) -> None:
    path = demo / "target" / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(ConfigError) as caught:
        report(demo)
    assert str(caught.value) == f"{path}: {message}"
    assert not (demo / "report.html").exists()


def test_damaged_documents_are_errors(demo: Path) -> None:
    path = demo / "target" / "result.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"result\.json: not valid JSON at line 1, column 2"):
        report(demo)
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"result\.json: status: is required \(and 4 more\)$"):
        report(demo)
    rewrite(demo / "sweep" / "recipe.json", evidence={"seed_spread": "small"})
    with pytest.raises(
        ConfigError, match=r"recipe\.json: evidence: seed_spread: must be a number, got 'small'$"
    ):
        report(demo / "sweep")


def exit_status(*argv: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    return stop.value.code


def test_the_command_prints_the_path_or_one_json_document(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("report", str(demo)) == 0
    assert capsys.readouterr().out == f"{demo / 'report.html'}\n"
    page = demo / "page.html"
    assert exit_status("report", str(demo), "--out", str(page), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}
    assert page.exists()


def test_another_programs_folder_is_left_out(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"one": ("result.json", "{}"), "two": ("plan.json", "[1]"), "three": ("trials.jsonl", "1\n")}
    for name, (file, text) in files.items():
        (demo / name).mkdir()
        (demo / name / file).write_text(text)
    (demo / "one" / "recipe.json").write_text('{"flour": 500}')
    (demo / "running").mkdir()
    (demo / "running" / "runs.json").touch()
    assert exit_status("report", str(demo)) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{demo / 'report.html'}\n"
    assert captured.err.splitlines() == [
        f"widthwise: left out: {demo}/one/recipe.json: schema: is required, must be 'widthwise/recipe/1'",
        f"widthwise: left out: {demo}/three/trials.jsonl: line 1: must be an object",
        f"widthwise: left out: {demo}/two/plan.json: must be an object, got a list",
        f"widthwise: left out: the check in {demo}/running has not finished",
    ]
    assert exit_status("report", str(demo / "two")) == 2


def test_mistakes_are_one_line_each(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for argv, message in [
        ([str(empty)], f"folder: {empty} holds neither a sweep nor a finished check nor a target run"),
        ([str(tmp_path / "no")], f"folder: {tmp_path / 'no'} is not a folder"),
        ([str(demo), "--out", str(empty)], f"out: {empty} is a folder, must be a file"),
        (
            [str(demo), "--out", str(empty / "a" / "b")],
            f"out: {empty / 'a' / 'b'} cannot be written (No such file or directory)",
        ),
    ]:
        assert exit_status("report", *argv) == 2
        assert capsys.readouterr().err == f"widthwise: error: {message}\n"
