"""Compiles `csrc/adamhc.cu` with NVRTC, which CUDA builds of torch bring along: no nvcc, and no device needed.

The machine code (a *cubin*) is kept in the user's cache, under a name made of what it was compiled from and of
its own content: a damaged file does not match its name and is compiled again. It is written in full and then
renamed, so that processes may compile at once and be killed at any time.
"""

import ctypes
import glob
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from widthwise.kernels.library import CSRC, BuildError, cache_folder

SOURCE = CSRC / "adamhc.cu"
# --fmad=false: each operation rounds once, as on the CPU, so that an infinite threshold gives the bits of "l2".
# Division and square root are the device's own, at most 2 units in the last place off: the exact ones take slow
# paths, and registers.
FLAGS = ("--std=c++17", "--fmad=false", "--prec-div=false", "--prec-sqrt=false")

_logger = logging.getLogger("widthwise")


@dataclass(frozen=True, kw_only=True)
class Nvrtc:
    """NVIDIA's run-time compiler."""

    functions: ctypes.CDLL
    path: str
    version: tuple[int, int]

    def compile(self, architecture: str) -> tuple[bytes, str]:
        """Return the cubin for an architecture such as "sm_90", and what the assembler says of it.

        Raises:
            BuildError: if the compiler fails, or does not know the architecture.
        """
        headers = sorted(CSRC.glob("*.h"))
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            SOURCE.read_bytes(),
            SOURCE.name.encode(),
            len(headers),
            _strings(header.read_text() for header in headers),
            _strings(header.name for header in headers),
        )
        options = [f"--gpu-architecture={architecture}", "--ptxas-options=-v", *FLAGS]
        try:
            self._call("nvrtcCompileProgram", program, len(options), _strings(options))
            return self._output(program, "CUBIN"), self._output(program, "ProgramLog").decode().strip("\0")
        except BuildError as error:
            log = self._output(program, "ProgramLog").decode().strip("\0")
            lines = [line for line in log.splitlines() if "error" in line]
            raise BuildError("; ".join([str(error), *lines[:1]])) from None
        finally:
            self.functions.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, program: ctypes.c_void_p, name: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{name}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{name}", program, content)
        return content.raw

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.functions, name)(*arguments)
        if status:
            describe = self.functions.nvrtcGetErrorString
            describe.restype = ctypes.c_char_p
            raise BuildError(f"NVRTC {self.name} failed: {describe(status).decode()}")

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version))


@cache
def nvrtc(cuda: str | None) -> Nvrtc:
    """Return NVRTC, of the major version of `cuda` ("13.0", say) if one is given: the driver knows its cubins.

    Raises:
        BuildError: if there is none.
    """
    suffix = cuda.partition(".")[0] if cuda else "*"
    for path in _candidates(suffix):
        with suppress(OSError):
            functions = _load(path)
            major, minor = ctypes.c_int(), ctypes.c_int()
            functions.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
            return Nvrtc(functions=functions, path=path, version=(major.value, minor.value))
    package = "nvidia-cuda-nvrtc-cu12" if suffix == "12" else "nvidia-cuda-nvrtc"
    raise BuildError(f"no NVRTC{' ' + suffix if cuda else ''} (pip install {package})")


def cubin(architecture: str, cuda: str | None) -> bytes:
    """Return the kernels' cubin for an architecture such as "sm_90", from the cache if it is there.

    Raises:
        BuildError: if it cannot be compiled.
    """
    found = nvrtc(cuda)

    def compiled() -> bytes:
        _logger.warning(
            "compiling %s with NVRTC %s for %s: once, for a few seconds",
            SOURCE.name,
            found.name,
            architecture,
        )
        return found.compile(architecture)[0]

    return cached(_key(found, architecture), compiled)


def cached(key: str, make: Callable[[], bytes]) -> bytes:
    """Return the content that the user's cache has under `key`, made first if need be."""
    folder = cache_folder()
    for path in [] if folder is None else folder.glob(f"{key}-*.cubin"):
        with suppress(OSError):
            if path.name == _name(key, content := path.read_bytes()):
                return content
    content = make()
    if folder is not None:
        with suppress(OSError):  # a full or read-only disk: the next process compiles again
            _write(folder / _name(key, content), content)
    return content


def _candidates(suffix: str) -> Iterator[str]:
    """Name the places where NVRTC may be: beside torch, where the loader looks, and in CUDA's toolkit."""
    pattern = f"libnvrtc.so.{suffix}"
    packages = importlib.util.find_spec("nvidia")
    for folder in [] if packages is None else packages.submodule_search_locations or []:
        yield from sorted(glob.glob(os.path.join(folder, "*", "lib", pattern)), reverse=True)
    if suffix != "*":
        yield pattern
    if nvcc := shutil.which("nvcc"):
        toolkit = Path(os.path.realpath(nvcc)).parents[1]
        yield from sorted(glob.glob(str(toolkit / "lib64" / pattern)), reverse=True)


def _load(path: str) -> ctypes.CDLL:
    """Load NVRTC, and first its other half, which it looks for by name alone."""
    for beside in glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so.*")):
        ctypes.CDLL(beside)
    return ctypes.CDLL(path)


def _key(found: Nvrtc, architecture: str) -> str:
    parts = [
        found.version,
        architecture,
        FLAGS,
        *(path.read_text() for path in (SOURCE, *sorted(CSRC.glob("*.h")))),
    ]
    return f"{SOURCE.stem}-{architecture}-{_digest(repr(parts).encode())}"


def _write(path: Path, content: bytes) -> None:
    descriptor, scratch = tempfile.mkstemp(prefix=".building-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def _name(key: str, content: bytes) -> str:
    return f"{key}-{_digest(content)}.cubin"


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:24]


def _strings(texts: Any) -> Any:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)
