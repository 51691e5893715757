"""Token data: text or shards, mapped into memory, and batches that depend on nothing but (seed, step, row).

A batch's start positions come from a counter-based generator, Philox (Salmon et al., SC 2011), keyed by
the seed, with the step in its counter: runs that resume, or have other workers, see the same batches.
"""

import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from widthwise.proxies.shards import TokenArray, is_shard, read_tokens, reading, shard_vocab_size
from widthwise.proxies.validation import ConfigError, nearest

if TYPE_CHECKING:
    import torch

    Batch = tuple[torch.Tensor, torch.Tensor]

PYTHON = "python"  # the source that every machine has
BYTE_VOCABULARY = 256
GPT2_VOCABULARY = 50257

_PYTHON_BYTES = 16_000_000  # of the standard library's 11 to 13 MB: room to grow
# Tests repeat themselves, `encodings` is tables of character codes, the rest is not the library's own.
_NOT_SOURCE = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
_BUILD = ("config-", "_sysconfigdata")  # how this interpreter was built
_USE = "use 'python', a text file, a .bin shard or a folder of them"
_SCAN_TOKENS = 2**25  # checked against the vocabulary at each end of a corpus, divided among its shards
_HASH_BYTES = 2**26  # read for the fingerprint, divided among the shards
_HASH_BLOCK = 2**16

IntArray = npt.NDArray[np.int64]
Arrays = tuple[TokenArray, ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A corpus, split into training and validation. Made by `open_tokens`.

    Pickling copies the whole corpus: send `source` to another process, and open it there.

    Attributes:
        source: what was opened.
        vocab_size: every token is below it.
        train: the training shards, each of shape (tokens,), dtype uint8 or uint16, read-only.
        validation: the validation shards; no position is in both splits.
        fingerprint: sha256 over both splits' sizes and content; over evenly spaced samples of the
            content beyond 64 MB. The same tokens, split alike, have the same one under any name.
    """

    source: str
    vocab_size: int
    train: Arrays = field(repr=False)
    validation: Arrays = field(repr=False)
    fingerprint: str

    @property
    def train_tokens(self) -> int:
        """Count of training tokens."""
        return sum(map(len, self.train))

    @property
    def validation_tokens(self) -> int:
        """Count of validation tokens."""
        return sum(map(len, self.validation))

    def batch(
        self, step: int, *, seed: int, batch_size: int, context: int, rows: slice = slice(None)
    ) -> "Batch":
        """Draw the training batch of a step, or a worker's share of it.

        All windows of context + 1 tokens within a shard are equally likely. Row i of the whole batch
        depends on (seed, step, i) alone.

        Args:
            step: >= 0.
            seed: >= 0, below 2**128.
            batch_size: sequences in the whole batch, over all workers.
            context: tokens per sequence.
            rows: the rows of the whole batch that are wanted.

        Returns:
            x and y, int64 of shape (rows, context); y is x, one token later.

        Raises:
            ConfigError: where no shard is long enough, or a token is beyond the vocabulary.
        """
        windows = np.maximum(_lengths(self.train) - context, 0)
        if not (total := int(windows.sum())):
            self.require(context)
        words = np.random.Philox(key=seed, counter=[0, 0, step, 0]).random_raw(batch_size)
        # The remainder's bias is below total / 2**64, and raw words never change between numpy's versions.
        chosen = (words % np.uint64(total)).astype(np.int64)[rows]
        return self._gather(self.train, windows, chosen, 1, context)

    def validation_batches(self, count: int, *, batch_size: int, context: int) -> "Iterator[Batch]":
        """Iterate over fixed batches of the validation split: evenly spaced, predicting no token twice.

        A split too short for `count` batches yields fewer; one too short for a single batch
        yields one of fewer sequences, at least one.

        Returns:
            Batches (x, y) as from `batch`; the same on every call.

        Raises:
            ConfigError: where the split has no window of context + 1 tokens.
        """
        self.require(context)
        slots = (_lengths(self.validation) - 1) // context
        total = int(slots.sum())
        wanted = min(count * batch_size, total)
        if wanted > batch_size:
            wanted -= wanted % batch_size
        chosen = np.arange(wanted, dtype=np.int64) * total // max(wanted, 1)
        parts = [chosen[first : first + batch_size] for first in range(0, wanted, batch_size)]
        return (self._gather(self.validation, slots, part, context, context) for part in parts)

    def require(self, context: int, batch_size: int = 1) -> None:
        """Check that both splits are long enough to train and to validate on.

        Args:
            context: tokens per sequence; a shard of each split must hold context + 1.
            batch_size: the training split must hold a batch without repetition, batch_size * context + 1.

        Raises:
            ConfigError: with the numbers.
        """
        for name, shards in [("training", self.train), ("validation", self.validation)]:
            longest, unit = max(map(len, shards), default=0), "a shard of the" if len(shards) > 1 else "the"
            if longest <= context:
                raise ConfigError(
                    f"data: {self.source}: {unit} {name} split must hold at least context + 1 = "
                    f"{context + 1} tokens, got {longest}"
                )
        if self.train_tokens <= batch_size * context:
            raise ConfigError(
                f"data: {self.source}: the training split must hold at least batch_size * context + 1 = "
                f"{batch_size} * {context} + 1 = {batch_size * context + 1} tokens, got {self.train_tokens}"
            )

    def _gather(
        self, arrays: Arrays, slots: IntArray, chosen: IntArray, stride: int, context: int
    ) -> "Batch":
        """Copy the chosen windows of context + 1 tokens: numbers below the sum of the shards' `slots`."""
        import torch  # here, so that a mistake in the options is told before it is imported

        ends = np.cumsum(slots)
        shards = np.searchsorted(ends, chosen, side="right")
        starts = (chosen - (ends - slots)[shards]) * stride
        windows = np.empty((len(chosen), context + 1), dtype=np.int64)
        for row, (shard, start) in enumerate(zip(shards.tolist(), starts.tolist(), strict=True)):
            windows[row] = arrays[shard][start : start + context + 1]
        # `open_tokens` has seen no more than the ends of a large shard.
        _check_vocabulary(int(windows.max(initial=0)), self.vocab_size, self.source)
        tokens = torch.from_numpy(windows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def open_tokens(
    source: str | Path = PYTHON, *, vocab_size: int | None = None, validation_fraction: float = 0.05
) -> Tokens:
    """Open a corpus and split it; files are mapped into memory, not read.

    Args:
        source: ``python`` (the standard library's source on this machine, bytes as tokens), a text file
            (bytes as tokens), a ``.bin`` shard, or a folder of them, where files with "val" in their
            names are the validation split.
        vocab_size: the number of token ids; by default 256 for bytes, and for shards what their
            headers say, else GPT-2's 50257.
        validation_fraction: the share kept for validation, at the end, where no file is named "val".

    Raises:
        ConfigError: where the source is missing, unreadable, empty, corrupt, or beyond the vocabulary.
    """
    if not 0 < validation_fraction < 1:
        raise ConfigError(f"validation_fraction: must be in (0, 1), got {validation_fraction}")
    if vocab_size is not None and vocab_size < 2:
        raise ConfigError(f"vocab_size: must be >= 2, got {vocab_size}")
    name = str(source)
    if name == PYTHON:
        named = {name: np.frombuffer(python_source(), dtype=np.uint8)}
        return _tokens(name, named, vocab_size or BYTE_VOCABULARY, validation_fraction)
    paths = _files(Path(os.path.expanduser(name)), name)
    # A plain view: slices of a memmap cost ten times as much.
    opened = {str(path): read_tokens(path).view(np.ndarray) for path in paths}
    sizes = [_usual_vocab_size(path) for path in paths]
    return _tokens(name, opened, vocab_size or max(sizes), validation_fraction)


def require_source(source: str | Path) -> None:
    """Raise a ConfigError where `open_tokens` would find no file; nothing is read."""
    if str(source) != PYTHON:
        _files(Path(os.path.expanduser(source)), str(source))


def python_source(folder: str | Path | None = None) -> bytes:
    """Read the Python source below a folder, by default the standard library's, in the order of its names.

    At most 16 MB; without tests, installed packages, what is built for one machine, and unreadable files.

    Raises:
        ConfigError: where there is none.
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    pieces: list[bytes] = []
    room = _PYTHON_BYTES
    for path in _python_files(root):
        try:
            pieces.append(path.read_bytes()[:room])
        except OSError:
            continue
        room -= len(pieces[-1])
    if not any(pieces):
        raise ConfigError(f"data: python: no readable .py files in {root}; use a file or a folder of shards")
    return b"".join(pieces)


def _python_files(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_SOURCE and not name.startswith(_BUILD)]
        sources = [name for name in files if name.endswith(".py") and not name.startswith(_BUILD)]
        found += [Path(folder, name) for name in sources]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _files(path: Path, name: str) -> list[Path]:
    """Return the file, or the folder's shards, in the order of their names."""
    with reading(path):
        try:
            folder = stat.S_ISDIR(os.stat(name and path).st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
            shown = name if name and name.isprintable() else repr(name)
            hint = f"{_USE}{nearest(name, ['python'])}"
            raise ConfigError(f"data: no such file or folder: {shown}; {hint}") from None
    if not folder:
        return [path]
    with reading(path):
        shards = sorted(file for file in path.iterdir() if is_shard(file) and not file.name.startswith("."))
    if not shards:
        raise ConfigError(f"data: {name}: a folder must hold .bin shards, got none")
    return shards


def _usual_vocab_size(path: Path) -> int:
    return shard_vocab_size(path) or GPT2_VOCABULARY if is_shard(path) else BYTE_VOCABULARY


def _tokens(source: str, named: Mapping[str, TokenArray], vocab_size: int, fraction: float) -> Tokens:
    edge = max(_SCAN_TOKENS // len(named), _HASH_BLOCK)
    for name, array in named.items():
        _check_vocabulary(int(max(array[:edge].max(), array[-edge:].max())), vocab_size, name)
    train, validation = _split(source, named, fraction)
    return Tokens(source, vocab_size, train, validation, _fingerprint(train, validation))


def _check_vocabulary(token: int, vocab_size: int, name: str) -> None:
    if token >= vocab_size:
        rule = f"vocab_size must be > {token}, got {vocab_size}"
        raise ConfigError(f"data: {name}: token {token} is beyond the vocabulary: {rule}")


def _split(source: str, named: Mapping[str, TokenArray], fraction: float) -> tuple[Arrays, Arrays]:
    """Return the training and the validation shards."""
    held_out = {name for name in named if len(named) > 1 and "val" in Path(name).name.lower()}
    if held_out and len(held_out) == len(named):
        raise ConfigError(f"data: {source}: every .bin file has 'val' in its name, none is left to train on")
    if held_out:
        train = tuple(array for name, array in named.items() if name not in held_out)
        return train, tuple(array for name, array in named.items() if name in held_out)
    total = sum(map(len, named.values()))
    cut = total - int(total * fraction)
    before, after = [], []
    for array in named.values():
        here = min(max(cut, 0), len(array))
        before.append(array[:here])
        after.append(array[here:])
        cut -= len(array)
    return tuple(filter(len, before)), tuple(filter(len, after))


def _lengths(arrays: Arrays) -> IntArray:
    return np.array([len(array) for array in arrays] or [0], dtype=np.int64)


def _fingerprint(*splits: Arrays) -> str:
    digest = hashlib.sha256()
    budget = _HASH_BYTES // sum(map(len, splits))
    for name, arrays in zip(("train", "validation"), splits, strict=True):
        for array in arrays:
            digest.update(f"{name} {array.dtype.itemsize} {len(array)}\n".encode())
            for piece in _samples(array.view(np.uint8), budget):
                digest.update(piece.data)
    return digest.hexdigest()


def _samples(content: npt.NDArray[np.uint8], budget: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the content, or blocks of it, evenly spaced from the first to the last, if it is over budget."""
    if len(content) <= max(budget, 2 * _HASH_BLOCK):
        yield content
        return
    blocks = max(budget // _HASH_BLOCK, 2)
    for block in range(blocks):
        start = (len(content) - _HASH_BLOCK) * block // (blocks - 1)
        yield content[start : start + _HASH_BLOCK]


def absolute_source(source: str | Path) -> str:
    """Return `source` as another process, in another folder, can open it: a path is made absolute."""
    return PYTHON if str(source) == PYTHON else str(Path(source).expanduser().absolute())
