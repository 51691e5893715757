"""What a local Ray leaves behind."""

import os
import time
from pathlib import Path

import pytest

from widthwise.proxies.files import locked
from widthwise.search import cluster


def test_folders_of_killed_sessions_are_removed_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_SOCKETS", str(tmp_path))
    for name in ("ww-killed", "ww-living", "ww-new", "ww-unlocked", "ww-again/session_1"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("ww-killed", "ww-new"):
        (tmp_path / name / ".lock").touch()
    long_ago = time.time() - 2 * cluster.SECONDS_UNLOCKED
    with locked(tmp_path / "ww-living"):
        for name in ("ww-killed", "ww-living", "ww-unlocked", "ww-again"):
            os.utime(tmp_path / name, (long_ago, long_ago))
        with cluster.scratch_folder() as folder:
            kept = {path.name for path in tmp_path.iterdir()}
            assert kept == {"ww-living", "ww-new", "ww-unlocked", Path(folder).name}
    assert not Path(folder).exists()
