"""TensorBoard's files, read by their format."""

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event


def events(folder: Path) -> list[Any]:
    """Return the events of the one file of a run: each is framed by its length and two checksums."""
    [path] = folder.iterdir()
    assert "tfevents" in path.name
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return (tokens, value) of a run's values of a name."""
    values = [(event.step, value) for event in events(folder) for value in event.summary.value]
    return [(step, value.simple_value) for step, value in values if value.tag == tag]


def points(out: Path, number: int) -> list[tuple[int, float]]:
    """Return (tokens, loss) of a sweep's trial."""
    return scalars(out / "tensorboard" / f"trial_{number:04d}", "loss")
