"""A folder that may not be written any more while a sweep runs in it."""

import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from widthwise.proxies.files import is_full, is_unwritable, system_error
from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search import executing, trial
from widthwise.search.ledger import Ledger
from widthwise.search.storage import sqlite_url

from .test_trial import Told, config_of

# Root writes everywhere, unless it gives that up.
AS_ANYBODY = """
import os, sys
given_up = ["--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
if os.geteuid() == 0 and "--inside" not in sys.argv:
    again = [sys.executable, "-c", sys.orig_argv[2], *sys.argv[1:], "--inside"]
    os.execvp("setpriv", ["setpriv", *given_up, *again])
from widthwise.transfer.cli import main
main([one for one in sys.argv[1:] if one != "--inside"])
"""
SWEEP = (
    "sweep --width 32 --context 64 --batch-tokens 1024 --tokens 204800 --seeds 1 --concurrency 1 --log none"
)


def test_what_sqlite_says_of_a_file_that_may_not_be_written_is_found_in_optunas_error(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    optuna.create_study(storage=sqlite_url(path), study_name="one")
    storage = optuna.storages.RDBStorage(sqlite_url(path, read_only=True), skip_table_creation=True)
    with pytest.raises(Exception, match="during the commit") as caught:
        optuna.load_study(storage=storage, study_name="one").set_user_attr("any", 1)
    storage.engine.dispose()
    assert (is_unwritable(caught.value), is_full(caught.value)) == (True, False)
    assert str(system_error(caught.value)) == "attempt to write a readonly database"
    assert not is_unwritable(sqlite3.OperationalError("no such table: any"))
    assert not is_unwritable(FileNotFoundError(2, "No such file or directory"))


def test_a_trial_whose_checkpoint_may_not_be_written_can_be_gone_on_with() -> None:
    # Where nobody makes folders.
    outcome = trial.outcome_of(config_of(Path("/sys/trial_0000")), Told())
    assert (outcome["status"], outcome["full"]) == (trial.UNKEPT, None)
    assert "'/sys/trial_0000" in outcome["error"]


def test_a_path_that_is_too_long_for_sqlite_is_refused(opened: Callable[..., Ledger], tmp_path: Path) -> None:
    out = tmp_path.joinpath(*["x" * 100] * 6)
    rule = f"out: {out} cannot be written (unable to open database file)"
    with pytest.raises(ConfigError, match=f"^{re.escape(rule)}$"):
        opened(out)


def test_a_file_elsewhere_that_may_not_be_written_is_not_the_sweeps(
    opened: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = opened()
    theirs, ours = (
        PermissionError(13, "Permission denied", str(path)) for path in (tmp_path / "ww", ledger.out / "any")
    )

    def executed(error: OSError) -> None:
        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(executing, "_run", fail)
        executing.execute(ledger, executing.Placement(concurrency=1), show_progress=False)

    with pytest.raises(PermissionError):
        executed(theirs)
    with pytest.raises(RunError) as raised:
        executed(ours)
    assert str(raised.value) == f"{ledger.out} cannot be written any more ({ours}); go on with --resume"


@pytest.mark.ray
@pytest.mark.slow
def test_a_folder_that_may_not_be_written_any_more_ends_a_sweep_which_can_be_gone_on_with(
    start: Callable[..., Any], real_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    running = start(*SWEEP.split(), "--trials", 8, "--data", real_text, "--out", out, script=AS_ANYBODY)
    running.until((out / "trials" / "trial_0000" / "checkpoint.pt").exists)
    folders = [path for path in (out, *out.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o500)
    (out / "study.db").chmod(0o400)
    status, printed, said = running.finish()
    *_, told = said.splitlines()
    assert (status, printed) == (1, "")
    assert told.startswith("widthwise: failed: ")
    assert told.endswith("; go on with --resume")
    assert "ermission denied" in told or "readonly database" in told
    running.require_gone()
    refused = start("sweep", "--resume", "--out", out, script=AS_ANYBODY).finish()
    assert refused[:2] == (2, "")
    assert refused[2].startswith(f"widthwise: error: out: {out} cannot be written (")
    assert refused[2].count("\n") == 1
    for folder in folders:
        if folder.exists():
            folder.chmod(0o700)
    os.chmod(out / "study.db", 0o600)
    status, _, said = start("sweep", "--resume", "--trials", 2, "--out", out, script=AS_ANYBODY).finish()
    assert status == 0, said
    assert "failed" not in said
