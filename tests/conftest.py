"""Shared fixtures, and a guard against testing the folders instead of the installed package."""

import importlib.util
import os
import struct
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

if importlib.util.find_spec("kernels") is not None:
    raise pytest.UsageError(
        "the repository's root is on sys.path, so that `import kernels` finds a folder: "
        "run `make test`, or set PYTHONSAFEPATH=1"
    )


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Return the folder with real text (tinyshakespeare.txt, wikitext2_valid_gpt2.bin), if this machine has it."""
    folder = Path(os.environ.get("WIDTHWISE_DATA", ROOT.parent / "shared" / "data"))
    return folder


@pytest.fixture(scope="session")
def real_text(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text file of about 1 MB: Shakespeare, or Python's source where `corpora` has none."""
    path = corpora / "tinyshakespeare.txt"
    if not path.exists():
        sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        path = tmp_path_factory.mktemp("text") / "python.txt"
        path.write_bytes(b"".join(source.read_bytes() for source in sources)[:1_000_000])
    return path


@pytest.fixture(scope="session")
def real_shard(corpora: Path, real_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GPT-2 shard of WikiText, or the text's pairs of bytes where `corpora` has none."""
    path = corpora / "wikitext2_valid_gpt2.bin"
    if not path.exists():
        text = bytes(byte & 127 for byte in real_text.read_bytes()[:500_000])
        path = tmp_path_factory.mktemp("shard") / "pairs.bin"
        path.write_bytes(struct.pack("<256i", 20240520, 1, len(text) // 2, *[0] * 253) + text)
    return path
