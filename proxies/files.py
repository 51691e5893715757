"""Files that are whole or absent: atomic writes, and JSON that is read with errors in one line."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from widthwise.proxies.validation import ConfigError


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well; a reader sees the old or the new.

    Raises:
        OSError: the folder is missing or cannot be written to, or the disk is full; the old file stays.
    """
    path = Path(path)
    # In the same folder, because a rename is atomic only within one file system.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; others may read this one as they may any new file.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomic(path: str | Path, text: str) -> None:
    """Write `text` in UTF-8, whole or not at all; errors as in `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write one JSON object, atomically.

    Raises:
        ValueError: the document holds NaN or infinity, which JSON cannot say (write null instead).
        OSError: as in `replacing`.
    """
    write_atomic(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """Return the JSON object in the file `path`.

    Args:
        path: the file.
        what: what it should be, for the message: ``"a recipe"``.

    Raises:
        ConfigError: the file is missing, a folder, unreadable, empty, not JSON, or not an object.
    """
    text = _read_text(Path(path), what)
    if not text.strip():
        raise ConfigError(f"{path}: is empty, must be {what}")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{path}: not valid JSON at {where}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or thousands of open brackets.
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be an object, got {_JSON_NAMES[type(document)]}")
    return document


_JSON_NAMES = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file, must be {what}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, must be {what}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}, must be {what}") from None
