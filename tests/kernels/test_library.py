"""How the library is built and kept: in turn, at once, killed, damaged, and where it cannot be."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from widthwise.kernels import AdamHC, backends, cpu, library

NO_COMPILER = "no C++ compiler (c++, g++, clang++) on PATH"

# A process that loads a library, without importing torch, which takes seconds.
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("library", sys.argv[1])
module = sys.modules["library"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.architecture_flags = lambda: ()
print(module.load(module.Path(sys.argv[2])).functions.answer())
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return the source of a library that compiles in no time."""
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }')
    return path


def start(source: Path, **changed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, library.__file__, str(source)],
        env={**os.environ, **changed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(source: Path) -> tuple[str, str]:
    return start(source).communicate(timeout=120)


def built(cache: Path) -> list[Path]:
    return sorted((cache / "widthwise").glob("*.so"))


def forget() -> None:
    for function in (cpu.library_or_reason, cpu._function, backends._announce):
        function.cache_clear()


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def cache(nothing_loaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the cache of this process and its children, which have loaded nothing yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def fake_compiler(folder: Path, name: str, script: str) -> None:
    """Make an executable that knows its version and runs `script` for anything else."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake && exit\n{script}\n')
    (folder / name).chmod(0o755)


def parameter() -> Tensor:
    return torch.ones(3, requires_grad=True)


@pytest.mark.compiler
def test_it_is_built_once_with_a_message(cache: Path, source: Path) -> None:
    output, said = run(source)
    assert output == "42\n"
    assert said.startswith("building answer.cpp with ")
    assert said.endswith(f" in {cache}/widthwise: once, for a few seconds\n")
    files = {path: path.stat().st_ino for path in (cache / "widthwise").iterdir()}
    assert list(files) == built(cache)
    assert run(source) == ("42\n", "")
    assert {path: path.stat().st_ino for path in (cache / "widthwise").iterdir()} == files


@pytest.mark.compiler
def test_eight_processes_at_once(cache: Path, source: Path) -> None:
    processes = [start(source) for _ in range(8)]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["42\n"] * 8
    assert list((cache / "widthwise").iterdir()) == built(cache)


@pytest.mark.compiler
@pytest.mark.parametrize("damage", [b"", b"\x7fELF", None])
def test_a_damaged_library_is_built_again(cache: Path, source: Path, damage: bytes | None) -> None:
    library.load(source)
    (path,) = built(cache)
    sound = path.read_bytes()
    path.unlink()  # this process has it mapped
    path.write_bytes(sound[:-100] if damage is None else damage)
    library.load(source)
    assert library._name(path.name.rpartition("-")[0], path) == path.name


@pytest.mark.compiler
def test_another_source_is_another_library(cache: Path, source: Path) -> None:
    for answer in (41, 42):
        source.write_text(f'extern "C" int answer() {{ return {answer}; }}')
        assert library.load(source).functions.answer() == answer
    assert len(built(cache)) == 2


@pytest.mark.compiler
def test_killed_while_building(cache: Path, source: Path, tmp_path: Path) -> None:
    """What is left is in nobody's way."""
    fake_compiler(tmp_path / "bin", "c++", f"touch {tmp_path}/begun; exec sleep 5")
    process = start(source, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    assert len(list((cache / "widthwise").iterdir())) == 1
    assert built(cache) == []
    assert run(source)[0] == "42\n"
    assert len(built(cache)) == 1


@pytest.mark.usefixtures("cache")
def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "")
    assert [AdamHC([parameter()]).backend for _ in range(2)] == ["reference", "reference"]
    said = f"AdamHC runs on its slow reference back end: {NO_COMPILER}"
    assert caplog.record_tuples == [("widthwise", logging.WARNING, said)]
    assert backends.describe() == ("reference", NO_COMPILER)
    with pytest.raises(
        ValueError, match=r"^backend: 'cpu' must work on this machine, and does not: no C\+\+"
    ):
        AdamHC([parameter()], backend="cpu")


@pytest.mark.compiler
def test_without_the_library_a_pickle_goes_on_with_the_reference(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    optimizer = AdamHC([parameter()])
    assert optimizer.backend == "cpu"
    state = optimizer.__getstate__()
    request.getfixturevalue("cache")
    monkeypatch.setenv("PATH", "")
    other = AdamHC.__new__(AdamHC)
    other.__setstate__(state)
    assert other.backend == "reference"


@pytest.mark.usefixtures("cache")
def test_compilers_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c++", "g++"):
        fake_compiler(tmp_path / "bin", name, f"echo 'error: {name}' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert AdamHC([parameter()]).backend == "reference"
    reason = "; ".join(f"{tmp_path}/bin/{name} failed: error: {name}" for name in ("c++", "g++"))
    assert backends.describe() == ("reference", reason)


@pytest.mark.compiler
def test_the_second_compiler_is_tried(
    cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path / "bin", "c++", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert library.load(source).functions.answer() == 42
    assert len(built(cache)) == 1


@pytest.mark.compiler
@pytest.mark.parametrize("home", ["/dev/null", "/proc"])
def test_no_place_for_a_cache(
    home: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process then builds in a temporary folder of its own, and leaves nothing there."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert library.cache_folder() is None
    assert library.load(source).functions.answer() == 42
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.compiler
def test_no_place_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    with pytest.raises(library.BuildError, match=r"the library has no place: .*Not a directory"):
        library.load()


@pytest.mark.compiler
def test_a_folder_that_others_can_write_to_is_not_used(cache: Path, source: Path) -> None:
    assert library.cache_folder() == cache / "widthwise"
    assert (cache / "widthwise").stat().st_mode & 0o777 == 0o700
    (cache / "widthwise").chmod(0o770)
    assert library.cache_folder() is None
    library.load(source)
    assert built(cache) == []


def test_a_relative_cache_is_not_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert library.cache_folder() == tmp_path / ".cache" / "widthwise"


@pytest.mark.compiler
@pytest.mark.usefixtures("nothing_loaded")  # but with the user's cache: three builds take long
def test_every_processor_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline is what an older processor gets, and AVX2 what one without AVX-512 does."""
    narrowest_first = [(), *library.VECTORS.values()]
    # A processor stops at vectors that are wider than its own.
    known = narrowest_first[: narrowest_first.index(library.architecture_flags()) + 1]
    results = []
    for flags in known:
        monkeypatch.setattr(library, "architecture_flags", lambda flags=flags: flags)
        forget()
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(n, generator=generator).requires_grad_() for n in (5, 1000, 40_000)]
        optimizer = AdamHC(params, lr=0.1, decay="huber-prox", corrected=True, backend="cpu")
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        results.append([*params, *(optimizer.state[param]["abs_mean"] for param in params)])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.compiler
def test_describe() -> None:
    active, reason = backends.describe()
    assert active.startswith("cpu (built with ")
    assert reason is None
