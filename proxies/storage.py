"""Folders that a URI names: object stores, and other storage that pyarrow or fsspec reaches.

A `RemotePath` has those methods of `pathlib.Path` that a run's records and checkpoints need. There is no rename and no
lock: an object appears whole when its upload ends. Credentials are never part of a URI; each process finds its own, in
its environment or its machine's role, as the storage's library looks for them.
"""

import io
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from widthwise.proxies.validation import ConfigError

# Small reads, of which torch does many, come out of one request of so many bytes.
_AHEAD = 1 << 23
_SECRET = ("secret", "key", "token", "password", "credential", "sig")


@dataclass(frozen=True)
class RemotePath:
    """A folder or a file on storage that a URI names.

    Attributes:
        root: scheme and host, or bucket: ``s3://bucket``.
        path: within it, without a slash at either end.
        query: what the storage's library is told besides, such as ``region=us-east-1``.
    """

    root: str
    path: str
    query: str = ""

    def __str__(self) -> str:
        question = f"?{self.query}" if self.query else ""
        return f"{self.root}/{self.path}{question}"

    def __truediv__(self, name: str) -> "RemotePath":
        return replace(self, path=f"{self.path}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def files(self) -> Any:
        """The ``pyarrow.fs.FileSystem``."""
        files = _opened(self.root, self.query)[0]
        if hasattr(files, "handler"):
            # fsspec remembers listings, which other processes change.
            files.handler.fs.invalidate_cache()
        return files

    @property
    def key(self) -> str:
        """The path as `files` takes it."""
        return f"{_opened(self.root, self.query)[1].rstrip('/')}/{self.path}"

    def exists(self) -> bool:
        """Tell whether there is such a file or folder."""
        return bool(self.files.get_file_info(self.key).type.name != "NotFound")

    def mkdir(self, *, parents: bool = True, exist_ok: bool = True) -> None:
        """Make the folder and those above it; where there are none, find out whether something can be written."""
        self.files.create_dir(self.key, recursive=parents)

    def open(self, mode: str) -> IO[bytes]:
        """Return a stream for ``rb`` or ``wb``."""
        if mode == "rb":
            return cast(IO[bytes], io.BufferedReader(self.files.open_input_file(self.key), _AHEAD))
        return cast(IO[bytes], self.files.open_output_stream(self.key))

    def read_bytes(self) -> bytes:
        """Return the content; FileNotFoundError where there is none."""
        with self.files.open_input_stream(self.key) as stream:
            return bytes(stream.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Put the content in place of what is there: whole or not at all, where the storage keeps objects."""
        with self.files.open_output_stream(self.key) as stream:
            stream.write(content)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file."""
        if not missing_ok or self.exists():
            self.files.delete_file(self.key)

    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of all files below, by their paths relative to here; empty where there are none."""
        from pyarrow.fs import FileSelector

        found = self.files.get_file_info(FileSelector(self.key, recursive=True, allow_not_found=True))
        start = len(self.key.strip("/")) + 1
        return {one.path.strip("/")[start:]: one.size for one in found if one.is_file}

    def remove(self) -> None:
        """Remove the folder and all in it, if it is there."""
        if self.exists():
            self.files.delete_dir(self.key)


Place = Path | RemotePath
"""A folder or file: on this machine's file systems, or on storage that a URI names."""


def place(text: str | Place) -> Place:
    """Return what a path or a URI names; ``file://`` is a path. Nothing is looked at yet.

    Raises:
        ConfigError: the URI has no path, or holds credentials.
    """
    if not isinstance(text, str):
        return text
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text)
    secret = any(word in name.lower() for name, _ in parse_qsl(parts.query) for word in _SECRET)
    if parts.password or secret:
        # Not the value: messages end in logs.
        raise ConfigError(
            f"{parts.scheme}://…: must hold no credentials; they belong into the environment of every process"
        )
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if not (parts.netloc and parts.path.strip("/")):
        raise ConfigError(f"{text}: must be a URI with a path below its bucket or host")
    return RemotePath(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"), parts.query)


@cache
def _opened(root: str, query: str) -> tuple[Any, str]:
    """Return a ``pyarrow.fs.FileSystem``, and the path of `root` on it: pyarrow's own, or one of fsspec's."""
    from fsspec.core import url_to_fs
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    uri = f"{root}?{query}" if query else root
    scheme = root.partition("://")[0]
    try:
        if scheme in _ARROW:
            files, path = FileSystem.from_uri(uri)
        else:
            found, path = url_to_fs(f"{root}/")
            files = PyFileSystem(FSSpecHandler(found))
    except (ArrowException, ImportError, ValueError, OSError) as error:
        raise ConfigError(f"{root}: cannot be reached ({str(error).strip()})") from error
    return files, str(path)


# What pyarrow reaches by itself; fsspec has the rest.
_ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
