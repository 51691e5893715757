"""What ends a target run at once: an exception of the user's own, on one worker of two, and a disk that is full."""

import errno
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from platform import node
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.validation import ConfigError, DiskFull, RunError
from widthwise.transfer import Recipe
from widthwise.transfer.failures import HardwareFault, LostPeer, explained, room_for

from ..small_disk import on_a_small_disk

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


def made(out: Path, *steps: int) -> Path:
    for step in steps:
        (out / "checkpoints" / f"step_{step:09d}").mkdir(parents=True)
    out.mkdir(exist_ok=True)
    (out / "plan.json").touch()
    return out


def following_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def hiding(error: Exception, context: Exception) -> Exception:
    """Return an error as ``raise … from None`` leaves it."""
    error.__context__, error.__suppress_context__ = context, True
    return error


UNWRITTEN = CheckpointException("write", {1: (OSError(errno.EIO, "Input/output error"), None)})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("error", "ended", "told"),
    [
        (ConfigError("data: gone"), RunError, "data: gone; go on with --resume"),
        (RuntimeError(GLOO), LostPeer, GLOO),
        (dist.DistBackendError("NCCL error\nstack"), LostPeer, "NCCL error"),
        (
            DiskFull("checkpoint: cannot be written"),
            RunError,
            "the disk of {out} is full; the last good checkpoint is step 12; make room and add --resume",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            RunError,
            "the disk of {out} is full; the last good checkpoint is step 12; make room and add --resume",
        ),
        (
            OSError(errno.ESTALE, "Stale file handle", "/data/a.bin"),
            HardwareFault,
            "OSError: [Errno 116] Stale file handle: '/data/a.bin'",
        ),
        (
            following_from(RunError("checkpoint: cannot be written"), UNWRITTEN),
            HardwareFault,
            "OSError: [Errno 5] Input/output error",
        ),
        (
            hiding(ConfigError("data: x cannot be read"), TimeoutError(errno.ETIMEDOUT, "away")),
            HardwareFault,
            "TimeoutError: [Errno 110] away",
        ),
        (
            torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nSearch for ..."),
            HardwareFault,
            "AcceleratorError: CUDA error: uncorrectable ECC error encountered",
        ),
    ],
)
def test_what_ends_a_worker(tmp_path: Path, error: Exception, ended: type[Exception], told: str) -> None:
    out = made(tmp_path / "run", 8, 12)
    with pytest.raises(ended) as raised, explained(out):
        raise error
    assert str(raised.value) == told.format(out=out)


@pytest.mark.parametrize("said", ["an illegal memory access was encountered", "out of memory"])
def test_what_the_users_code_does_to_a_device_is_no_fault_of_it(tmp_path: Path, said: str) -> None:
    with pytest.raises(RunError, match=f"^AcceleratorError: CUDA error: {said} "), explained(tmp_path):
        raise torch.AcceleratorError(f"CUDA error: {said}\nCompile with ...")


def test_a_fault_that_the_users_code_calls_unrelated_is_none(tmp_path: Path) -> None:
    away = OSError(errno.EIO, "Input/output error")
    with pytest.raises(RunError, match=r"^KeyError: 'x' \("), explained(tmp_path):
        raise hiding(KeyError("x"), away)
    with pytest.raises(RunError, match=r"^ValueError: y \("), explained(tmp_path):
        raise following_from(hiding(ValueError("y"), away), KeyError("x"))


def test_an_exception_is_told_with_the_line_of_the_users_code(tmp_path: Path) -> None:
    theirs = tmp_path / "model.py"
    theirs.write_text("import json\n\n\ndef forward(text):\n    return json.loads(text)\n")
    module: dict[str, Any] = {}
    exec(compile(theirs.read_text(), str(theirs), "exec"), module)
    with pytest.raises(RunError) as raised, explained(tmp_path):
        module["forward"]("x")  # which fails deep in the standard library
    told = "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
    assert str(raised.value) == f"{told} ({theirs}:5); mend it and add --resume"


def test_a_folder_that_a_node_does_not_have_is_told_and_no_file_of_it(tmp_path: Path) -> None:
    with pytest.raises(RunError) as raised, explained(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").read_text()
    rule = (
        f"out: must be a folder that all nodes share, got {tmp_path / 'run'}, which is not there on {node()}"
    )
    assert str(raised.value) == f"{rule}; go on with --resume"


def test_the_disk_that_is_full_is_named_where_it_is_not_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file system that never has room.
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    told = "^the disk of /proc is full; there is no checkpoint yet; make room$"
    with pytest.raises(RunError, match=told), room_for(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_before_there_is_a_plan(tmp_path: Path) -> None:
    with (
        pytest.raises(
            RunError, match=f"^the disk of {tmp_path} is full; there is no checkpoint yet; make room$"
        ),
        room_for(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), room_for(tmp_path):
        (tmp_path / "absent").read_text()


def test_deaths_are_counted_since_the_last_checkpoint(tmp_path: Path) -> None:
    from widthwise.transfer.restarts import Restarts

    out = made(tmp_path / "run", 8)
    restarts, died = (
        Restarts(out),
        {1: RuntimeError("health check failed\nThe worker died."), 0: LostPeer(GLOO)},
    )
    for _ in range(2):
        for _ in range(3):
            restarts.after_exception(None, died)
        made(out, (restarts.step or 0) + 4)
    made(out, 20)
    for _ in range(3):
        restarts.after_exception(None, died)
    told = "workers died 4 times after the checkpoint of step 20 (The worker died.); go on with --resume"
    with pytest.raises(RunError) as raised:
        restarts.after_exception(None, died)
    assert str(raised.value) == told
    with pytest.raises(RunError, match=r"^ValueError: x$"):
        Restarts(out).after_exception(None, {0: LostPeer(GLOO), 1: RunError("ValueError: x")})


RAISING = """
import os
import torch.distributed as dist
from torch import nn


class Raising(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.mix = nn.Linear(width, width)
        self.readout = nn.Linear(width, 256)
        self.batches = 0
        if dist.is_initialized():
            print(os.getpid(), file=open("{folder}/workers", "a"))

    def forward(self, tokens):
        if self.training and dist.is_initialized():
            self.batches += 1
        if self.batches == 9 and dist.get_rank() == 1:
            raise KeyError("absent")
        return self.readout(self.mix(self.embed(tokens)))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return the path of a recipe of 12 steps."""
    path = tmp_path / "recipe.json"
    tuned = Hyperparameters(lr=0.03, weight_decay=1.0, huber_c=2.0)
    horizon = Horizon(batch_tokens=1024, tokens=1024 * 12)
    Recipe(hyperparameters=tuned, proxy=GPTConfig(width=16, context=64), horizon=horizon).save(path)
    return path


@pytest.mark.slow
@pytest.mark.ray
def test_an_exception_on_one_worker_ends_the_run_at_once(
    start: Callable[..., Any], recipe: Path, real_text: Path
) -> None:
    folder = recipe.parent
    (folder / "raising.py").write_text(RAISING.replace("{folder}", str(folder)))
    program = f"import os; os.chdir({str(folder)!r}); from widthwise.transfer.cli import main; main()"
    command = ["launch", recipe, "--width", 64, "--model", "raising:Raising", "--data", real_text]
    command += ["--workers", 2, "--evaluations", 12, "--checkpoint-every", 4, "--out", folder / "target"]
    running = start(*command, script=program)
    status, printed, said = running.finish()
    line = RAISING.splitlines().index('            raise KeyError("absent")') + 1
    told = f"KeyError: 'absent' ({folder}/raising.py:{line}); mend it and add --resume"
    assert (status, printed, said.splitlines()[-1]) == (1, "", f"widthwise: failed: {told}")
    running.require_gone()
    assert len((folder / "workers").read_text().splitlines()) == 2  # and no more were started
    lines = (folder / "target" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    assert not (folder / "target" / ".ray").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    start: Callable[..., Any], recipe: Path, real_text: Path
) -> None:
    out = recipe.parent / "small"
    command = ["launch", recipe, "--width", 64, "--data", real_text, "--evaluations", 4, "--keep", 3]
    script = on_a_small_disk("4m", "checkpoints")
    status, printed, said = start(*command, "--out", out, script=script).finish(seconds=400)
    assert status == 0, said
    full, kept, *_, resumed, in_the_end = printed.splitlines()
    assert (full, resumed) == ("status 1", "status 0")
    # A checkpoint takes 1.7 MB: there is room for two.
    step = max(int(name) for name in re.findall(r"'step_(\d+)'", kept))
    assert step == 6
    told = f"the disk of {out} is full; the last good checkpoint is step {step}; make room and add --resume"
    assert f"widthwise: failed: {told}" in said.splitlines()
    assert f"going on from step {step}" in said.splitlines()
    assert "step_000000012" in in_the_end
