"""Sweeps of the real program with their studies on a real PostgreSQL server, which restarts and is killed with them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from widthwise.search import Storage, server
from widthwise.transfer import Recipe, cli

from ..postgres import PASSWORD, Server

pytestmark = pytest.mark.ray

SMALL = "--width 32 --context 64 --tokens 20480 --batch-tokens 1024 --trials 3 --seeds 1"


def sweep_of(text: Path, url: str, *more: object) -> list[object]:
    return ["sweep", *SMALL.split(), "--concurrency", 1, "--data", text, "--storage", url, *more]


def records(out: Path) -> list[dict[str, Any]]:
    path = out / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def outcomes(out: Path) -> list[dict[str, Any]]:
    """Return the trials without what depends on the machine's speed."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records(out)]


def require_no_password(*texts: str) -> None:
    for text in texts:
        assert PASSWORD not in text
        assert quote(PASSWORD, safe="") not in text


def contents(folder: Path) -> str:
    """Return all that stands in the files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "".join(path.read_bytes().decode(errors="replace") for path in files)


@pytest.mark.slow
def test_a_sweep_on_a_server_that_restarts_ends_well_and_tells_no_password(
    start: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    postgres: Server,
    database: str,
    real_text: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "sweep"
    running = start(*sweep_of(real_text, postgres.url(database), "--out", out, "--json"))
    running.until(lambda: records(out))
    postgres.restart()
    # What `ps` shows of the command and of Ray's processes, and what Ray writes down.
    shown = running.processes().values()
    [written] = set(re.findall(r"--temp-dir=(\S+)", " ".join(shown)))
    require_no_password(*shown, contents(Path(written)))
    running.until(lambda: len(records(out)) == 2)
    status, printed, said = running.finish()
    assert status == 0, said
    found = records(out)
    assert [one["number"] for one in found] == list(range(len(found)))
    assert {one["status"] for one in found} == {"completed"}
    recipe = Recipe.load(out / "recipe.json")
    assert Recipe.parse(json.loads(printed)["recipe"]) == recipe

    with pytest.raises(SystemExit) as stop:
        cli.main(["status", str(out), "--storage", postgres.url(database)])
    assert stop.value.code == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{out}: sweep, finished\n  {len(found)} completed; ")
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path)])
    require_no_password(printed, said, told.out, told.err, *capsys.readouterr(), contents(tmp_path))


def test_a_wrong_password_is_one_line_without_it(
    capsys: pytest.CaptureFixture[str], postgres: Server, database: str, real_text: Path, tmp_path: Path
) -> None:
    url = postgres.url(database, password="wr0ng")
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, sweep_of(real_text, url, "--out", tmp_path / "sweep"))])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (2, "")
    where = postgres.url(database, password=None)
    begun = f"widthwise: error: storage: {where} cannot be opened (connection failed: "
    assert captured.err.startswith(begun)
    assert 'password authentication failed for user "tuner"' in captured.err
    assert captured.err.count("\n") == 1
    assert "wr0ng" not in captured.err


def test_a_name_needs_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", "--study-name", "mine"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "widthwise: error: study_name: needs --storage\n"


@pytest.mark.slow
def test_sweeps_side_by_side_killed_and_resumed_end_as_one_in_a_file(
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    postgres: Server,
    database: str,
    real_text: Path,
    tmp_path: Path,
) -> None:
    plain = ["sweep", *SMALL.split(), "--concurrency", 1, "--data", real_text]
    assert start(*plain, "--out", tmp_path / "file").finish()[0] == 0
    # libpq's own way for a password.
    passwords = tmp_path / "passwords"
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passwords.write_text(f"127.0.0.1:{postgres.port}:*:tuner:{escaped}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    url = postgres.url(database, password=None)
    folders = [tmp_path / name for name in ("one", "two")]
    both = [start(*sweep_of(real_text, url, "--out", out)) for out in folders]
    for running, out in zip(both, folders, strict=True):
        running.until(lambda out=out: records(out))
        running.kill()
    for running in [start("sweep", "--resume", "--out", out) for out in folders]:
        status, _, said = running.finish()
        assert status == 0, said
    assert outcomes(folders[0]) == outcomes(folders[1]) == outcomes(tmp_path / "file")


IMPATIENT = """
import sys
from pathlib import Path
from widthwise.proxies.validation import RunError
from widthwise.search import Storage, sweep
from widthwise.search.stored import stored_config
out, storage = Path(sys.argv[1]), Storage.parse(sys.argv[2], patience=1)
try:
    sweep(stored_config(out, storage), out, resume=True, storage=storage)
except RunError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_a_sweep_whose_server_stays_away_ends_in_one_line_and_is_resumed(
    start: Callable[..., Any], postgres: Server, database: str, real_text: Path, tmp_path: Path
) -> None:
    out, url = tmp_path / "sweep", postgres.url(database)
    running = start(*sweep_of(real_text, url, "--out", out))
    running.until(lambda: records(out))
    running.kill()
    running = start(out, url, script=IMPATIENT)
    running.until(lambda: len(records(out)) == 2)
    postgres.stop()
    try:
        status, printed, said = running.finish()
    finally:
        postgres.start()
    assert (status, printed) == (1, "")
    last = said.splitlines()[-1]
    assert last.startswith(f"storage: {postgres.url(database, password=None)} fails (")
    assert last.endswith("; tried for 1 s; what has ended is kept: go on with --resume")
    running.require_gone(but="Agent")
    status, _, said = start("sweep", "--resume", "--out", out, "--storage", url).finish()
    assert status == 0, said
    numbers = [one["number"] for one in records(out)]
    assert numbers == list(range(len(numbers)))


@pytest.mark.slow
def test_a_check_keeps_its_runs_on_a_server_too(
    start: Callable[..., Any], postgres: Server, database: str, recipe: str, real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "check"
    small = ["--widths", "16,32,64", "--tokens", 20480, "--data", real_text, "--full"]
    storage = ["--storage", postgres.url(database), "--study-name", "checked"]
    running = start("check", recipe, *small, *storage, "--out", out)
    running.until(lambda: (out / "runs.jsonl").exists() and (out / "runs.jsonl").read_text())
    running.interrupt()
    status, _, said = running.finish()
    assert (status, said.splitlines()[-1]) == (
        130,
        f"widthwise: stopped; go on with the same command and --resume ({out})",
    )
    place = Storage.parse(postgres.url(database), study_name="checked")
    assert not server.is_held(place)
    with server.reading(place) as study:
        kept = [json.loads(line)["number"] for line in (out / "runs.jsonl").read_text().splitlines()]
        assert [trial.number for trial in study.trials if trial.state.is_finished()] == kept
    require_no_password(contents(tmp_path))
