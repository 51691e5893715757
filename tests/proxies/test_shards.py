"""The shard format: written, read back, cut and merged, and refused where it is damaged."""

import re
import resource
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from widthwise.proxies.data import open_tokens
from widthwise.proxies.shards import (
    read_shard,
    read_tokens,
    shard_vocab_size,
    write_shard,
    write_shards,
)
from widthwise.proxies.validation import ConfigError


def refuses(message: str) -> pytest.RaisesExc[ConfigError]:
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Have the operating system refuse to write beyond `size` bytes: a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def header(*words: int) -> bytes:
    return struct.pack("<256i", *words, *[0] * (256 - len(words)))


def tokens_of(paths: list[Path]) -> np.ndarray:
    return np.concatenate([read_shard(path) for path in paths])


def test_real_shard_reads_like_the_format_says(real_shard: Path) -> None:
    shard = read_shard(real_shard)
    count = struct.unpack("<3i", real_shard.read_bytes()[:12])[2]
    assert (shard.shape, shard.dtype, shard.flags.writeable) == ((count,), np.uint16, False)
    np.testing.assert_array_equal(shard, np.frombuffer(real_shard.read_bytes()[1024:], dtype="<u2"))


def test_what_is_written_is_read_back(real_shard: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bin"
    write_shard(copy, read_shard(real_shard))
    assert copy.read_bytes() == real_shard.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["copy.bin"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, ">u2"])
def test_any_whole_number_dtype_is_written_alike(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.array([7, 0, 255, 3], dtype=dtype)[::-1])
    assert path.read_bytes() == header(20240520, 1, 4) + bytes([3, 0, 255, 0, 0, 0, 7, 0])


def test_a_headerless_file_is_tokens_alone(real_shard: Path, tmp_path: Path) -> None:
    path = tmp_path / "nano.bin"
    path.write_bytes(real_shard.read_bytes()[1024:])
    np.testing.assert_array_equal(read_shard(path), read_shard(real_shard))
    path.write_bytes(b"\x01\x02")  # shorter than a header's first word
    np.testing.assert_array_equal(read_shard(path), [0x0201])


def test_the_vocabulary_is_remembered(tmp_path: Path) -> None:
    write_shard(tmp_path / "told.bin", [1, 2], vocab_size=256)
    write_shard(tmp_path / "untold.bin", [1, 2])
    (tmp_path / "other.bin").write_bytes(header(20240520, 1, 1, -5) + b"ab")
    (tmp_path / "nano.bin").write_bytes(b"abcd")
    names = ["told", "untold", "other", "nano"]
    assert [shard_vocab_size(tmp_path / f"{name}.bin") for name in names] == [256, None, None, None]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, [1, 2])
    with file_size_limit(1100), pytest.raises(OSError, match="File too large"):
        write_shard(path, [3] * 100)
    assert read_shard(path).tolist() == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("value", [0, 7, 65537])
def test_a_vocabulary_that_cannot_be(value: int, tmp_path: Path) -> None:
    with refuses(f"vocab_size: must be in [8, 65536], got {value}"):
        write_shard(tmp_path / "a.bin", [7, 3], vocab_size=value)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "data: a.bin: tokens must have shape (n,), n >= 1, got shape (0,)"),
        ([[1, 2]], "data: a.bin: tokens must have shape (n,), n >= 1, got shape (1, 2)"),
        (3, "data: a.bin: tokens must have shape (n,), n >= 1, got shape ()"),
        ([0.5], "data: a.bin: tokens must be whole numbers, got dtype float64"),
        ([1, -1], "data: a.bin: tokens must be in [0, 65535] (uint16), got -1"),
        ([1, 65536], "data: a.bin: tokens must be in [0, 65535] (uint16), got 65536"),
    ],
)
def test_tokens_that_no_shard_can_hold(tokens: object, message: str, tmp_path: Path) -> None:
    with refuses(message):
        write_shard(tmp_path / "a.bin", tokens)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (header(20240520, 1, 300) + bytes(34), "header says 300 tokens, the file holds 17 (truncated?)"),
        (header(20240520, 1, 16) + bytes(34), "header says 16 tokens, the file holds 17"),
        (
            header(20240520, 1, 17) + bytes(33),
            "header says 17 tokens, the file holds 16 and an odd byte (truncated?)",
        ),
        (header(20240520, 1, -3) + bytes(34), "header says -3 tokens, the file holds 17"),
        (header(20240520, 1, 0), "header says 0 tokens, must hold some"),
        (header(20240520, 2, 17) + bytes(34), "header version must be 1 (uint16 tokens), got 2"),
        (header(20240520, 1, 17)[:500], "header must have 1024 bytes, got 500 (truncated?)"),
        (
            header(20240801, 7, 17) + bytes(68),
            "header magic must be 20240520 (uint16), got 20240801 (uint32)",
        ),
        (header(20240521, 1, 17) + bytes(34), "header magic must be 20240520, got 20240521 (corrupt?)"),
        (bytes(17), "size must be even (uint16 tokens), got 17 bytes (truncated?)"),
        (b"a", "size must be even (uint16 tokens), got 1 bytes (truncated?)"),
    ],
)
def test_damaged_shards(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    path.write_bytes(content)
    for read in [read_shard, read_tokens, shard_vocab_size]:
        with refuses(f"data: {path}: {message}"):
            read(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    loop = tmp_path / "loop.bin"
    loop.symlink_to(loop)
    with refuses(f"data: no such file: {tmp_path / 'no.bin'}"):
        read_shard(tmp_path / "no.bin")
    with refuses(f"data: cannot read {loop}: Too many levels of symbolic links"):
        read_shard(str(loop))
    with refuses(f"data: must be a file, got {tmp_path}"):
        read_tokens(tmp_path)


def test_text_becomes_shards(real_text: Path, tmp_path: Path) -> None:
    text = real_text.read_bytes()
    second = tmp_path / "second.txt"
    second.write_bytes(b"caf\xc3\xa9\n" * 1000)
    whole = text + second.read_bytes()
    size = len(whole) // 5
    paths = write_shards([real_text, second], tmp_path / "out", shard_tokens=size, validation_fraction=0.3)
    # 70 % in shards of 20 %: three full ones and a half; 30 %: one and a half.
    names = [f"train_{i:06d}.bin" for i in range(4)] + [f"val_{i:06d}.bin" for i in range(2)]
    assert paths == [tmp_path / "out" / name for name in names]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert tokens_of(paths).astype(np.uint8).tobytes() == whole
    assert sum(len(read_shard(path)) for path in paths[4:]) == int(len(whole) * 0.3)
    assert max(len(read_shard(path)) for path in paths) == size
    assert {shard_vocab_size(path) for path in paths} == {256}


def test_shards_are_merged(real_shard: Path, tmp_path: Path) -> None:
    nano = tmp_path / "nano.BIN"
    nano.write_bytes(np.arange(999, dtype="<u2").tobytes())
    paths = write_shards([nano, real_shard], tmp_path / "out", validation_fraction=0)
    assert [path.name for path in paths] == ["train_000000.bin"]
    np.testing.assert_array_equal(tokens_of(paths), np.concatenate([np.arange(999), read_shard(real_shard)]))
    assert shard_vocab_size(paths[0]) is None


@pytest.mark.parametrize(("sizes", "merged"), [((256, 300), 300), ((256, None), None)])
def test_the_merged_vocabulary_is_the_largest(
    sizes: tuple[int | None, ...], merged: int | None, tmp_path: Path
) -> None:
    files = [tmp_path / f"{index}.bin" for index in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        write_shard(file, [1, 2, 3], vocab_size=size)
    paths = write_shards(files, tmp_path / "out", validation_fraction=0.5)
    assert [(len(read_shard(path)), shard_vocab_size(path)) for path in paths] == [(3, merged), (3, merged)]


def test_memory_is_bounded(tmp_path: Path) -> None:
    text = tmp_path / "large.txt"
    with text.open("wb") as file:
        file.truncate(60_000_000)
    tracemalloc.start()
    paths = write_shards([text], tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(read_shard(path)) for path in paths) == 60_000_000
    assert peak < 20_000_000


def test_a_failure_half_way_leaves_no_shards(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(bytes(100))
    # The training shards fit below the limit, the validation shard does not.
    with file_size_limit(1100), pytest.raises(OSError, match="File too large"):
        write_shards([text], tmp_path / "out", shard_tokens=60, validation_fraction=0.7)
    assert not list((tmp_path / "out").iterdir())


def test_a_kill_half_way_leaves_no_shards(tmp_path: Path) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_bytes(bytes(100))
    # Killed when the training shards are written and the first of validation is about to be.
    script = """
import os, signal, sys
from widthwise.proxies import shards
stream = shards._stream
shards._stream = lambda inputs, start, stop: os.kill(os.getpid(), 9) if start >= 50 else stream(inputs, start, stop)
shards.write_shards([sys.argv[1]], sys.argv[2], shard_tokens=25, validation_fraction=0.5)
"""
    killed = subprocess.run([sys.executable, "-c", script, text, out], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = out.iterdir()
    assert sorted(path.name for path in left.glob("*.bin")) == ["train_000000.bin", "train_000001.bin"]
    with refuses(f"data: {out}: a folder must hold .bin shards, got none"):
        open_tokens(str(out))
    paths = write_shards([text], out, shard_tokens=25, validation_fraction=0.5)
    assert sorted(out.glob("*.bin")) == paths
    assert tokens_of(paths).tolist() == [0] * 100


def test_shards_that_cannot_all_be_put_in_place_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_bytes(bytes(100))
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "train_000000.bin":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards([text], out)
    assert not list(out.iterdir())


def test_inputs_that_cannot_become_shards(tmp_path: Path) -> None:
    text, empty, shard, out = (tmp_path / name for name in ["a.txt", "empty.txt", "b.bin", "out"])
    text.write_text("text")
    empty.touch()
    write_shard(shard, [1, 2])
    cases: list[tuple[list[Path], str]] = [
        ([], "data: must name at least one file, got none"),
        ([text, tmp_path / "no.txt"], f"data: no such file: {tmp_path / 'no.txt'}"),
        ([text, text / "below"], f"data: no such file: {text / 'below'}"),
        ([empty], f"data: {empty}: the file is empty"),
        ([tmp_path], f"data: must be a file, got {tmp_path}"),
        ([shard, text], f"data: must be all text or all .bin shards, got {text} and {shard}"),
        ([text, shard, text], f"data: must name every file once, got {text} twice"),
    ]
    for files, message in cases:
        with refuses(message):
            write_shards(files, out)
    assert not out.exists()


@pytest.mark.parametrize("value", [-0.1, 1, float("nan")])
def test_impossible_validation_fractions(value: float, tmp_path: Path) -> None:
    with refuses(f"validation_fraction: must be in [0, 1), got {value}"):
        write_shards([tmp_path / "a.txt"], tmp_path, validation_fraction=value)


@pytest.mark.parametrize("value", [0, 2**31])
def test_impossible_shard_sizes(value: int, tmp_path: Path) -> None:
    with refuses(f"shard_tokens: must be in [1, 2147483647], got {value}"):
        write_shards([tmp_path / "a.txt"], tmp_path, shard_tokens=value)


def test_output_folders_in_use(tmp_path: Path) -> None:
    text, out, loop = tmp_path / "a.txt", tmp_path / "out", tmp_path / "loop"
    text.write_text("some text, twenty by")
    first = write_shards([text], out)
    before = [path.read_bytes() for path in first]
    with refuses(f"out: must hold no .bin files, got 2 in {out} (train_000000.bin)"):
        write_shards([text], out)
    assert [path.read_bytes() for path in first] == before
    with refuses(f"out: must be a folder, got the file {text}"):
        write_shards([text], text)
    with refuses(f"out: must be a folder, got the file {text / 'below'}"):
        write_shards([text], text / "below")
    loop.symlink_to(loop)
    with refuses(f"out: cannot write {loop / 'below'}: Too many levels of symbolic links"):
        write_shards([text], loop / "below")
