"""The CUDA back end without a device: its own kernels and its own Python, on memory that the CPU has too."""

import ctypes
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from widthwise.kernels import library
from widthwise.kernels.cuda import driver


@dataclass(frozen=True)
class Launch:
    """A launch, with its arguments as they were."""

    kernel: str
    blocks: int
    arguments: tuple[bytes, ...]
    emulator: ctypes.CDLL

    def run(self, *, first: int = 0, backwards: bool = False) -> None:
        """Run the blocks from `first` on; `backwards` lets the threads of a block take turns in that order."""
        buffers = [ctypes.create_string_buffer(content, len(content)) for content in self.arguments]
        addresses = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        start, stop = ctypes.c_longlong(first), ctypes.c_longlong(self.blocks)
        self.emulator.emulate(self.kernel.encode(), start, stop, addresses, backwards)


@dataclass
class Emulation:
    """A device that is the CPU. It notes launches, and does not run them while `capturing` a graph."""

    emulator: ctypes.CDLL
    capturing: bool = False
    running: bool = True
    backwards: bool = False
    launches: list[Launch] = field(default_factory=list)
    uploads: int = 0

    def launch(self, device: torch.device, kernel: str, blocks: int, *arguments: driver.Buffer) -> None:
        launch = Launch(kernel, blocks, tuple(argument.raw for argument in arguments), self.emulator)
        self.launches.append(launch)
        if self.running and not self.capturing:
            launch.run(backwards=self.backwards)

    def upload(self, target: Tensor, content: bytes) -> None:
        assert not self.capturing
        self.uploads += 1
        target.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))


def emulate(monkeypatch: pytest.MonkeyPatch, emulator: ctypes.CDLL | None = None) -> Emulation:
    """Put the CPU in the place of the device."""
    emulation = Emulation(emulator or _emulator())
    monkeypatch.setattr(driver, "is_present", lambda: True)
    monkeypatch.setattr(driver, "load", lambda device: {})
    monkeypatch.setattr(driver, "reaches", lambda tensor: tensor.is_cpu)
    monkeypatch.setattr(driver, "is_capturing", lambda: emulation.capturing)
    monkeypatch.setattr(driver, "upload", emulation.upload)
    monkeypatch.setattr(driver, "launch", emulation.launch)
    return emulation


def build(edit: Callable[[str], str] = str) -> ctypes.CDLL:
    """Compile emulator.cpp with the machine's C++ compiler, and the kernels' source as `edit` leaves it."""
    compiler = next(library._compilers(), None)
    assert compiler is not None, "the emulation needs a C++ compiler"
    with tempfile.TemporaryDirectory() as folder:
        for path in (library.CSRC / "adamhc.cu", *library.CSRC.glob("*.h")):
            Path(folder, path.name).write_text(edit(path.read_text()))
        source = shutil.copy(Path(__file__).with_name("emulator.cpp"), folder)
        compiler.compile(Path(source), Path(folder) / "emulator.so")
        return ctypes.CDLL(str(Path(folder) / "emulator.so"))


_emulator = cache(build)
