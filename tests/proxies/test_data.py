"""Token data: what is opened and how it is split, batches of (seed, step, row) alone, and mistakes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from widthwise.proxies.data import Tokens, open_tokens, python_source
from widthwise.proxies.shards import read_shard, write_shard, write_shards
from widthwise.proxies.validation import ConfigError

SHAPE = {"batch_size": 16, "context": 128}


def refuses(message: str) -> pytest.RaisesExc[ConfigError]:
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Give up root's right to read everything, for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def counting(tmp_path: Path, *lengths: int) -> Tokens:
    """Return training shards that count on from one to the next, so that a token tells its position."""
    first = 0
    for index, length in enumerate(lengths):
        write_shard(tmp_path / f"train_{index}.bin", np.arange(first, first + length))
        first += length
    write_shard(tmp_path / "val.bin", np.arange(60_000, 60_100))
    return open_tokens(tmp_path, vocab_size=65536)


def draw(tokens: Tokens, step: int, rows: slice = slice(None), seed: int = 1) -> torch.Tensor:
    x, y = tokens.batch(step, seed=seed, rows=rows, **SHAPE)
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == y.shape
    torch.testing.assert_close(x[:, 1:], y[:, :-1], rtol=0, atol=0)
    return torch.cat([x, y[:, -1:]], dim=1)


# What is opened


def test_python_is_the_standard_library() -> None:
    tokens = open_tokens()
    text = python_source()
    assert (tokens.source, tokens.vocab_size) == ("python", 256)
    assert np.concatenate(tokens.train + tokens.validation).tobytes() == text
    assert 2_000_000 < len(text) <= 16_000_000
    assert b"class ArgumentParser" in text
    assert b"site-packages/numpy" not in text


def test_python_source_is_ordered_and_leaves_out_what_is_not_source(tmp_path: Path) -> None:
    names = ["b.py", "a/z.py", "a.py", "test/t.py", "a/tests/t.py", "site-packages/s.py", "encodings/e.py"]
    for name in [*names, "_sysconfigdata_x.py", "config-3/c.py", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f"{name};")
    (tmp_path / "loop.py").symlink_to("loop.py")
    assert python_source(tmp_path) == b"a.py;a/z.py;b.py;"
    (tmp_path / "a.py").write_bytes(bytes(15_999_999))
    assert python_source(tmp_path) == bytes(15_999_999) + b"a"


def test_python_without_source(tmp_path: Path) -> None:
    with refuses(f"data: python: no readable .py files in {tmp_path}; use a file or a folder of shards"):
        python_source(tmp_path)


def test_text_is_its_bytes(real_text: Path) -> None:
    text = real_text.read_bytes()
    for source in [real_text, str(real_text)]:
        tokens = open_tokens(source, validation_fraction=0.1)
        assert (tokens.source, tokens.vocab_size) == (str(real_text), 256)
        assert tokens.validation_tokens == len(text) // 10
        assert tokens.train_tokens == len(text) - len(text) // 10
        assert np.concatenate(tokens.train + tokens.validation).tobytes() == text


def test_a_shard_is_split_at_its_end(real_shard: Path) -> None:
    tokens = open_tokens(real_shard)
    assert tokens.vocab_size == 50257
    assert (len(tokens.train), len(tokens.validation)) == (1, 1)
    assert tokens.validation_tokens == int(0.05 * len(read_shard(real_shard)))
    np.testing.assert_array_equal(np.concatenate(tokens.train + tokens.validation), read_shard(real_shard))
    assert not any(array.flags.writeable for array in tokens.train + tokens.validation)


def test_a_folder_is_split_by_name(tmp_path: Path) -> None:
    for name, token in [("b", 1), ("a", 0), ("c_VAL", 2), ("val_0", 3)]:
        write_shard(tmp_path / f"{name}.bin", [token] * 10)
    (tmp_path / ".hidden.bin").write_bytes(b"not a shard")
    (tmp_path / "notes.txt").write_bytes(b"not a shard")
    tokens = open_tokens(tmp_path)
    assert [int(array[0]) for array in tokens.train] == [0, 1]
    assert [int(array[0]) for array in tokens.validation] == [2, 3]


def test_a_folder_without_validation_files_is_split_at_its_end(tmp_path: Path) -> None:
    for index in range(4):
        write_shard(tmp_path / f"{index}.bin", np.arange(10 * index, 10 * index + 10))
    tokens = open_tokens(tmp_path, validation_fraction=0.4)
    assert [array.tolist() for array in tokens.train] == [[*range(10)], [*range(10, 20)], [20, 21, 22, 23]]
    assert [array.tolist() for array in tokens.validation] == [[*range(24, 30)], [*range(30, 40)]]


def test_text_and_its_shards_are_the_same_tokens(real_text: Path, tmp_path: Path) -> None:
    write_shards([real_text], tmp_path)
    text, shards = open_tokens(real_text), open_tokens(tmp_path)
    assert shards.vocab_size == text.vocab_size == 256
    torch.testing.assert_close(draw(shards, 3), draw(text, 3), rtol=0, atol=0)


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("some text, twenty by")
    assert open_tokens("~/a.txt").train_tokens == 19


def test_fingerprints_tell_contents_apart(real_text: Path, tmp_path: Path) -> None:
    text = bytearray(real_text.read_bytes())
    copy, other, shard = tmp_path / "copy.md", tmp_path / "other.txt", tmp_path / "a.bin"
    copy.write_bytes(text)
    text[12345] ^= 1
    other.write_bytes(text)
    write_shard(shard, text)
    reference = open_tokens(real_text).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", reference)
    assert open_tokens(copy).fingerprint == reference
    different = [open_tokens(path).fingerprint for path in [other, shard]] + [
        open_tokens(copy, validation_fraction=0.1).fingerprint,
        open_tokens().fingerprint,
    ]
    assert len({reference, *different}) == 5


def test_fingerprints_of_large_files_are_sampled_to_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    size = 200_000_000
    with path.open("wb") as file:
        file.truncate(size)
    seen = {open_tokens(path).fingerprint}
    for position in [0, size - 1]:
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"x")
        seen.add(open_tokens(path).fingerprint)
    assert len(seen) == 3


# Batches


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
def test_batches_do_not_depend_on_the_number_of_workers(workers: int, real_shard: Path) -> None:
    tokens = open_tokens(real_shard)
    share = SHAPE["batch_size"] // workers
    parts = [draw(tokens, 7, slice(rank * share, (rank + 1) * share)) for rank in range(workers)]
    torch.testing.assert_close(torch.cat(parts), draw(tokens, 7), rtol=0, atol=0)


def test_rows_do_not_depend_on_the_batch_size(real_shard: Path) -> None:
    tokens = open_tokens(real_shard)
    small, _ = tokens.batch(7, seed=1, batch_size=4, context=128)
    large, _ = tokens.batch(7, seed=1, batch_size=32, context=128)
    torch.testing.assert_close(large[:4], small, rtol=0, atol=0)
    none, _ = tokens.batch(7, seed=1, batch_size=4, context=128, rows=slice(4, 8))
    assert none.shape == (0, 128)


def test_batches_are_the_same_in_another_process(real_shard: Path) -> None:
    program = (
        "import sys; from widthwise.proxies.data import open_tokens; t = open_tokens(sys.argv[1]);"
        "print(t.fingerprint, t.batch(10**12, seed=2**64, batch_size=16, context=128)[1].tolist())"
    )
    command = [sys.executable, "-P", "-c", program, str(real_shard)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tokens = open_tokens(real_shard)
    here = tokens.batch(10**12, seed=2**64, **SHAPE)[1].tolist()
    assert printed == f"{tokens.fingerprint} {here}\n"


def test_start_positions_are_pinned(tmp_path: Path) -> None:
    """A recorded run must find its batches again: positions never change between versions."""
    tokens = counting(tmp_path, 40_000)
    starts = [tokens.batch(step, seed=5, batch_size=4, context=8)[0][:, 0].tolist() for step in (0, 1)]
    assert starts[0] == [37121, 35352, 12931, 20806]
    words = np.random.Philox(key=5, counter=1 << 128).random_raw(4)  # step 1 in the counter's third word
    assert starts[1] == [int(word) % (40_000 - 8) for word in words]


def test_steps_and_seeds_differ(real_text: Path) -> None:
    tokens = open_tokens(real_text)
    batches = [draw(tokens, step, seed=seed).numpy().tobytes() for step in range(50) for seed in range(4)]
    assert len(set(batches)) == 200


def test_windows_stay_within_a_shard_and_out_of_validation(tmp_path: Path) -> None:
    lengths = [170, 1000, 128, 170, 1, 1000]  # with 128 + 1 tokens per window, the third and fifth have none
    tokens = counting(tmp_path, *lengths)
    ends = np.cumsum(lengths)
    seen = set()
    for step in range(300):
        windows = draw(tokens, step)
        assert windows.max() < 60_000
        assert (windows.diff(dim=1) == 1).all()
        first, last = (np.searchsorted(ends, windows[:, at].numpy(), side="right") for at in (0, -1))
        np.testing.assert_array_equal(first, last)
        seen |= set(first.tolist())
    assert seen == {0, 1, 3, 5}


def test_start_positions_are_uniform_over_shards(tmp_path: Path) -> None:
    lengths = [150, 300, 100]
    tokens = counting(tmp_path, *lengths)
    starts = np.concatenate([draw(tokens, step)[:, 0].numpy() for step in range(4000)])
    possible = [*range(150 - 128), *range(150, 450 - 128)]
    counts = np.array([(starts == position).sum() for position in possible])
    assert counts.sum() == len(starts)
    assert stats.chisquare(counts).pvalue > 0.01


def test_windows_reach_the_first_and_the_last_token(tmp_path: Path) -> None:
    tokens = counting(tmp_path, 131)
    windows = torch.cat([draw(tokens, step) for step in range(10)])
    assert set(windows[:, 0].tolist()) == {0, 1, 2}
    assert windows.max() == 130


def test_corpora_beyond_four_billion_tokens(tmp_path: Path) -> None:
    shard = tmp_path / "sparse.txt"
    with shard.open("wb") as file:
        file.truncate(2**33 + 129)
        file.seek(2**33)
        file.write(b"\1" * 129)
    whole = np.memmap(shard, dtype=np.uint8, mode="r").view(np.ndarray)
    tokens = Tokens("sparse", 256, (whole[: 2**33], whole[2**33 :]), (whole[:129],), "")
    assert tokens.train_tokens == 2**33 + 129
    # The window at the very end, in the second shard, is one of 2**33 - 127: ask for it by its number.
    windows = np.array([2**33 - 128, 1])
    x, _ = tokens._gather(tokens.train, windows, np.array([0, 2**33 - 129, 2**33 - 128]), 1, 128)
    assert x.sum(dim=1).tolist() == [0, 0, 128]
    high = [tokens.batch(step, seed=0, **SHAPE)[0].shape for step in range(3)]
    assert high == [(16, 128)] * 3


# Validation


def test_validation_is_fixed_spaced_and_disjoint(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.bin", [0] * 99)
    write_shard(tmp_path / "val_0.bin", np.arange(1000, 1100))
    write_shard(tmp_path / "val_1.bin", np.arange(2000, 2051))
    tokens = open_tokens(tmp_path)
    batches = list(tokens.validation_batches(3, batch_size=2, context=10))
    starts = [x[:, 0].tolist() for x, _ in batches]
    # Nine slots in the first shard and five in the second: six of the fourteen.
    assert starts == [[1000, 1020], [1040, 1070], [2000, 2020]]
    for x, y in batches:
        assert x.shape == (2, 10)
        assert x.dtype == torch.int64
        torch.testing.assert_close(y, x + 1, rtol=0, atol=0)
    for (x, _), (again, _) in zip(
        batches, tokens.validation_batches(3, batch_size=2, context=10), strict=True
    ):
        torch.testing.assert_close(x, again, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("count", "batch_size", "rows"),
    [(1, 1, [1]), (2, 4, [4, 4]), (3, 4, [4, 4]), (9, 3, [3, 3, 3]), (1, 9, [9]), (1, 16, [9]), (5, 16, [9])],
)
def test_a_short_validation_split_yields_less(
    count: int, batch_size: int, rows: list[int], tmp_path: Path
) -> None:
    tokens = counting(tmp_path, 20)  # 100 validation tokens: nine sequences of 11
    batches = list(tokens.validation_batches(count, batch_size=batch_size, context=11))
    assert [len(x) for x, _ in batches] == rows
    predicted = torch.cat([y.flatten() for _, y in batches])
    assert len(predicted.unique()) == len(predicted)


def test_splits_share_no_token(tmp_path: Path) -> None:
    path = tmp_path / "all.bin"
    write_shard(path, np.arange(50_000))
    tokens = open_tokens(path)
    train = torch.cat([draw(tokens, step).flatten() for step in range(200)])
    validation = torch.cat([torch.cat([x, y]).flatten() for x, y in tokens.validation_batches(99, **SHAPE)])
    assert train.max() < 47_500 <= validation.min()
    assert validation.max() >= 47_500 + 2304


# Mistakes


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("pyhton", "; did you mean 'python'?"),
        ("Python", "; did you mean 'python'?"),
        ("no/such.bin", ""),
        ("", ""),
    ],
)
def test_sources_that_do_not_exist(source: str, hint: str) -> None:
    use = "use 'python', a text file, a .bin shard or a folder of them"
    with refuses(f"data: no such file or folder: {source or repr('')}; {use}{hint}"):
        open_tokens(source)


def test_names_that_cannot_exist(real_text: Path) -> None:
    use = "use 'python', a text file, a .bin shard or a folder of them"
    with refuses(f"data: no such file or folder: 'a\\x00b'; {use}"):
        open_tokens("a\0b")
    with refuses(f"data: no such file or folder: 'a\\nb'; {use}"):
        open_tokens("a\nb")
    with refuses(f"data: no such file or folder: {real_text / 'below'}; {use}"):
        open_tokens(real_text / "below")
    with refuses(f"data: no such file or folder: ~nobody-has-this-name/a; {use}"):
        open_tokens("~nobody-has-this-name/a")
    with refuses(f"data: cannot read {'a' * 300}: File name too long"):
        open_tokens("a" * 300)


def test_files_without_permission(tmp_path: Path) -> None:
    text, shard, folder = tmp_path / "a.txt", tmp_path / "b.bin", tmp_path / "folder"
    folder.mkdir()
    text.write_text("text")
    write_shard(shard, [1, 2])
    for path in [text, shard, folder]:
        path.chmod(0)
        with ordinary_user(), refuses(f"data: cannot read {path}: Permission denied"):
            open_tokens(path)
        path.chmod(0o700)  # or pytest cannot clean up


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with refuses(f"data: {tmp_path}: a folder must hold .bin shards, got none"):
        open_tokens(tmp_path)
    for name in ["a.txt", "a.bin"]:
        (tmp_path / name).touch()
        with refuses(f"data: {tmp_path / name}: the file is empty"):
            open_tokens(tmp_path / name)
    with refuses("data: must be a file, got /dev/zero"):
        open_tokens("/dev/zero")


def test_a_corrupt_shard_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", [1, 2, 3])
    bad = tmp_path / "b.bin"
    bad.write_bytes((tmp_path / "a.bin").read_bytes()[:-2])
    for source in [bad, tmp_path]:
        with refuses(f"data: {bad}: header says 3 tokens, the file holds 2 (truncated?)"):
            open_tokens(source)


def test_a_folder_of_validation_files_alone(tmp_path: Path) -> None:
    for name in ["val_0.bin", "val_1.bin"]:
        write_shard(tmp_path / name, [1, 2, 3])
    with refuses(f"data: {tmp_path}: every .bin file has 'val' in its name, none is left to train on"):
        open_tokens(tmp_path)


@pytest.mark.parametrize("value", [0, 1, 1.5, float("nan")])
def test_impossible_validation_fractions(value: float) -> None:
    with refuses(f"validation_fraction: must be in (0, 1), got {value}"):
        open_tokens(validation_fraction=value)


@pytest.mark.parametrize("value", [1, 0, -5])
def test_impossible_vocabularies(value: int) -> None:
    with refuses(f"vocab_size: must be >= 2, got {value}"):
        open_tokens(vocab_size=value)


def test_tokens_beyond_the_vocabulary_are_found_when_opening(tmp_path: Path) -> None:
    text, first, last = tmp_path / "a.txt", tmp_path / "0.bin", tmp_path / "1.bin"
    text.write_bytes(b"ascii, and \xff")
    write_shard(first, [50256] + [0] * 99)
    write_shard(last, [0] * 99 + [50257])
    complaint = "token 255 is beyond the vocabulary: vocab_size must be > 255, got 128"
    with refuses(f"data: {text}: {complaint}"):
        open_tokens(text, vocab_size=128)
    with refuses(
        f"data: {last}: token 50257 is beyond the vocabulary: vocab_size must be > 50257, got 50257"
    ):
        open_tokens(tmp_path)
    assert open_tokens(text, vocab_size=300).vocab_size == 300
    assert open_tokens(tmp_path, vocab_size=50304).vocab_size == 50304


def test_tokens_beyond_the_vocabulary_are_found_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(80_000_000)
        file.seek(34_000_000)
        file.write(b"\xff" * 12_000_000)
    tokens = open_tokens(path, vocab_size=200)  # its ends are well, its middle is not
    complaint = "token 255 is beyond the vocabulary: vocab_size must be > 255, got 200"
    with refuses(f"data: {path}: {complaint}"):
        tokens.batch(0, seed=0, batch_size=512, context=8)


def test_splits_that_are_too_short(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(100))
    tokens = open_tokens(path)
    complaint = f"data: {path}: the training split must hold at least context + 1 = 96 tokens, got 95"
    for attempt in [
        lambda: tokens.require(95),
        lambda: tokens.batch(0, seed=0, batch_size=1, context=95),
    ]:
        with refuses(complaint):
            attempt()
    short = f"data: {path}: the validation split must hold at least context + 1 = 6 tokens, got 5"
    with refuses(short):
        tokens.require(5)
    with refuses(short):
        tokens.validation_batches(1, batch_size=1, context=5)
    tokens.require(4, batch_size=23)
    rule = "the training split must hold at least batch_size * context + 1 = 24 * 4 + 1 = 97 tokens"
    with refuses(f"data: {path}: {rule}, got 95"):
        tokens.require(4, batch_size=24)


def test_shards_that_are_all_too_short(tmp_path: Path) -> None:
    tokens = counting(tmp_path, 50, 50)
    with refuses(
        f"data: {tmp_path}: a shard of the training split must hold at least context + 1 = 51 tokens, got 50"
    ):
        tokens.require(50)
    path = tmp_path / "single.txt"
    path.write_bytes(b"a")
    with refuses(f"data: {path}: the training split must hold at least context + 1 = 2 tokens, got 1"):
        open_tokens(path).require(1)
