"""Where sharded checkpoints lie, and what makes one count: a rename on file systems, a last object elsewhere."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from widthwise.proxies.checkpoint import Progress, load_checkpoint, save_checkpoint
from widthwise.proxies.storage import Place

PROGRESS = "progress.pt"


class CheckpointStore(Protocol):
    """The checkpoints in a folder, by their names ``step_NNNNNNNNN``; one worker begins, commits and removes."""

    def begin(self, name: str, progress: Progress) -> None:
        """Make room for a checkpoint and take the first worker's part of it."""

    def writer(self, name: str) -> Any:
        """Return a ``StorageWriter`` for a worker's part of one that was begun."""

    def commit(self, name: str) -> None:
        """Have one count whose parts are all written."""

    def present(self) -> list[Any]:
        """Return the places of those that count, oldest first."""

    def reader(self, path: Any) -> Any:
        """Return a ``StorageReader`` for one."""

    def progress(self, path: Any, identity: Mapping[str, Any]) -> Progress:
        """Return the first worker's part; errors as of `load_checkpoint`."""

    def sizes(self, path: Any) -> dict[str, int]:
        """Return the sizes in bytes of its files by name."""

    def remove(self, path: Any) -> None:
        """Remove one."""

    def discard_unfinished(self) -> None:
        """Remove what never came to count."""


class LocalStore:
    """On a file system: a checkpoint has another name until all of it is on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, name: str, progress: Progress) -> None:
        self._require_place()
        self._unfinished(name).mkdir(exist_ok=True)
        save_checkpoint(self._unfinished(name) / PROGRESS, progress)

    def writer(self, name: str) -> Any:
        from widthwise.proxies.local_writer import LocalWriter

        self._require_place()
        return LocalWriter(self._unfinished(name))

    def commit(self, name: str) -> None:
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)  # of a stretch that is repeated
        self._unfinished(name).rename(path)
        _flush(self.folder)

    def present(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"))

    def reader(self, path: Path) -> Any:
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        return FileSystemReader(path)

    def progress(self, path: Path, identity: Mapping[str, Any]) -> Progress:
        return load_checkpoint(path / PROGRESS, identity, torch.device("cpu"))

    def sizes(self, path: Path) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in path.iterdir()}

    def remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def discard_unfinished(self) -> None:
        for unfinished in self.folder.glob(".step_*.unfinished"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _require_place(self) -> None:
        """Make the folder, but none above it: a run that was moved away in the meantime is not begun anew."""
        self.folder.mkdir(exist_ok=True)

    def _unfinished(self, name: str) -> Path:
        return self.folder / f".{name}.unfinished"


def store(folder: Place) -> CheckpointStore:
    """Return the checkpoints of a folder."""
    if isinstance(folder, Path):
        return LocalStore(folder)
    from widthwise.proxies.remote_checkpoint import RemoteStore  # brings torch's writers, slow to import

    return RemoteStore(folder)


def last_step(folder: Place) -> int | None:
    """Return the step of the latest checkpoint that counts, or None."""
    steps = [int(path.name.removeprefix("step_")) for path in store(folder).present()]
    return max(steps, default=None)


def _flush(folder: Path) -> None:
    """Have the disk keep a folder's names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
