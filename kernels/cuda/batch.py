"""The tensors of one launch: their tables on the device, packed as `csrc/adamhc.cu` reads them."""

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from widthwise.kernels import records
from widthwise.kernels.cuda import driver
from widthwise.kernels.records import Rule

# Of csrc/adamhc.cu.
CAPACITY = 2048
CHUNK = 1 << 14

# The structs of csrc/adamhc.cu.
POINTERS = struct.Struct("=2Q")
GROUP_SIZE = records.OPTIONS.size + POINTERS.size
BATCH = struct.Struct("=8Q")


def group_row(rule: Rule, group: dict[str, Any], device: torch.device) -> bytes:
    """Pack a group's options; a learning rate that is a tensor on `device` is read there, at each step."""
    lr, pointers = group["lr"], [0, 0]
    if is_on_device(lr, device):
        pointers[lr.dtype is torch.float64] = lr.data_ptr()
        lr = 0.0
    return rule.pack_options(group, lr) + POINTERS.pack(*pointers)


def is_on_device(lr: object, device: torch.device) -> bool:
    """Tell whether a learning rate is a tensor that kernels can read."""
    return isinstance(lr, Tensor) and lr.device == device and lr.dtype in (torch.float32, torch.float64)


class Batch:
    """Up to `CAPACITY` tensors on one device, with `sizes` elements each, whose update is `kernel`.

    What it points to must stay alive. The addresses of its own tables never change, so that a captured graph may
    keep them.
    """

    def __init__(
        self, device: torch.device, sizes: list[int], packed: bytes, groups: int, kernel: str = ""
    ) -> None:
        assert len(sizes) <= CAPACITY
        self.device, self.count, self.kernel = device, len(sizes), kernel
        # Tables are made on the host, whatever torch's default device is.
        counts = (torch.tensor(sizes, dtype=torch.int64, device="cpu") + CHUNK - 1) // CHUNK
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        owners = torch.arange(len(sizes), device="cpu").repeat_interleave(counts)
        self._chunks = len(owners)
        chunks = torch.stack([owners, torch.arange(self._chunks, device="cpu") - first[owners]], dim=1).int()
        self._sums = torch.empty(self._chunks, dtype=torch.float64, device=device)
        self._values = b""
        self._values_there = self._table(bytes(groups * GROUP_SIZE + 8 * self.count))
        self._tables = [self._table(content) for content in (packed, _bytes(chunks), _bytes(first))]
        self._scales = self._values_there.data_ptr() + groups * GROUP_SIZE
        self._arguments = ctypes.create_string_buffer(BATCH.size)
        self._gradients = ctypes.create_string_buffer(8 * CAPACITY)

    def is_current(self, values: bytes) -> bool:
        """Tell whether the device has these values."""
        return values == self._values

    def send(self, values: bytes) -> None:
        """Bring the groups' rows and the tensors' decay scales to the device, if they are new."""
        if not self.is_current(values):
            driver.upload(self._values_there, values)
            self._values = values

    def step(self, grads: Sequence[Tensor], factor: Tensor | None, found_inf: Tensor | None) -> None:
        """Do one step in place, from gradients that are contiguous, and 0-dim float32 tensors on the device."""
        struct.pack_into(f"={self.count}Q", self._gradients, 0, *map(Tensor.data_ptr, grads))
        self._point(factor, found_inf)
        driver.launch(self.device, self.kernel, self._chunks, self._arguments, self._gradients)
        driver.launch(self.device, "adamhc_finish", self.count, self._arguments)

    def measure(self) -> None:
        """Put the mean of the present weights, where it is finite, into the records' states."""
        self._point(None, None)
        driver.launch(self.device, "adamhc_measure", self._chunks, self._arguments)
        driver.launch(self.device, "adamhc_means", self.count, self._arguments)

    def _point(self, factor: Tensor | None, found_inf: Tensor | None) -> None:
        records, chunks, first = map(Tensor.data_ptr, self._tables)
        there = self._values_there.data_ptr()
        optional = [0 if tensor is None else tensor.data_ptr() for tensor in (factor, found_inf)]
        tables = (records, there, self._scales, chunks, first, self._sums.data_ptr())
        BATCH.pack_into(self._arguments, 0, *tables, *optional)

    def _table(self, content: bytes) -> Tensor:
        table = torch.empty(len(content), dtype=torch.uint8, device=self.device)
        driver.upload(table, content)
        return table


def _bytes(table: Tensor) -> bytes:
    return table.contiguous().numpy().tobytes()
