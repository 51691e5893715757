"""The CUDA back end without a device: its own kernels and its own Python, on memory that the CPU has too."""

import ctypes
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from widthwise.kernels import library
from widthwise.kernels.cuda import driver


@cache
def emulator() -> ctypes.CDLL:
    """Compile emulator.cpp with the machine's C++ compiler."""
    compiler = next(library._compilers())
    with tempfile.TemporaryDirectory() as folder:
        compiler.compile(Path(__file__).with_name("emulator.cpp"), Path(folder) / "emulator.so")
        return ctypes.CDLL(str(Path(folder) / "emulator.so"))


def emulate(monkeypatch: pytest.MonkeyPatch, *, backwards: bool = False) -> list[str]:
    """Let the driver's functions reach memory on CPU; return the list of kernels that are launched from now on."""
    launched: list[str] = []

    def launch(device: torch.device, kernel: str, blocks: int, *arguments: driver.Buffer) -> None:
        launched.append(kernel)
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        emulator().emulate(kernel.encode(), ctypes.c_longlong(blocks), addresses, backwards)

    def upload(target: Tensor, content: bytes) -> None:
        target.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    monkeypatch.setattr(driver, "reaches", lambda tensor: tensor.is_cpu)
    monkeypatch.setattr(driver, "is_capturing", lambda: False)
    monkeypatch.setattr(driver, "upload", upload)
    monkeypatch.setattr(driver, "launch", launch)
    return launched
