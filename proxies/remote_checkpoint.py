"""Sharded checkpoints on storage without renames, such as an object store.

``progress.pt`` is written last, once every worker's part is there: a folder without it does not count, and a
half-written one, where the storage shows files before they are whole, fails its checksums and is passed over.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter

from widthwise.proxies.checkpoint import Progress, load_checkpoint
from widthwise.proxies.checkpoint_store import PROGRESS
from widthwise.proxies.storage import RemotePath


class RemoteStore:
    """The checkpoints in a `RemotePath`; see `widthwise.proxies.checkpoint_store.CheckpointStore`."""

    def __init__(self, folder: RemotePath) -> None:
        self.folder = folder
        self._progress: dict[str, bytes] = {}

    def begin(self, name: str, progress: Progress) -> None:
        self.remove(self.folder / name)  # of a stretch that is repeated, or of more workers
        buffer = io.BytesIO()
        torch.save(dict(progress), buffer)
        self._progress[name] = buffer.getvalue()

    def writer(self, name: str) -> Any:
        return _Writer(self.folder / name)

    def commit(self, name: str) -> None:
        (self.folder / name / PROGRESS).write_bytes(self._progress.pop(name))

    def present(self) -> list[RemotePath]:
        return [self.folder / name for name, whole in self._all().items() if whole]

    def reader(self, path: RemotePath) -> Any:
        return _Reader(path)

    def progress(self, path: RemotePath, identity: Mapping[str, Any]) -> Progress:
        return load_checkpoint(path / PROGRESS, identity, torch.device("cpu"))

    def sizes(self, path: RemotePath) -> dict[str, int]:
        return path.sizes()

    def remove(self, path: RemotePath) -> None:
        if (marker := path / PROGRESS).exists():
            marker.unlink()  # first: half of a checkpoint must not count
        path.remove()

    def discard_unfinished(self) -> None:
        for name, whole in self._all().items():
            if not whole:
                self.remove(self.folder / name)

    def _all(self) -> dict[str, bool]:
        """Return the names of all, oldest first, and whether each counts."""
        files = self.folder.sizes()
        names = sorted({file.partition("/")[0] for file in files if file.startswith("step_")})
        return {name: f"{name}/{PROGRESS}" in files for name in names}


class _Files(FileSystemBase):
    """The files of a `RemotePath` as torch's writer and reader ask for them: by the names in a folder."""

    def __init__(self, folder: RemotePath) -> None:
        self.folder = folder

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[IO[bytes]]:  # type: ignore[override]
        with self._at(path).open(mode) as stream:
            yield stream

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{path}/{suffix}" if str(path) else suffix

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self.folder.files.move(self._at(path).key, self._at(new_path).key)

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return str(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        self._at(path).mkdir()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return self._at(path).exists()

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._at(path).unlink()

    def _at(self, path: str | os.PathLike[str]) -> RemotePath:
        return self.folder / str(path)


class _Writer(FileSystemWriter):
    def __init__(self, folder: RemotePath) -> None:
        super().__init__("", sync_files=False)  # there is no disk here to be flushed
        self.fs: Any = _Files(folder)
        self.path = ""


class _Reader(FileSystemReader):
    def __init__(self, folder: RemotePath) -> None:
        super().__init__("")
        self.fs: Any = _Files(folder)
        self.path = ""
