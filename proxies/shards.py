"""Token shards on disk: the format of llm.c and FineWeb, and nanoGPT's headerless one.

A shard is 256 little-endian int32 words (magic 20240520, version 1, the count of tokens, zeros)
and then one little-endian uint16 per token (https://github.com/karpathy/llm.c, dev/data/data_common.py).
`write_shard` puts the vocabulary's size, where it is known, into the fourth word, which other readers
skip: shards made of text so keep their 256 tokens. A file that does not start with the magic is
headerless: nothing but uint16 tokens (https://github.com/karpathy/nanoGPT, data/*/prepare.py).

``widthwise data FILE… --out DIR`` is `write_shards`.
"""

import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from widthwise.proxies.files import replacing
from widthwise.proxies.validation import ConfigError

TokenArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS

_UINT16 = np.dtype("<u2")
_LLAMA_MAGIC = 20240801  # llm.c's shards of uint32 tokens
_VOCABULARY_WORD = 3
_LARGEST_VOCABULARY = 2**16
_LARGEST_COUNT = 2**31 - 1  # the header's count is an int32
_CHUNK = 4_000_000  # tokens copied at a time: 8 MB of memory, whatever the corpus's size


class _Layout(NamedTuple):
    """Where a shard's tokens lie, and its vocabulary's size where the header tells it (else 0)."""

    offset: int
    tokens: int
    vocab_size: int


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read `path` into a ConfigError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"data: no such file: {path}") from None
    except OSError as error:
        raise ConfigError(f"data: cannot read {path}: {error.strerror}") from None


def read_shard(path: str | Path) -> npt.NDArray[np.uint16]:
    """Map a shard's tokens into memory, without reading them.

    Args:
        path: a shard with the llm.c header, or headerless uint16.

    Returns:
        A read-only np.memmap of shape (tokens,), dtype uint16.

    Raises:
        ConfigError: for a file that is missing, unreadable, empty, truncated, of another version or type.
    """
    path = Path(path)
    layout = _layout(path)
    with reading(path):
        return np.memmap(path, dtype=_UINT16, mode="r", offset=layout.offset, shape=(layout.tokens,))


def shard_vocab_size(path: str | Path) -> int | None:
    """Return the vocabulary's size where `write_shard` left it in the header, None otherwise."""
    return _layout(Path(path)).vocab_size or None


def read_tokens(path: str | Path) -> TokenArray:
    """Map a file's tokens into memory: a ``.bin`` shard's uint16, any other file's bytes as uint8.

    Returns:
        A read-only np.memmap of shape (tokens,), dtype uint16 or uint8.

    Raises:
        ConfigError: as `read_shard`, and for an empty file.
    """
    path = Path(path)
    if is_shard(path):
        return read_shard(path)
    if not _size(path):
        raise ConfigError(f"data: {path}: the file is empty")
    with reading(path):
        return np.memmap(path, dtype=np.uint8, mode="r")


def is_shard(path: Path) -> bool:
    """Whether a file's name says that it holds uint16 tokens; every other file is text."""
    return path.suffix.lower() == ".bin"


def write_shard(path: str | Path, tokens: npt.ArrayLike, *, vocab_size: int | None = None) -> None:
    """Write one shard with the llm.c header: to a temporary name, flushed, then renamed.

    Args:
        path: the file; its folder must exist.
        tokens: shape (tokens,), any whole-number dtype, values in [0, 65535].
        vocab_size: larger than every token; remembered in the header, see `shard_vocab_size`.

    Raises:
        ConfigError: for tokens that are none, not whole numbers, not flat, or too large.
    """
    array, name = np.asarray(tokens), Path(path).name
    if array.ndim != 1 or not array.size:
        raise ConfigError(f"data: {name}: tokens must have shape (n,), n >= 1, got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise ConfigError(f"data: {name}: tokens must be whole numbers, got dtype {array.dtype}")
    smallest, largest = int(array.min()), int(array.max())
    if smallest < 0 or largest >= _LARGEST_VOCABULARY:
        wrong = smallest if smallest < 0 else largest
        raise ConfigError(f"data: {name}: tokens must be in [0, 65535] (uint16), got {wrong}")
    if vocab_size is not None and not largest < vocab_size <= _LARGEST_VOCABULARY:
        raise ConfigError(f"vocab_size: must be in [{largest + 1}, {_LARGEST_VOCABULARY}], got {vocab_size}")
    if array.size > _LARGEST_COUNT:
        raise ConfigError(f"data: {name}: a shard must hold <= {_LARGEST_COUNT} tokens, got {array.size}")
    _write(Path(path), [array], vocab_size)


def write_shards(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    shard_tokens: int = 100_000_000,
    validation_fraction: float = 0.05,
) -> list[Path]:
    """Concatenate text files, or token shards, and cut them into training and validation shards.

    The validation shards hold the last `validation_fraction` of the tokens. Memory is bounded:
    the inputs are streamed. The shards appear in `out` when all are written: where that fails they
    are removed, and a process that was killed leaves no more than a hidden folder, which can go.

    Args:
        files: text files (their bytes are the tokens) or ``.bin`` shards, in the order wanted; not both.
        out: a folder without ``.bin`` files; created where missing.
        shard_tokens: tokens per shard; the last of a split is shorter.
        validation_fraction: in [0, 1); 0 writes no validation shard.

    Returns:
        ``out/train_000000.bin``, …, ``out/val_000000.bin``, …: what was written, in this order.

    Raises:
        ConfigError: naming ``data``, ``out``, ``shard_tokens`` or ``validation_fraction``.
    """
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction: must be in [0, 1), got {validation_fraction}")
    if not 1 <= shard_tokens <= _LARGEST_COUNT:
        raise ConfigError(f"shard_tokens: must be in [1, {_LARGEST_COUNT}], got {shard_tokens}")
    inputs = _inputs(files)
    vocab_size = _common_vocab_size(list(inputs))
    folder = _output_folder(Path(out))
    total = sum(inputs.values())
    split = total - int(total * validation_fraction)
    names: list[str] = []
    # Training shards alone would pass for a corpus. Inside `out`, because a rename does not leave a file system.
    with TemporaryDirectory(dir=folder, prefix=".unfinished.") as unfinished:
        for name, start, stop in [("train", 0, split), ("val", split, total)]:
            for index, first in enumerate(range(start, stop, shard_tokens)):
                names.append(f"{name}_{index:06d}.bin")
                tokens = _stream(inputs, first, min(first + shard_tokens, stop))
                _write(Path(unfinished, names[-1]), tokens, vocab_size)
        return _moved(names, Path(unfinished), folder)


def _moved(names: Sequence[str], source: Path, target: Path) -> list[Path]:
    """Rename the files from one folder into another, all or none, the last ones first."""
    paths = [target / name for name in names]
    try:
        for path in reversed(paths):
            (source / path.name).rename(path)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths


def _size(path: Path) -> int:
    """Return a regular file's bytes."""
    with reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"data: must be a file, got {path}")
    return status.st_size


def _layout(path: Path) -> _Layout:
    size = _size(path)
    with reading(path), path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    words = np.frombuffer(head[: len(head) // 4 * 4], dtype="<i4")
    if words.size and words[0] == MAGIC:
        return _with_header(path, size, words)
    return _headerless(path, size, words)


def _with_header(path: Path, size: int, words: npt.NDArray[np.int32]) -> _Layout:
    if words.size < HEADER_WORDS:
        raise ConfigError(f"data: {path}: header must have {HEADER_BYTES} bytes, got {size} (truncated?)")
    version, count, vocab_size = int(words[1]), int(words[2]), int(words[_VOCABULARY_WORD])
    if version != VERSION:
        raise ConfigError(f"data: {path}: header version must be {VERSION} (uint16 tokens), got {version}")
    held = (size - HEADER_BYTES) // 2
    if size != HEADER_BYTES + 2 * count:
        odd = " and an odd byte" if size % 2 else ""
        cause = " (truncated?)" if held < count else ""
        raise ConfigError(f"data: {path}: header says {count} tokens, the file holds {held}{odd}{cause}")
    if not count:
        raise ConfigError(f"data: {path}: header says 0 tokens, must hold some")
    known = 0 < vocab_size <= _LARGEST_VOCABULARY  # anything else is some other writer's
    return _Layout(HEADER_BYTES, count, vocab_size if known else 0)


def _headerless(path: Path, size: int, words: npt.NDArray[np.int32]) -> _Layout:
    if not size:
        raise ConfigError(f"data: {path}: the file is empty")
    if words.size and words[0] == _LLAMA_MAGIC:
        raise ConfigError(f"data: {path}: header magic must be {MAGIC} (uint16), got {words[0]} (uint32)")
    # Read as tokens, a header with a damaged magic would go unnoticed: its count gives it away.
    if words.size == HEADER_WORDS and words[1] == VERSION and size == HEADER_BYTES + 2 * int(words[2]):
        raise ConfigError(f"data: {path}: header magic must be {MAGIC}, got {words[0]} (corrupt?)")
    if size % 2:
        raise ConfigError(f"data: {path}: size must be even (uint16 tokens), got {size} bytes (truncated?)")
    return _Layout(0, size // 2, 0)


def _write(path: Path, chunks: Iterable[TokenArray], vocab_size: int | None) -> None:
    header = np.zeros(HEADER_WORDS, dtype="<i4")
    header[[0, 1, _VOCABULARY_WORD]] = MAGIC, VERSION, vocab_size or 0
    with replacing(path) as file:
        file.write(bytes(HEADER_BYTES))  # the count is not known yet
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype=_UINT16).data)
            header[2] += len(chunk)
        file.seek(0)
        file.write(header.data)


def _inputs(files: Sequence[str | Path]) -> dict[Path, int]:
    """Return every input's count of tokens, in the order given."""
    if not files:
        raise ConfigError("data: must name at least one file, got none")
    paths = [Path(file) for file in files]
    counts = {path: len(read_tokens(path)) for path in paths}
    if len(counts) < len(paths):
        twice = next(path for index, path in enumerate(paths) if path in paths[:index])
        raise ConfigError(f"data: must name every file once, got {twice} twice")
    shards = [path for path in paths if is_shard(path)]
    texts = [path for path in paths if not is_shard(path)]
    if shards and texts:
        raise ConfigError(f"data: must be all text or all .bin shards, got {texts[0]} and {shards[0]}")
    return counts


def _common_vocab_size(paths: Sequence[Path]) -> int | None:
    """Return the size of the vocabulary of all the inputs together, None where one does not tell."""
    sizes = [shard_vocab_size(path) if is_shard(path) else 256 for path in paths]
    known = [size for size in sizes if size is not None]
    return max(known) if len(known) == len(sizes) else None


def _output_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(path.name for path in folder.iterdir() if is_shard(path))
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"out: must be a folder, got the file {folder}") from None
    except OSError as error:
        raise ConfigError(f"out: cannot write {folder}: {error.strerror}") from None
    if present:
        raise ConfigError(f"out: must hold no .bin files, got {len(present)} in {folder} ({present[0]})")
    return folder


def _stream(inputs: dict[Path, int], start: int, stop: int) -> Iterator[TokenArray]:
    """Yield the tokens [start, stop) of the inputs' concatenation, in pieces of at most _CHUNK."""
    base = 0
    for path, count in inputs.items():
        first, last = max(start - base, 0), min(stop - base, count)
        if first < last:
            tokens = read_tokens(path)
            for position in range(first, last, _CHUNK):
                yield tokens[position : min(position + _CHUNK, last)]
        base += count
