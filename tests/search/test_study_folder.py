"""The folder of a sweep's study: what is refused there, what a refusal leaves, and what cannot be read."""

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from widthwise.proxies.files import LOCK, locked
from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search import Storage, folders, sweep
from widthwise.search.ledger import Ledger
from widthwise.search.status import study_status
from widthwise.search.stored import stored_config

from .conftest import configured
from .playing import begin, complete


def test_a_folder_with_a_sweep_is_not_swept_again(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    opened().close()
    before = sorted((tmp_path / "sweep").iterdir())
    with pytest.raises(ConfigError) as caught:
        opened()
    assert str(caught.value) == (
        f"out: {tmp_path / 'sweep'} holds a sweep already; add --resume to go on with it, or name another folder"
    )
    assert sorted((tmp_path / "sweep").iterdir()) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", "a recipe that no sweep in it made"),
        ("runs.db", "a check"),
        ("plan.json", "a target run"),
    ],
)
def test_a_folder_of_something_else_is_not_swept_into(
    opened: Callable[..., Ledger], tmp_path: Path, name: str, content: str
) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError) as caught:
        opened()
    assert str(caught.value) == f"out: {folder} holds {content}; name another folder"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: "mine"}


def test_a_difference_inside_a_section_is_named_by_its_path(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    first = opened()
    width = first.config.model.width
    first.close()
    with pytest.raises(ConfigError) as caught:
        opened(resume=True, model=first.config.model.model_copy(update={"width": 2 * width}))
    rule = f"model.width: must be as the sweep in {tmp_path / 'sweep'} was started, {width}"
    assert str(caught.value) == f"{rule}, got {2 * width}"


def test_an_empty_folder_cannot_be_resumed(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, resume=True)
    assert str(caught.value) == f"out: {tmp_path} holds no sweep to resume"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "fields", "stored", "given"),
    [
        ("seed", {"seed": 6}, 5, 6),
        ("betas", {"betas": (0.9, 0.99)}, [0.9, 0.95], [0.9, 0.99]),
        ("prune", {"prune": False}, True, False),
    ],
)
def test_a_resumed_sweep_must_be_the_one_that_was_started(
    opened: Callable[..., Ledger], tmp_path: Path, name: str, fields: dict[str, Any], stored: Any, given: Any
) -> None:
    opened().close()
    with pytest.raises(ConfigError) as caught:
        opened(resume=True, **fields)
    rule = f"{name}: must be as the sweep in {tmp_path / 'sweep'} was started, {stored}"
    assert str(caught.value) == f"{rule}, got {given}"
    # The refused one has let go of the folder.
    opened(resume=True)


def test_a_resumed_sweep_must_see_the_same_tokens_wherever_they_lie(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    first = opened(data="here")
    first.require_data("one")
    first.close()
    again = opened(resume=True, data="there")
    again.require_data("one")
    with pytest.raises(ConfigError) as caught:
        again.require_data("two")
    folder = tmp_path / "sweep"
    assert str(caught.value) == (
        f"data: must hold the tokens that the sweep in {folder} was started with, but differs"
    )


def test_a_resumption_that_is_refused_for_its_data_changes_nothing(opened: Callable[..., Ledger]) -> None:
    first = opened(data="here", trials=5)
    first.require_data("one")
    first.close()
    refused = opened(resume=True, data="elsewhere", trials=6)
    with pytest.raises(ConfigError):
        refused.require_data("two")
    stored = refused.study.user_attrs["config"]
    assert (stored["data"], stored["trials"]) == ("here", 5)
    refused.close()
    again = opened(resume=True, data="there", trials=6)
    again.require_data("one")
    stored = again.study.user_attrs["config"]
    assert (stored["data"], stored["trials"]) == ("there", 6)


BEFORE_TORCH = """
import sys
from widthwise.transfer.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


def test_a_folder_in_use_is_refused_to_other_processes_too(
    opened: Callable[..., Ledger], start: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    opened()
    message = f"out: {out} is in use by another process that is still running"
    with pytest.raises(ConfigError) as caught:
        opened(resume=True)
    assert str(caught.value) == message
    command = ["sweep", "--resume", "--out", out]
    assert start(*command, script=BEFORE_TORCH).finish() == (2, "", f"widthwise: error: {message}\n")


@pytest.mark.parametrize("exists", [True, False])
def test_a_sweep_that_is_refused_leaves_nothing(tmp_path: Path, real_text: Path, exists: bool) -> None:
    out = tmp_path / "a" / "sweep"
    if exists:
        out.mkdir(parents=True)
        (out / "mine").touch()
    with pytest.raises(ConfigError, match=r"^storage: .* cannot be opened \("):
        sweep(
            configured(data=str(real_text)),
            out,
            storage=Storage.parse("postgresql+psycopg://me@127.0.0.1:1/no"),
        )
    assert [path.name for path in tmp_path.rglob("*")] == (["a", "sweep", "mine"] if exists else [])


def test_a_sweep_that_comes_second_leaves_the_firsts_files(tmp_path: Path) -> None:
    out, first = tmp_path / "sweep", ExitStack()

    @folders.nothing_left(out)
    def second() -> None:
        out.mkdir()
        first.enter_context(locked(out))
        (out / "study.db").touch()
        first.enter_context(locked(out))

    with first:
        with pytest.raises(ConfigError, match=" is in use by another process "):
            second()
        assert {path.name for path in out.iterdir()} == {".lock", "study.db"}


def test_a_folder_that_cannot_be_made_is_one_line(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "sweep"
    with pytest.raises(ConfigError) as caught:
        opened(out)
    assert str(caught.value) == f"out: {out} cannot be written (Not a directory)"


def of_another_optuna(path: Path) -> None:
    """Mark a study as of a version of Optuna that is still to come."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v9.0.0.a'")
        database.commit()


def of_a_damaged_page(path: Path) -> None:
    """Overwrite the last page of a study, which opening it does not read."""
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"damaged!" * 512)


AGAIN = "; put a copy of it back, or begin anew in another folder"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.write_bytes(b""), f"(it holds no study of ours){AGAIN}"),
        (lambda path: path.write_bytes(b"not a database" * 1000), f"(file is not a database){AGAIN}"),
        (of_a_damaged_page, f"(database disk image is malformed){AGAIN}"),
        (
            of_another_optuna,
            f"(The runtime optuna version {optuna.__version__} is no longer compatible with the table schema "
            f"(set up by optuna {optuna.__version__}). Please try updating optuna to the latest version by "
            "`$ pip install -U optuna`.)",
        ),
    ],
    ids=["empty", "other", "page", "version"],
)
def test_a_study_that_cannot_be_read_is_one_line(
    opened: Callable[..., Ledger], tmp_path: Path, damage: Callable[[Path], object], why: str
) -> None:
    opened().close()
    path = tmp_path / "sweep" / "study.db"
    damage(path)
    for attempt in (lambda: opened(resume=True), lambda: stored_config(tmp_path / "sweep")):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert str(caught.value) == f"out: {path} cannot be read as a sweep's study {why}"
    with pytest.raises(ConfigError) as caught:
        study_status(tmp_path / "sweep")
    assert str(caught.value) == f"folder: {path} cannot be read as a study {why}"


def test_a_sweep_that_died_while_its_study_was_made_can_be_started_again(
    opened: Callable[..., Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "identify", dies)
        with pytest.raises(KeyboardInterrupt):
            opened()
    assert not (tmp_path / "sweep" / "study.db").exists()
    ledger = opened()
    number, tried = begin(ledger)
    complete(ledger, number, tried)
    assert [record["number"] for record in ledger.records()] == [0]
    ledger.close()
    assert sorted(path.name for path in (tmp_path / "sweep").glob("*study*")) == ["study.db"]


def test_a_folder_that_has_gone_is_told_in_place_of_what_goes_wrong_then(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    ledger = opened()
    ledger.require_there()
    ledger.out.rename(tmp_path / "moved")
    told = f"the sweep in {ledger.out} is not there any more; go on with --resume where it is now"
    with pytest.raises(RunError, match=f"^{re.escape(told)}$"):
        ledger.require_there()
    # Of which nothing can be said just now: no file system takes such a name.
    ledger.out = tmp_path / ("long" * 100)
    ledger.require_there()


def test_a_trial_does_not_go_on_from_the_checkpoint_of_one_that_the_study_has_lost(
    opened: Callable[..., Ledger],
) -> None:
    ledger = opened()
    lost = ledger.folder(0)
    lost.mkdir(parents=True)
    assert begin(ledger)[0] == 0
    assert not lost.exists()


def test_a_lock_that_cannot_be_read_is_told(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    opened().close()
    lock = tmp_path / "sweep" / LOCK
    lock.unlink()
    lock.mkdir()
    told = f"out: {tmp_path / 'sweep'} cannot be written (Is a directory)"
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
        opened(resume=True)


def test_who_only_reads_a_study_writes_nothing(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    opened().close()
    path = tmp_path / "sweep" / "study.db"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot be read as a sweep's study \(no such table: "):
        stored_config(tmp_path / "sweep")
    assert path.read_bytes() == b""
