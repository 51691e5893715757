"""The command line: what it prints, how it exits, one line per mistake, and how little it imports."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy

from widthwise.proxies import AlphaDecay
from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.files import write_json
from widthwise.proxies.runs import RunSpec
from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search import SweepConfig
from widthwise.search.ledger import Ledger
from widthwise.transfer import Plan, Recipe, cli, endings, horizon_rules, launching, rules
from widthwise.transfer.commands.sweep import Sweep
from widthwise.transfer.launch_options import LaunchOptions


def exit_status(*argv: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    return stop.value.code


def in_process_of_its_own(script: str, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_scale_prints_one_json_document(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("scale", recipe, "--width", "256", "--rule", "mup-independent", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == Recipe.load(recipe).at(width=256, rule="mup-independent").as_json()
    assert captured.err == ""


def test_every_option_of_scale_reaches_the_plan(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--width 128 --depth 4 --batch-tokens 4096 --tokens 1638400 --rule completep --horizon-rule sde "
        "--decay-kinds readout,embedding --json"
    )
    assert exit_status("scale", recipe, *options.split()) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ratios"] == {"width": 2.0, "depth": 2.0, "batch": 2.0, "tokens": 4.0}
    assert (document["rule"], document["horizon_rule"]) == ("completep", "sde")
    assert document["decay_kinds"] == ["embedding", "readout"]
    assert exit_status("scale", recipe, "--width", "128", "--decay-kinds", "none", "--json") == 0
    assert json.loads(capsys.readouterr().out)["decay_kinds"] == []


def built_in() -> list[str]:
    return [one.name for one in rules.values() if one.function.__module__.startswith("widthwise.")]


def test_scale_prints_a_table_with_reasons_and_horizon(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("scale", recipe, "--width", "256") == 0
    out = capsys.readouterr().out
    assert "fan-sqrt: width 64 → 256, depth 2 → 2" in out
    why = "λ ∝ √w keeps the top singular value, as observed in arXiv 2510.15262"
    assert f"matrix: η ∝ 1/w keeps the update's effect; {why}\n" in out
    assert out.endswith("note: Σηλ is below 1.5: weight decay has little time to act\n")
    assert "\x1b" not in out


def test_no_terminal_is_so_narrow_that_a_number_is_cut(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert exit_status("scale", recipe, "--width", "256") == 0
    assert "│ 0.005 (×0.25) │ 0.8 (×2) │" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--width abc", "width: must be a whole number, got 'abc'"),
        ("--width=1e3", "width: must be a whole number, got '1e3'"),
        ("--width 128 --depth x", "depth: must be a whole number, got 'x'"),
        ("--width", "width: needs a value"),
        ("", "width: is required, or widths"),
        ("--width 128 --widths 128,256", "widths: must not be given together with width"),
        ("--widths 128,x", "widths: must be whole numbers separated by commas, got '128,x'"),
        ("--widths=", "widths: must be whole numbers separated by commas, got ''"),
        ("--widths 128,100", "width: must be a multiple of head_dim = 16, got 100"),
        ("--widths 128,100 --compare", "width: must be a multiple of head_dim = 16, got 100"),
        ("--width 128 --csv --json", "csv: must not be given together with json"),
        (
            "--width 128 --horizon-rule sd",
            "horizon_rule: must be one of none, tau-const, power-lines, sde, got 'sd'; did you mean 'sde'?",
        ),
        (
            "--width 128 --decay-kinds matrix,gian",
            "decay_kinds: must be one of matrix, embedding, readout, gain, bias, got 'gian'; did you mean 'gain'?",
        ),
        (
            "--width 128 --decay-kinds=",
            "decay_kinds: must be one of matrix, embedding, readout, gain, bias, got ''",
        ),
        ("--widht 128", "--widht: unknown option; did you mean '--width'?"),
        ("--width 128 --batch-token 1", "--batch-token: unknown option; did you mean '--batch-tokens'?"),
        ("--width 128 another.json", "another.json: unexpected argument"),
        ("--width 0", "width: must be >= 1, got 0"),
        ("--width -64", "width: must be >= 1, got -64"),
        ("--width 100", "width: must be a multiple of head_dim = 16, got 100"),
        ("--width 128 --batch-tokens 100", "batch_tokens: must be a multiple of context = 128, got 100"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(
    recipe: str, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert exit_status("scale", recipe, *options.split()) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"widthwise: error: {message}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--module-decay beta", "module_decay: must be one of none, alpha, awd, adadecay, got 'beta'"),
        ("--assign linear", "assign: needs --module-decay alpha, got none"),
        ("--module-decay awd --interval 500", "interval: needs --module-decay alpha, got awd"),
        ("--module-decay awd --assign log2", "assign: needs --module-decay alpha, got awd"),
        ("--fixed-aspect", "fixed_aspect: needs --module-decay alpha, got none"),
        ("--module-decay alpha --interval 0", "module_decay.alpha.interval: must be >= 1, got 0"),
        ("--module-decay alpha --lag 500", "module_decay.alpha.lag: must be < interval = 500, got 500"),
    ],
)
def test_a_mistake_in_module_decay_is_one_line(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    data = ("--data", "python", "--out", str(tmp_path))
    assert exit_status("launch", recipe, "--width", "64", *data, *options.split()) == 2
    assert capsys.readouterr().err == f"widthwise: error: {message}\n"


def test_module_decay_reaches_the_run(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs: list[RunSpec] = []
    result = {"status": "diverged", "steps": 0}

    def train(spec: RunSpec, _: str, out: Path, *__: object) -> None:
        specs.append(spec)
        write_json(out / "result.json", result)

    monkeypatch.setattr(launching, "_train", train)
    given = "--module-decay alpha --assign sqrt --interval 50 --lag 7 --mean-preserving --fixed-aspect"
    command = ["launch", recipe, "--width", "64", "--data", "python", "--out", str(tmp_path / "target")]
    assert exit_status(*command, *given.split()) == 1
    expected = AlphaDecay(assign="sqrt", interval=50, lag=7, mean_preserving=True, fixed_aspect=True)
    assert [spec.module_decay for spec in specs] == [expected]
    # The reasons are prose, which decides nothing.
    plan = json.loads((tmp_path / "target" / "plan.json").read_text())
    plan["kinds"]["matrix"]["why"] = "in other words"
    write_json(tmp_path / "target" / "plan.json", plan)
    assert exit_status(*command, "--resume", *given.split()) == 1
    capsys.readouterr()
    assert exit_status(*command, "--resume") == 2
    message = f"module_decay: must be as the run in {tmp_path / 'target'} was started, 'alpha', got 'none'"
    assert capsys.readouterr().err == f"widthwise: error: {message}\n"


@pytest.mark.parametrize(
    ("provenance", "options", "data", "said"),
    [
        (None, "", "python", "python (the recipe does not say what it was tuned on)"),
        ({"data": 3}, "", "python", "python (the recipe does not say what it was tuned on)"),
        ({"data": "python"}, "", "python", "python (as the recipe was tuned on)"),
        ({"data": "{text}"}, "", "{text}", "{text} (as the recipe was tuned on)"),
        ({"data": "/no/text"}, "", "python", "python (/no/text, which the recipe was tuned on, is not here)"),
        ({"data": "/no/text"}, "--data python", "python", None),
        ({"data": "python"}, "--data {text}", "{text}", None),
    ],
)
def test_a_target_is_trained_on_what_the_recipe_was_tuned_on(
    recipe: str,
    tmp_path: Path,
    real_text: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    provenance: dict[str, Any] | None,
    options: str,
    data: str,
    said: str | None,
) -> None:
    found: list[str] = []

    def launched(_: Plan, __: Path, given: LaunchOptions, **___: object) -> dict[str, Any]:
        found.append(given.data)
        return {"status": "completed"}

    monkeypatch.setattr(launching, "launch", launched)
    document = json.loads(json.dumps(provenance).replace("{text}", str(real_text)))
    Recipe.load(recipe).model_copy(update={"provenance": document}).save(recipe)
    given = options.format(text=real_text).split()
    assert exit_status("launch", recipe, "--width", "64", "--json", *given) == 0
    assert found == [data.format(text=real_text)]
    line = "" if said is None else f"widthwise: data: {said.format(text=real_text)}\n"
    assert capsys.readouterr() == ('{"status": "completed"}\n', line)


def test_a_target_run_begins_with_what_to_beware_of(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*given: Any) -> None:
        write_json(given[2] / "result.json", {"status": "completed"})

    monkeypatch.setattr(launching, "_train", train)
    sizes = ["--width", "64", "--depth", "4", "--tokens", "819200"]
    where = ["--data", "python", "--out", str(tmp_path / "target"), "--json"]
    assert exit_status("launch", recipe, *sizes, *where) == 0
    assert capsys.readouterr().err.splitlines()[:2] == [
        "widthwise: note: depth ×2 is not followed by fan-sqrt",
        "widthwise: note: horizon rule none: nothing is changed for tokens ×2",
    ]


def test_adadecay_is_refused_before_the_run_where_it_cannot_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0, decay="huber-prox")
    Recipe(hyperparameters=tuned, proxy=GPTConfig(), horizon=Horizon()).save(tmp_path / "prox.json")
    out = str(tmp_path / "target")
    command = ["launch", str(tmp_path / "prox.json"), "--width", "64", "--data", "python", "--out", out]
    assert exit_status(*command, "--module-decay", "adadecay") == 2
    assert capsys.readouterr().err == (
        "widthwise: error: module_decay: adadecay needs decay 'l2', or 'huber' with threshold 'mean', "
        "got decay 'huber-prox' and threshold 'mean'\n"
    )
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sweep --sampler foo", "sampler: must be one of tpe, gp, cmaes, qmc, grid, random, got 'foo'"),
        ("sweep --sampler None", "sampler: must be one of tpe, gp, cmaes, qmc, grid, random, got 'None'"),
        (
            "launch a.json --assign liner",
            "assign: must be one of linear, sqrt, log2, sigmoid, got 'liner'; did you mean 'linear'?",
        ),
        ("export a.json --to foo", "to: must be one of torchtitan, megatron, hf, nanogpt, json, got 'foo'"),
    ],
)
def test_a_choice_that_is_none_of_an_options_is_told_them_in_their_order(
    capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert exit_status(*options.split()) == 2
    assert capsys.readouterr().err == f"widthwise: error: {message}\n"


def test_an_unknown_rule_is_one_line(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("scale", recipe, "--width", "128", "--rule", "fan-sqr") == 2
    known = ", ".join(rules)
    assert capsys.readouterr().err == (
        f"widthwise: error: rule: must be one of {known} or MODULE:FUNCTION, got 'fan-sqr'; did you mean 'fan-sqrt'?\n"
    )


def test_an_unknown_command_or_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("scael") == 2
    known = ", ".join(cli.COMMANDS)
    assert capsys.readouterr().err == (
        f"widthwise: error: command: must be one of {known}, got 'scael'; did you mean 'scale'?\n"
    )
    assert exit_status("--versoin") == 2
    assert capsys.readouterr().err == (
        "widthwise: error: --versoin: unknown option; did you mean '--version'?\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file, must be a recipe"),
        ("", "is empty, must be a recipe"),
        ('{"schema"', "not valid JSON at line 1, column 10: Expecting ':' delimiter"),
        ('{"schema": "x"}', "schema: must be 'widthwise/recipe/1', got 'x'"),
    ],
)
def test_a_faulty_recipe_is_one_line_of_the_real_program(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "faulty.json"
    if text is not None:
        path.write_text(text)
    done = in_process_of_its_own(RUN, "scale", str(path), "--width", "128")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"widthwise: error: {path}: {message}\n")


RUN = "import sys; from widthwise.transfer.cli import main; main()"
OTHER_BACKEND = "import os; os.environ['PYTHON_TYRO_BACKEND'] = 'argparse'; " + RUN
HEAVY = """
import sys
from widthwise.transfer.cli import main
try:
    main()
finally:
    print([name for name in ("torch", "ray", "mup", "optuna", "numpy", "pandas", "plotly") if name in sys.modules], file=sys.stderr)
"""  # noqa: E501


def test_the_calculator_imports_nothing_heavy(recipe: str) -> None:
    several = ["scale", recipe, "--widths", "128,256", "--compare"]
    for argv in (["--help"], ["scale", "--help"], ["scale", recipe, "--width", "128"], several, ["rules"]):
        done = in_process_of_its_own(HEAVY, *argv)
        assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sweep --width 33", "model.width: must be a multiple of head_dim = 16, got 33"),
        (
            "sweep --log tensorbord",
            "log: must be 'tensorboard', 'wandb' or 'mlflow', got 'tensorbord'; did",
        ),
        (
            "sweep --data no.txt",
            "data: no such file or folder: no.txt; use 'python', a text file, a .bin shard",
        ),
        ("sweep --resume --out {0}", "out: {0} holds no sweep to resume"),
        ("launch {recipe} --width 64 --data no.txt", "data: no such file or folder: no.txt; use 'python', a"),
        ("launch {recipe} --width 64 --workers 0", "workers: must be >= 1, got 0"),
        (
            "launch {recipe} --width 64 --out {recipe}/x",
            "out: {recipe}/x cannot be written (Not a directory)",
        ),
        ("launch {recipe} --width 64 --address 127.0.0.1:1", "address: no Ray answers at '127.0.0.1:1' ("),
        ("launch {recipe} --width 64 --module-decay awd --abort-on alarm", "abort_on: must not be 'alarm'"),
        ("check {recipe} --seeds 0", "seeds: must be >= 1, got 0"),
        ("check {0}/no.json", "{0}/no.json: no such file, must be a recipe"),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(
    recipe: str, tmp_path: Path, options: str, message: str
) -> None:
    argv = [word.format(tmp_path, recipe=recipe) for word in options.split()]
    done = in_process_of_its_own(HEAVY, *argv)
    said, imported = done.stderr.splitlines()[-2:]
    assert done.returncode == 2
    assert said.startswith(f"widthwise: error: {message.format(tmp_path, recipe=recipe)}")
    assert {"torch", "ray"}.isdisjoint(json.loads(imported.replace("'", '"')))


def test_python_runs_the_command_line_as_a_module() -> None:
    command = [sys.executable, "-m", "widthwise.transfer", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:12], done.stderr) == (0, "widthwise 0.", "")


def test_a_sweeps_folder_stands_for_its_recipe(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path)
    assert exit_status("scale", folder, "--width", "128", "--json") == 0
    by_folder = capsys.readouterr()
    assert exit_status("scale", recipe, "--width", "128", "--json") == 0
    assert capsys.readouterr() == by_folder
    for command in ("export", "launch"):
        options = ["--to", "json"] if command == "export" else ["--dry-run", "--json"]
        assert exit_status(command, folder, "--width", "128", *options) == 0
        assert json.loads(capsys.readouterr().out)
    Path(recipe).unlink()
    assert exit_status("scale", folder, "--width", "128") == 2
    assert capsys.readouterr().err == f"widthwise: error: recipe: {folder} holds no recipe.json\n"


def test_a_sweep_that_has_not_finished_is_named_where_its_recipe_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "my sweep", SweepConfig(trials=4)
    Ledger(config, out, resume=False).close()
    resume = f"go on with: widthwise sweep --resume --out '{out}'"
    assert exit_status("scale", str(out), "--width", "128") == 2
    error = f"widthwise: error: recipe: the sweep in {out} has not finished; {resume}\n"
    assert capsys.readouterr().err == error

    recipe = Recipe(
        hyperparameters=Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0),
        proxy=GPTConfig(),
        horizon=Horizon(),
        provenance={"config": config.model_dump(mode="json")},
    )
    recipe.save(out / "recipe.json")
    assert exit_status("scale", str(out), "--width", "128", "--json") == 0
    assert capsys.readouterr().err == ""
    longer = Ledger(config.model_copy(update={"trials": 8}), out, resume=True)
    longer.require_data("tokens")
    longer.close()
    assert exit_status("scale", str(out), "--width", "128", "--json") == 0
    said = f"widthwise: the sweep in {out} has not finished since its recipe; {resume}\n"
    assert capsys.readouterr().err == said


def test_help_names_every_command_and_its_exit_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: widthwise [-h] [--version] COMMAND ...\n")
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_without_a_command_the_help_is_printed_and_the_exit_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status() == 2
    assert capsys.readouterr().out.startswith("usage: widthwise ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--version") == 0
    assert capsys.readouterr().out.startswith("widthwise 0.")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_says_defaults_in_one_way_and_none_of_what_is_off(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(command, "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(r"default: (None|False|\))", out) is None
    # Not "Width of the proxy [64].", as other programs have it.
    assert re.search(r"\w \[[^]]+\]\.", out) is None


def test_every_option_of_sweep_that_takes_a_value_says_what_holds_without_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_status("sweep", "--help") == 0
    _, *said = re.split(r"(?m)^\W*(?=--[a-z])", capsys.readouterr().out)
    assert len(said) == len(fields(Sweep))
    taking = [option for option in said if re.match(r"--[a-z-]+ [A-Z{]", option)]
    assert [option for option in taking if "(default:" not in option] == []


def test_short_shards_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    for length, told in (
        (2600, ""),
        (
            2000,
            "widthwise: the longest validation shard holds 100 tokens: a context of up to 99 fits, the usual 128 "
            "does not\n",
        ),
    ):
        text.write_bytes(b"a" * length)
        out = tmp_path / str(length)
        assert exit_status("data", str(text), "--out", str(out)) == 0
        assert capsys.readouterr() == (f"{out}/train_000000.bin\n{out}/val_000000.bin\n", told)


def test_the_help_of_scale_names_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("scale", "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"Scaling rule: {', '.join(built_in())}." in out
    assert f"tokens change: {', '.join(horizon_rules)}." in out


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("lr: must be > 0, got 0"), 2, "widthwise: error: lr: must be > 0, got 0\n"),
        (ConfigError("two\n  lines"), 2, "widthwise: error: two lines\n"),
        (RunError("the workers died"), 1, "widthwise: failed: the workers died\n"),
        (KeyboardInterrupt(), 130, "widthwise: error: interrupted\n"),
    ],
)
def test_an_exception_of_a_command_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    def run() -> int:
        raise error

    assert endings.status_of(run) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("out", "said"),
    [
        # As long as it has no room at all: that file system never has.
        ("/proc", "the disk of /proc is full"),
        ("{here}/new", "a disk is full, or a quota used up ({here}/new, {temporary} or standard output)"),
        (
            "s3://bucket/new",
            "a disk is full, or a quota used up (s3://bucket/new, {temporary} or standard output)",
        ),
    ],
)
def test_a_study_on_a_full_disk_is_one_line_that_names_the_folder_that_has_no_room(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    def run() -> int:
        # SQLite's own limit: it raises what a full disk does.
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'study.db'}")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("PRAGMA max_page_count = 1"))
            connection.execute(sqlalchemy.text("CREATE TABLE trials (number INTEGER)"))
        return 0

    places = {"here": tmp_path, "temporary": tempfile.gettempdir()}
    command = SimpleNamespace(run=run, out=out.format(**places), resume=False)
    monkeypatch.setattr(cli, "_command", lambda _: command)
    assert exit_status("sweep") == 1
    line = f"{said.format(**places)}; make room, and go on with --resume"
    assert capsys.readouterr().err == f"widthwise: failed: {line}\n"


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("command", [["--help"], ["scale", "{recipe}", "--width", "64"], ["scale", "--help"]])
def test_a_full_standard_output_is_one_line(recipe: str, command: list[str], buffered: bool) -> None:
    line = f"a disk is full, or a quota used up ({tempfile.gettempdir()} or standard output); make room"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *(part.format(recipe=recipe) for part in command)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"},
        )
    assert (done.returncode, done.stderr) == (1, f"widthwise: failed: {line}\n")


def test_a_traceback_that_cannot_be_kept_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> int:
        raise RuntimeError("out of luck")

    # Where nobody can make a file, as on a full disk.
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    assert endings.status_of(run) == 1
    why = "its traceback could not be kept: No such file or directory"
    assert capsys.readouterr().err == f"widthwise: failed: RuntimeError: out of luck ({why})\n"


def test_a_failure_of_our_own_names_the_file_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise RuntimeError("out of luck")

    assert endings.status_of(run) == 1
    printed = capsys.readouterr().err
    said = re.fullmatch(r"widthwise: failed: RuntimeError: out of luck \(traceback in (.+)\)\n", printed)
    assert said is not None
    kept = Path(said[1])
    assert kept.read_text().endswith("RuntimeError: out of luck\n")
    kept.unlink()


def test_without_tyros_structured_errors_a_mistake_is_still_one_line(recipe: str) -> None:
    # tyro's other back end does not offer them, as a later tyro may not.
    done = in_process_of_its_own(OTHER_BACKEND, "scale", recipe, "--width", "128", "--foo", "4")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("widthwise: error: .*--foo.*\n", done.stderr)


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["rich", "json"])
@pytest.mark.parametrize("opened", [os.pipe, os.openpty])
def test_a_reader_that_has_gone_is_no_traceback(
    recipe: str, form: list[str], opened: Callable[[], tuple[int, int]]
) -> None:
    reader, writer = opened()
    with subprocess.Popen(
        [sys.executable, "-c", RUN, "scale", recipe, "--width", "128", *form],
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(reader)
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("opened", [os.pipe, os.openpty])
def test_half_a_line_that_nobody_reads_is_told_once(
    opened: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = opened()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        stream.write("half a line")
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            endings.flush()
        endings.flush()


@pytest.mark.parametrize(
    ("closed", "arguments", "status", "printed"),
    [
        (">&-", "--width 128", 0, ""),
        ("2>&-", "--width 128 --batch-tokens 65536 --compare --csv", 0, "rule"),
        ("2>&-", "--width 100", 2, ""),
    ],
)
def test_what_is_for_a_stream_that_was_closed_before_the_start_is_lost(
    recipe: str, closed: str, arguments: str, status: int, printed: str
) -> None:
    command = f"{shlex.join([sys.executable, '-c', RUN, 'scale', recipe])} {arguments} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.partition(",")[0], done.stderr) == (status, printed, "")
    assert "left out" not in done.stdout
