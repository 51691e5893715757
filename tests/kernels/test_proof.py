"""The CUDA kernels' trial at their first use: what passes, what is found, and what comes of it."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from widthwise.kernels import backends, cuda
from widthwise.kernels.cuda import driver, proof

from .emulation import Emulation, build, emulate

SIZES = proof.SIZES
HERE, THERE = torch.device("cpu"), torch.device("cuda", 0)

pytestmark = pytest.mark.compiler


@dataclass(frozen=True)
class OnDevice:
    """All that the choice of a back end looks at of a parameter."""

    device: torch.device = THERE


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulation]:
    """Emulate device 0, whose trial then runs on the CPU, and on smaller tensors: it takes its time there."""
    trial = proof.difference
    monkeypatch.setattr(proof, "SIZES", (3, 70))
    monkeypatch.setattr(proof, "difference", lambda device: trial(HERE))
    cuda.unavailable.cache_clear()
    yield emulate(monkeypatch)
    cuda.unavailable.cache_clear()


def resolve(name: str = "auto") -> str:
    params: Any = [OnDevice(), OnDevice()]
    return backends.resolve(name, params)


def test_the_kernels_pass_once(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(proof, "SIZES", SIZES)
    assert resolve() == "cuda"
    assert {launch.kernel for launch in emulation.launches} == set(driver.KERNELS)
    emulation.launches.clear()
    assert resolve("cuda") == "cuda"
    assert emulation.launches == []
    assert caplog.messages == []


def assert_refused(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Assert that "auto" takes the reference, which is said once, and that "cuda" raises; `reason` is a pattern."""
    caplog.clear()
    backends._announce.cache_clear()
    with caplog.at_level(logging.WARNING, logger="widthwise"):
        assert [resolve(), resolve()] == ["reference", "reference"]
    (message,) = caplog.messages
    assert re.fullmatch(f"AdamHC runs on its slow reference back end: {reason}", message)
    with pytest.raises(
        ValueError, match=f"^backend: 'cuda' must work on this machine, and does not: {reason}$"
    ):
        resolve("cuda")
    active, found = backends.describe("cuda")
    assert active == "reference"
    assert re.fullmatch(reason, found or "")


def differ(what: str, kernel: str = "adamhc_float32_float32") -> str:
    return f"on cpu {what} of {kernel} differ from the reference's by ([0-9.e+-]+|nan), of [0-9.e+-]+"


def test_a_wrong_sign_in_the_source_is_found(emulation: Emulation, caplog: pytest.LogCaptureFixture) -> None:
    right, wrong = (f"return base {sign} k.tau * clip(" for sign in "-+")
    found = []

    def edit(source: str) -> str:
        found.append(source.count(right))
        return source.replace(right, wrong)

    emulation.emulator = build(edit)
    assert sum(found) == 1
    assert_refused(differ("weights"), caplog)


@pytest.mark.parametrize("missing", [*driver.UPDATES[::5], "adamhc_finish", "adamhc_measure", "adamhc_means"])
def test_a_kernel_that_does_nothing_is_found(
    missing: str, emulation: Emulation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def launch(device: torch.device, kernel: str, *rest: Any) -> None:
        if kernel != missing:
            emulation.launch(device, kernel, *rest)

    monkeypatch.setattr(driver, "launch", launch)
    kernel = missing if missing in driver.UPDATES else "adamhc_float32_float32"
    assert_refused(differ("(weights|step)", kernel), caplog)


@pytest.mark.parametrize("function", ["load", "launch"])
def test_what_the_driver_refuses_is_the_reason(
    function: str, emulation: Emulation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError(
            "cuLaunchKernel failed: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA"
        )

    monkeypatch.setattr(driver, function, refuse)
    assert_refused("cuLaunchKernel failed: unspecified launch failure", caplog)


def test_it_is_not_tried_while_a_graph_is_captured(emulation: Emulation) -> None:
    emulation.capturing = True
    with pytest.raises(
        ValueError, match=r"^backend: must have been used on the device before a graph is captured there$"
    ):
        resolve()
    assert emulation.launches == []
    emulation.capturing = False
    assert resolve() == "cuda"
    emulation.capturing = True
    assert resolve() == "cuda"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
def test_it_is_tried_in_any_mode(mode: Any, emulation: Emulation) -> None:
    before = torch.get_rng_state()
    with mode():
        assert resolve() == "cuda"
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_the_device_passes() -> None:
    assert proof.difference(THERE) is None
