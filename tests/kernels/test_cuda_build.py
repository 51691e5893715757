"""How the CUDA kernels are compiled and kept, which needs no device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from widthwise import kernels
from widthwise.kernels import backends, cuda
from widthwise.kernels.cuda import compiler
from widthwise.kernels.cuda.__main__ import main
from widthwise.kernels.library import BuildError

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# Without importing torch, which takes seconds.
COMPILE = """
import hashlib, sys, types
for name, folder in (("widthwise.kernels", sys.argv[1]), ("widthwise.kernels.cuda", sys.argv[1] + "/cuda")):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [folder]
from widthwise.kernels.cuda import compiler
assert "torch" not in sys.modules
print(hashlib.sha256(compiler.cubin("sm_90", sys.argv[2] or None)).hexdigest())
"""
KERNELS = {"adamhc_update", "adamhc_finish", "adamhc_measure", "adamhc_means"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that the cache is in, an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "widthwise"


def test_what_the_compiler_makes_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing spilled, and the four reads and three writes 128 bits wide: per decay, two of each are unrolled."""
    monkeypatch.setattr(sys, "argv", ["", *ARCHITECTURES])
    assert main() == 0
    found = json.loads(capsys.readouterr().out)["architectures"]
    assert set(found) == set(ARCHITECTURES)
    for architecture in found.values():
        assert architecture["bytes"] > 10_000
        assert set(architecture["kernels"]) == KERNELS
        for kernel in architecture["kernels"].values():
            assert 0 < kernel["registers"] <= 64  # so that four blocks of 256 threads are on a multiprocessor
            for name in ("stack_bytes", "spill_store_bytes", "spill_load_bytes", "local_accesses"):
                assert kernel[name] == 0
        update = architecture["kernels"]["adamhc_update"]
        assert (update["global_loads_128"], update["global_stores_128"]) == (4 * 4 * 2, 4 * 3 * 2)


def test_an_architecture_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "sm_1"])
    assert main() == 2
    version = compiler.nvrtc(torch.version.cuda).name
    assert capsys.readouterr().err == (
        f"NVRTC {version} failed: NVRTC_ERROR_INVALID_OPTION; "
        "nvrtc: error: invalid value for --gpu-architecture (-arch)\n"
    )


def test_a_mistake_in_the_source_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void kernel() { return nothing; }")
    monkeypatch.setattr(compiler, "SOURCE", source)
    with pytest.raises(
        BuildError, match=r'COMPILATION; broken.cu\(1\): error: identifier "nothing" is undefined$'
    ):
        compiler.nvrtc(torch.version.cuda).compile("sm_90")


def test_the_cubin_is_kept(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = compiler.cubin("sm_90", torch.version.cuda)
    name = compiler.nvrtc(torch.version.cuda).name
    assert caplog.messages == [f"compiling adamhc.cu with NVRTC {name} for sm_90: once, for a second or two"]
    (path,) = cache.iterdir()
    assert path.read_bytes() == first
    assert compiler.cached(path.stem.rpartition("-")[0], _not_again) == first


def test_another_source_or_architecture_is_another_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiler.nvrtc(torch.version.cuda)
    names = {compiler._key(found, architecture) for architecture in ARCHITECTURES}
    monkeypatch.setattr(compiler, "FLAGS", ("--std=c++17",))
    names.add(compiler._key(found, "sm_90"))
    assert len(names) == 4


@pytest.mark.parametrize("damage", [b"", b"another cubin"])
def test_a_damaged_cubin_is_compiled_again(damage: bytes, cache: Path) -> None:
    assert compiler.cached("key", lambda: b"cubin") == b"cubin"
    (path,) = cache.iterdir()
    path.write_bytes(damage)
    assert compiler.cached("key", lambda: b"cubin") == b"cubin"
    assert compiler.cached("key", _not_again) == b"cubin"
    assert [file.read_bytes() for file in cache.iterdir()] == [b"cubin"]


def test_two_at_once(cache: Path) -> None:
    """As Ray's workers are: each gets the whole cubin, the same one, and one file is left."""
    arguments = [str(Path(kernels.__file__).parent), torch.version.cuda or ""]
    processes = [
        subprocess.Popen([sys.executable, "-c", COMPILE, *arguments], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(answers) == 1
    (path,) = cache.iterdir()
    assert path.read_bytes() == compiler.cubin("sm_90", torch.version.cuda)


def test_a_failed_compilation_leaves_nothing(cache: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        compiler.cached("key", lambda: bytes(1 // 0))
    assert list(cache.iterdir()) == []


def test_without_a_cache(cache: Path) -> None:
    cache.parent.chmod(0o700)
    cache.mkdir()
    cache.chmod(0o777)  # others could put a cubin there
    assert compiler.cached("key", lambda: b"cubin") == b"cubin"
    assert list(cache.iterdir()) == []


def test_no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_candidates", lambda suffix: iter(()))
    with pytest.raises(BuildError, match=r"^no NVRTC 12 \(pip install nvidia-cuda-nvrtc-cu12\)$"):
        compiler.nvrtc("12.8")
    with pytest.raises(BuildError, match=r"^no NVRTC 13 \(pip install nvidia-cuda-nvrtc\)$"):
        compiler.nvrtc("13.1")


def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cuda.unavailable.cache_clear()
    assert backends.describe("cuda") == ("reference", "torch has no CUDA device")
    cuda.unavailable.cache_clear()


def _not_again() -> bytes:
    raise AssertionError("compiled again")
