"""How the CUDA kernels are compiled and kept, which needs no device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from widthwise import kernels
from widthwise.kernels import backends, cuda
from widthwise.kernels.cuda import compiler, driver
from widthwise.kernels.cuda.__main__ import main
from widthwise.kernels.library import BuildError

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# Without importing torch, which takes seconds.
COMPILE = """
import hashlib, pathlib, sys, types
for name, folder in (("widthwise.kernels", sys.argv[1]), ("widthwise.kernels.cuda", sys.argv[1] + "/cuda")):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [folder]
from widthwise.kernels.cuda import compiler
assert "torch" not in sys.modules
compiler.SOURCE = pathlib.Path(sys.argv[3])
print(hashlib.sha256(compiler.cubin("sm_90", sys.argv[2] or None)).hexdigest())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that the cache is in, an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "widthwise"


# By what weights are kept in: floats that are read and written, and what is narrow; each is two accesses or one.
WEIGHTS = {"float32": ((2, 1), (0, 0)), "master": ((1, 1), (1, 1)), "bfloat16": ((0, 0), (2, 1))}


def expected_accesses(kernel: str) -> tuple[int, int]:
    """Return how many reads and writes of 128 bits a thread's turn of eight elements has."""
    rule, weights, moments = kernel.split("_")
    count, each = 2 if rule == "adamhc" else 1, 2 if moments == "float32" else 1
    wide, narrow = WEIGHTS[weights]
    reads, writes = (2 * wide[i] + narrow[i] + count * each for i in (0, 1))
    return reads, writes


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have something small compiled, which takes less time than the kernels."""
    source = tmp_path / "small.cu"
    source.write_text('extern "C" __global__ void kernel(float* x) { *x = 1; }')
    monkeypatch.setattr(compiler, "SOURCE", source)
    return source


def test_what_the_compiler_makes_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing spilled, and every read and write of the main loop 128 bits wide."""
    monkeypatch.setattr(sys, "argv", ["", *ARCHITECTURES])
    assert main() == 0
    found = json.loads(capsys.readouterr().out)["architectures"]
    assert set(found) == set(ARCHITECTURES)
    for architecture in found.values():
        assert architecture["bytes"] > 10_000
        assert set(architecture["kernels"]) == set(driver.KERNELS)
        for name, kernel in architecture["kernels"].items():
            # So that four or three blocks of 256 threads are on a multiprocessor.
            assert 0 < kernel["registers"] <= (80 if name.startswith("sgdc") else 64)
            for what in ("stack_bytes", "spill_store_bytes", "spill_load_bytes", "local_accesses"):
                assert kernel[what] == 0
        for name in driver.UPDATES:
            update = architecture["kernels"][name]
            assert (update["global_loads_128"], update["global_stores_128"]) == expected_accesses(name)


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


@pytest.mark.usefixtures("small_source")
def test_the_cubin_is_kept(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = compiler.cubin("sm_90", torch.version.cuda)
    name = compiler.nvrtc(torch.version.cuda).name
    assert caplog.messages == [f"compiling small.cu with NVRTC {name} for sm_90: once, for a few seconds"]
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


def test_two_at_once(cache: Path, small_source: Path) -> None:
    """As Ray's workers are: each gets the whole cubin, the same one, and one file is left."""
    arguments = [str(Path(kernels.__file__).parent), torch.version.cuda or "", str(small_source)]
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
