"""Checkpoint files: whole or not at all, and refused where damaged or another run's."""

import random
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from widthwise.proxies.checkpoint import load_checkpoint, save_checkpoint
from widthwise.proxies.validation import ConfigError

IDENTITY = {"seed": 1, "data": "abc"}
CPU = torch.device("cpu")


def state(value: float = 1.0, size: int = 1000) -> dict[str, Any]:
    return {"identity": IDENTITY, "model": {"weight": torch.full((size,), value)}, "step": 5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoint.pt"
    save_checkpoint(path, state())
    return path


def assert_whole(path: Path, value: float = 1.0) -> None:
    """Check that the state is there, and nothing else in its folder."""
    found, expected = load_checkpoint(path, IDENTITY, CPU), state(value)
    torch.testing.assert_close(found.pop("model"), expected.pop("model"), rtol=0, atol=0)
    assert found == expected
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def assert_refused(path: Path, reason: str) -> None:
    message = f"checkpoint: {path} cannot be read ({reason}); remove it to start anew"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_checkpoint(path, IDENTITY, CPU)


def test_what_is_saved_is_loaded_and_replaces_what_was_there(path: Path) -> None:
    assert_whole(path)
    save_checkpoint(path, state(2.0))
    assert_whole(path, 2.0)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept: float, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    assert_refused(path, "File is not a zip file")


def test_a_changed_byte_of_a_tensor_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    start = content.index(torch.full((1000,), 1.0).numpy().tobytes())
    for position in random.Random(0).sample(range(start, start + 4000), 20):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert_refused(path, "archive/data/0 is damaged")


def test_a_changed_byte_anywhere_is_no_other_error(path: Path) -> None:
    content, generator = path.read_bytes(), random.Random(0)
    for position in generator.sample(range(len(content)), 300):
        damaged = bytearray(content)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path, IDENTITY, CPU)
        except ConfigError as error:
            assert str(error).startswith(f"checkpoint: {path} ")  # noqa: PT017


@pytest.mark.parametrize("content", [b"hello world", b"\x80\x04}.", bytes(1000)])
def test_what_is_no_checkpoint_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert_refused(path, "File is not a zip file")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, f"[Errno 21] Is a directory: {str(tmp_path)!r}")


@pytest.mark.parametrize("other", [[1, 2], {"weight": torch.ones(3)}])
def test_another_file_of_torch_is_refused(other: Any, path: Path) -> None:
    torch.save(other, path)
    message = f"checkpoint: {path} holds something else; use another folder"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_checkpoint(path, IDENTITY, CPU)


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({"seed": 2}, "was made with seed = 1, not 2"),
        ({"context": 16}, "was made with context = None, not 16"),
    ],
)
def test_another_runs_checkpoint_is_refused(wanted: dict[str, Any], complaint: str, path: Path) -> None:
    message = f"checkpoint: {path} {complaint}; use another folder"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_checkpoint(path, {**IDENTITY, **wanted}, CPU)


def test_a_state_that_cannot_be_written_leaves_the_file_as_it_was(path: Path) -> None:
    with pytest.raises(AttributeError, match=r"Can't .*pickle local object"):
        save_checkpoint(path, {**state(2.0), "unpicklable": lambda: None})
    assert_whole(path)


def test_a_full_disk_leaves_the_file_as_it_was(path: Path) -> None:
    full = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, check=False)
    assert full.stdout == "File too large\n", full.stderr
    assert_whole(path)


def write_to_a_full_disk(path: str) -> None:
    """Write a checkpoint where no file may be larger than 10 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        save_checkpoint(Path(path), state(2.0, size=100_000))
    except OSError as error:
        print(error.strerror)


if __name__ == "__main__":
    write_to_a_full_disk(sys.argv[1])
