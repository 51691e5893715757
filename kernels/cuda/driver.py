"""The device's side: loads the kernels, launches them on torch's current stream, and copies tables to the device.

Everything else in `widthwise.kernels.cuda` reaches the device through these functions. None but `load` waits for
the device.
"""

import ctypes
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from widthwise.kernels.cuda import compiler

THREADS = 256  # of csrc/adamhc.cu
# By rule, what weights are kept in, and what moments are kept in.
UPDATES = tuple(
    map("_".join, product(("adamhc", "sgdc"), ("float32", "master", "bfloat16"), ("float32", "bfloat16")))
)
KERNELS = (*UPDATES, "adamhc_finish", "adamhc_measure", "adamhc_means")

Buffer = ctypes.Array[ctypes.c_char]


def reaches(tensor: Tensor) -> bool:
    """Tell whether kernels can use the tensor's memory."""
    return tensor.is_cuda


def is_present() -> bool:
    """Tell whether torch has a CUDA device."""
    return torch.cuda.is_available() and torch.version.cuda is not None


def origin(device: torch.device) -> str:
    """Say what the kernels are compiled with, and for."""
    return f"NVRTC {compiler.nvrtc(torch.version.cuda).name} for {_architecture(device)}"


def is_capturing() -> bool:
    """Tell whether torch's current stream is being captured in a graph."""
    return torch.cuda.is_current_stream_capturing()


def upload(target: Tensor, content: bytes) -> None:
    """Copy bytes to a tensor on the device, in the stream's order."""
    # Pinned memory is torch's, which does not reuse it before the copy is done.
    host = torch.frombuffer(bytearray(content), dtype=torch.uint8).pin_memory()
    target.copy_(host, non_blocking=True)


def launch(device: torch.device, kernel: str, blocks: int, *arguments: Buffer) -> None:
    """Launch a kernel on the device's current stream; arguments are copied before this returns."""
    addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        function = load(device)[kernel]
        _call("cuLaunchKernel", function, blocks, 1, 1, THREADS, 1, 1, 0, stream, addresses, None)


@cache
def load(device: torch.device) -> dict[str, ctypes.c_void_p]:
    """Return the kernels on a device by name, compiled and loaded once.

    Raises:
        BuildError: if they cannot be compiled.
        OSError: if there is no driver library.
        RuntimeError: if the driver refuses them.
    """
    code = compiler.cubin(_architecture(device), torch.version.cuda)
    functions = {name: ctypes.c_void_p() for name in KERNELS}
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)  # makes the device's context, where there is none
        module = ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(module), code)
        for name, function in functions.items():
            _call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    return functions


def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _call(name: str, *arguments: Any) -> None:
    driver = _driver()
    status = getattr(driver, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name} failed: {(text.value or b'?').decode()}")


@cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    driver.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]
    return driver
