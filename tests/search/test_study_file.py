"""The study's SQLite file while it is written: a log beside it, and what is left when the power goes."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from widthwise.search import study_file
from widthwise.search.ledger import Ledger
from widthwise.search.study_file import file_system, is_local

from .playing import begin, complete

MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/vdb /home/me/fast\\040disk xfs rw 0 0
/dev/vdc /data ext4 rw 0 0
//server/data /data cifs rw 0 0
"""


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(study_file, "_SERVER", tmp_path / "none")


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every disk taken for one of this machine's, whatever this one's is."""
    monkeypatch.setattr(study_file, "is_local", lambda _: True)


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("study.db*"))


def journal_mode(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        [mode] = connection.execute("PRAGMA journal_mode").fetchone()
    return str(mode)


def trials(path: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(storage=f"sqlite:///{path}", study_name="widthwise").get_trials()


def test_a_log_is_beside_the_file_while_it_is_written_and_carried_over_at_the_end(
    opened: Callable[..., Ledger],
) -> None:
    for resume in (False, True):
        ledger = opened(resume=resume)
        number, _ = begin(ledger)
        ledger.report(number, 10, 3.5)
        assert files(ledger.out) == ["study.db", "study.db-shm", "study.db-wal"]
        ledger.close()
        assert files(ledger.out) == ["study.db"]
        assert journal_mode(ledger.out / "study.db") == "delete"
        assert trials(ledger.out / "study.db")[number].intermediate_values == {10: 3.5}


def test_what_a_loss_of_power_leaves_has_every_trial_that_had_ended(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    ledger = opened()
    number, tried = begin(ledger)
    ledger.report(number, 10, 3.5)
    complete(ledger, number, tried)
    # The file alone, without the log, which the disk may not have yet.
    shutil.copy(ledger.out / "study.db", tmp_path / "left.db")
    [left] = trials(tmp_path / "left.db")
    assert (left.state, left.intermediate_values) == (TrialState.COMPLETE, {10: 3.5})
    assert left.user_attrs["tokens"] == 61440


def test_a_file_that_somebody_reads_keeps_its_log_and_can_be_opened_again(
    opened: Callable[..., Ledger],
) -> None:
    ledger = opened()
    number, tried = begin(ledger)
    with closing(sqlite3.connect(ledger.out / "study.db")) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM trials").fetchone() == (1,)
        complete(ledger, number, tried)
        ledger.close()
        assert journal_mode(ledger.out / "study.db") == "wal"
    again = opened(resume=True)
    assert [record["number"] for record in again.records()] == [0]
    again.close()
    assert files(again.out) == ["study.db"]


def test_there_is_no_log_where_another_machine_may_see_the_file(
    opened: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_file, "is_local", lambda _: False)
    ledger = opened()
    complete(ledger, *begin(ledger))
    assert files(ledger.out) == ["study.db"]
    assert journal_mode(ledger.out / "study.db") == "delete"


def test_a_log_that_a_kill_left_is_carried_over_where_there_is_to_be_none(
    opened: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = opened()
    number, _ = begin(ledger)
    ledger.report(number, 10, 3.5)
    # As a kill leaves it.
    shutil.copytree(ledger.out, tmp_path / "moved")
    monkeypatch.setattr(study_file, "is_local", lambda _: False)
    again = opened(tmp_path / "moved", resume=True)
    assert files(again.out) == ["study.db"]
    assert again.study.trials[number].intermediate_values == {10: 3.5}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/root/sweep", "ext4"),
        ("/homeland/sweep", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/sweep", "nfs4"),
        ("/home/me/fast disk/sweep", "xfs"),
        ("/data/sweep", "cifs"),
    ],
)
def test_the_innermost_mount_that_was_made_last_counts(path: str, kind: str) -> None:
    assert file_system(Path(path), MOUNTS) == kind


def test_a_file_system_that_is_no_disk_is_not_trusted() -> None:
    assert is_local(Path("/dev/shm/sweep"))
    assert not is_local(Path("/proc/self"))


def test_a_machine_that_serves_nfs_has_no_disk_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_file, "_SERVER", Path("/proc/self"))
    assert not is_local(Path("/dev/shm/sweep"))
