"""Compiles `csrc` with the machine's C++ compiler, once per user and machine, and loads the result.

The library stands in the user's cache, under a name made of what it was built from (sources, compiler, flags,
architecture) and of its own content: a file whose content does not match its name is never loaded. It is built
in a folder of its own and renamed, so that processes may build at once and be killed at any time. A library is
loaded only from a folder that nobody else can write to; where there is none, each process builds its own in a
temporary folder.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
COMPILERS = ("c++", "g++", "clang++")
# -ffp-contract=off: no fused multiply-adds, which a compiler places as it likes; so the bits are the same from
# every compiler and processor, and a step waits for memory anyway. -fno-math-errno: square roots vectorise.
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-ffp-contract=off", "-shared", "-fPIC")
# By torch's names for processors.
VECTORS = {"AVX2": ("-mavx2",), "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")}
# assumed: a build takes a second or two; this long means that the machine hangs.
TIMEOUT = 120

_logger = logging.getLogger("widthwise")


class BuildError(RuntimeError):
    """Why there is no library; reads as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """A loaded library; `origin` says what it was built with."""

    functions: ctypes.CDLL
    origin: str


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A C++ compiler of this machine."""

    path: str
    version: str

    @property
    def flags(self) -> tuple[str, ...]:
        return (*FLAGS, *architecture_flags())

    def key(self, source: Path) -> str:
        """Return a name for what this compiler makes of `source`."""
        parts = [self.path, self.version, platform.machine(), platform.libc_ver()[0], *self.flags]
        parts += [path.read_text() for path in (source, *sorted(CSRC.glob("*.h")))]
        return f"{source.stem}-{_digest(repr(parts).encode())}"

    def compile(self, source: Path, target: Path) -> None:
        command = [self.path, *self.flags, f"-I{CSRC}", str(source), "-o", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if "error" in line] or [str(error)]
            raise BuildError(f"{self.path} failed: {lines[0].strip()}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{self.path} failed: {error}") from error


def architecture_flags() -> tuple[str, ...]:
    """Return what to compile for: the vectors that torch finds, else the baseline.

    Measured: with 16 lanes a processor's divider does twice the work of 8, 1.6 times the speed in the caches.
    """
    import torch  # here, so that the rest of this file starts in no time

    return VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())


def load(source: Path = CSRC / "cpu.cpp") -> Library:
    """Load the library made of `source`, built first if need be.

    Raises:
        BuildError: if this machine has no C++ compiler that can build it, or no place to put it.
    """
    reasons = []
    for compiler in _compilers():
        try:
            return _load(compiler, source)
        except BuildError as error:
            reasons.append(str(error))
    raise BuildError("; ".join(reasons) or f"no C++ compiler ({', '.join(COMPILERS)}) on PATH")


def cache_folder() -> Path | None:
    """Return the user's cache, made if need be; None where it cannot be made or others can write to it."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "widthwise"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return folder if status.st_uid == os.geteuid() and not status.st_mode & 0o022 else None


def _compilers() -> Iterator[Compiler]:
    paths = {os.path.realpath(found): found for name in COMPILERS if (found := shutil.which(name))}
    for path in paths.values():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = subprocess.run(
                [path, "--version"], check=True, capture_output=True, text=True, timeout=TIMEOUT
            )
            yield Compiler(path=path, version=asked.stdout.partition("\n")[0])


def _load(compiler: Compiler, source: Path) -> Library:
    origin = " ".join((compiler.version, *architecture_flags()))
    folder, key = cache_folder(), compiler.key(source)
    if folder is not None:
        for path in folder.glob(f"{key}-*.so"):
            if path.name == _name(key, path):
                with contextlib.suppress(OSError):
                    return Library(functions=ctypes.CDLL(str(path)), origin=origin)
        with contextlib.suppress(OSError):  # a full, read-only or noexec disk: the temporary folder may do
            return Library(functions=_build(compiler, source, key, folder), origin=origin)
    try:
        with tempfile.TemporaryDirectory(prefix="widthwise-") as private:
            # Loaded, it needs no file.
            return Library(functions=_build(compiler, source, key, Path(private)), origin=origin)
    except OSError as error:
        raise BuildError(f"the library has no place: {error}") from error


def _build(compiler: Compiler, source: Path, key: str, folder: Path) -> ctypes.CDLL:
    _logger.warning("building %s with %s in %s: once, for a few seconds", source.name, compiler.path, folder)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as scratch:
        built = Path(scratch) / "library.so"
        compiler.compile(source, built)
        path = folder / _name(key, built)
        built.replace(path)
    return ctypes.CDLL(str(path))


def _name(key: str, path: Path) -> str:
    try:
        return f"{key}-{_digest(path.read_bytes())}.so"
    except OSError:
        return ""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
