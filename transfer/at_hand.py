"""The records of target runs on storage that a URI names, at hand for what reads folders."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from widthwise.proxies.storage import Place
from widthwise.proxies.validation import ConfigError

# Not the checkpoints, which are large.
RECORDS = ("plan.json", "recipe.json", "bands.json", "metrics.jsonl", "alarms.jsonl", "result.json")


@contextmanager
def at_hand(folder: Place) -> Iterator[Path]:
    """Yield a folder of this machine: `folder` itself, or a copy of its records and of its direct subfolders'.

    Raises:
        ConfigError: there are no records, or the storage cannot be reached.
    """
    if isinstance(folder, Path):
        yield folder
        return
    try:
        names = [
            name for name in folder.sizes() if name.rpartition("/")[2] in RECORDS and name.count("/") < 2
        ]
        contents = {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise ConfigError(f"folder: {folder} cannot be reached ({error.strerror or error})") from None
    if not contents:
        raise ConfigError(f"folder: {folder} holds no target run")
    with tempfile.TemporaryDirectory(prefix="ww-") as name:
        copy = Path(name) / (folder.name or "run")
        for inner, content in contents.items():
            (copy / inner).parent.mkdir(parents=True, exist_ok=True)
            (copy / inner).write_bytes(content)
        yield copy
