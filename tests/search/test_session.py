"""What a local Ray leaves behind."""

import os
import time
from pathlib import Path

import pytest

from widthwise.proxies.files import locked
from widthwise.search import cluster

# As Ray makes some that were removed while it ended.
AGAIN = ("ww-again/session_1", "ww-too/ray_train_run-1")


def test_folders_of_killed_sessions_are_removed_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_SOCKETS", str(tmp_path))
    for name in ("ww-killed", "ww-living", "ww-new", "ww-unlocked", *AGAIN):
        (tmp_path / name).mkdir(parents=True)
    for name in ("ww-killed", "ww-new"):
        (tmp_path / name / ".lock").touch()
    long_ago = time.time() - 2 * cluster.SECONDS_UNLOCKED
    with locked(tmp_path / "ww-living"):
        for folder in tmp_path.glob("ww-*"):
            if folder.name != "ww-new":
                os.utime(folder, (long_ago, long_ago))
        with cluster.scratch_folder() as scratch:
            kept = {path.name for path in tmp_path.iterdir()}
            assert kept == {"ww-living", "ww-new", "ww-unlocked", Path(scratch).name}
    assert not Path(scratch).exists()
