"""A worker's part of a checkpoint on a file system; imported late, because torch's writers are slow to import."""

import os
from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter


class LocalWriter(FileSystemWriter):
    """Writes into a folder that it makes, but makes none above it: a run that was moved away is not begun anew."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fs = _Within()


class _Within(FileSystem):
    def mkdir(self, path: str | os.PathLike[str]) -> None:
        Path(path).mkdir(exist_ok=True)
