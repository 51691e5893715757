"""Run the contract of AdamHC on each back end."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from widthwise.kernels import backends

from .emulation import Emulation, emulate

COMPILED = [pytest.param(name, marks=pytest.mark.compiler) for name in ("cpu", "cuda")]


@pytest.fixture(params=["reference", *COMPILED])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the back end that "auto" stands for in this test; tests use each in turn.

    The CUDA kernels run on a CPU here, emulated; test_cuda.py runs them on a device too.
    """
    resolve, chosen = backends.resolve, request.param
    if chosen == "cuda":
        emulate(monkeypatch)

    def resolved(name: str, params: Iterable[Tensor]) -> str:
        if (name, chosen) == ("auto", "cuda"):
            return "cuda"
        return resolve(chosen if name == "auto" else name, params)

    monkeypatch.setattr(backends, "resolve", resolved)
    return str(chosen)


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    monkeypatch.setattr(backends, "resolve", lambda name, params: name)
    return emulate(monkeypatch)


@pytest.fixture
def lone_process(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
