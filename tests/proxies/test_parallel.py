"""Runs on several workers, replicated and sharded, learn what one learns, and go on with other numbers of them.

Started as a script, this file is one worker of a process group.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters, RunOptions
from widthwise.proxies.outcome import Metrics, TrainResult
from widthwise.proxies.runs import RunSpec, base_settings, run
from widthwise.proxies.validation import ConfigError, RunError

CONTEXT, STEPS, SEQUENCES = 16, 12, 8
TUNED = Hyperparameters(lr=0.02, weight_decay=0.5, huber_c=1.0, threshold="ema", clip_norm=0.5)
SPEC = RunSpec(
    model=GPTConfig(width=24, head_dim=8, depth=2, context=CONTEXT),
    base_width=24,
    horizon=Horizon(batch_tokens=SEQUENCES * CONTEXT, tokens=STEPS * SEQUENCES * CONTEXT),
    hyperparameters=TUNED,
    settings=base_settings(TUNED),
    data="python",
)
# With 3 validation batches, the last round leaves workers without one.
OPTIONS = RunOptions(seed=3, evaluations=4, validation_batches=3)
WAYS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"fsdp": {"parallel": "fsdp"}, "accumulated": {"accumulate": 4}},
    2: {"ddp": {}, "fsdp": {"parallel": "fsdp"}},
    4: {
        "ddp": {},
        "ddp, accumulated": {"accumulate": 2},
        "fsdp": {"parallel": "fsdp"},
        "fsdp, accumulated, recomputed": {"parallel": "fsdp", "accumulate": 2, "recompute": True},
        "hsdp": {"parallel": "fsdp", "shards": 2},
    },
    # Of the 8 sequences two take 3 and one 2; with 3 passes, one of them is without any.
    3: {"ddp": {}, "fsdp, accumulated": {"parallel": "fsdp", "accumulate": 3}},
}
# Of losses and gradient norms: sums in another order differ by roundings.
TOLERANCE = 2e-5
SAVED = {"parallel": "fsdp", "keep": 2, "checkpoint_every": 2}


def learnt(result: TrainResult) -> list[dict[str, Any]]:
    """Return the metrics without what depends on the machine's speed, or is not measured."""
    timed = ("seconds", "tokens_per_second", "diagnostics")
    return [
        {name: value for name, value in asdict(metrics).items() if name not in timed}
        for metrics in result.history
    ]


def assert_alike(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = TOLERANCE
) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=tolerance, rel=tolerance)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> list[dict[str, Any]]:
    """Return what one worker learns, at a time."""
    torch.set_num_threads(1)
    return learnt(run(SPEC, OPTIONS))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder where the workers leave their histories and checkpoints."""
    folder = tmp_path_factory.mktemp("workers")
    for count in (2, 4, 3):  # one after the other: the second goes on with the first's checkpoint
        command = [sys.executable, __file__, str(count), str(folder)]
        workers = [
            subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        errors = [worker.communicate(timeout=200)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * count, "\n".join(errors)
    return folder


def worker(count: int, folder: Path, rank: int) -> None:
    """Be one of `count` workers: train in all ways, and either begin the saved run or go on with it."""
    dist.init_process_group("gloo", f"file://{folder}/meeting.{count}", rank=rank, world_size=count)
    options = replace(OPTIONS, rank=rank, world_size=count)
    found = {name: learnt(run(SPEC, replace(options, **way))) for name, way in WAYS[count].items()}
    saving = replace(options, checkpoint=folder / "checkpoints", **SAVED)
    found["saved"] = learnt(run(SPEC, saving, lambda metrics: count == 2 and metrics.step >= 6))
    if count == 2 and rank == 0:
        shutil.copytree(folder / "checkpoints", folder / "of two workers")
    (folder / f"{count}.{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.parametrize(("count", "way"), [(count, way) for count, ways in WAYS.items() for way in ways])
def test_workers_learn_what_one_learns(
    alone: list[dict[str, Any]], saved: Path, count: int, way: str
) -> None:
    if count == 1:
        assert_alike(learnt(run(SPEC, replace(OPTIONS, **WAYS[1][way]))), alone)
    for rank in range(count) if count > 1 else ():
        assert_alike(json.loads((saved / f"{count}.{rank}.json").read_text())[way], alone)


def test_a_run_of_two_workers_goes_on_with_four_and_with_one(
    alone: list[dict[str, Any]], saved: Path
) -> None:
    for rank in range(4):
        assert_alike(json.loads((saved / f"4.{rank}.json").read_text())["saved"], alone)
    kept = sorted(path.name for path in (saved / "checkpoints").iterdir())
    assert kept == ["step_000000010", "step_000000012"]
    kept = sorted(path.name for path in (saved / "of two workers").iterdir())
    assert kept == ["step_000000004", "step_000000006"]
    # Neither sharded nor with AdamHC's values from the file: the peaks are the caller's.
    options = replace(OPTIONS, checkpoint=saved / "of two workers", keep=1)
    assert_alike(learnt(run(SPEC, options)), alone)
    assert [path.name for path in (saved / "of two workers").iterdir()] == ["step_000000012"]


# Checkpoints of a single worker, which are the same folders


def test_a_damaged_or_unfinished_checkpoint_is_passed_over(
    alone: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    options = replace(OPTIONS, checkpoint=folder, keep=3, checkpoint_every=2)
    run(SPEC, options, lambda metrics: metrics.step >= 6)
    names = ["step_000000003", "step_000000004", "step_000000006"]
    assert sorted(path.name for path in folder.iterdir()) == names
    (folder / names[2]).rename(folder / ".step_000000006.unfinished")
    (weights,) = (folder / names[1]).glob("*.distcp")
    weights.write_bytes(weights.read_bytes()[:-1])
    seen: list[Metrics] = []
    assert learnt(run(SPEC, options, seen.append)) == alone
    assert [metrics.step for metrics in seen] == [6, 9, 12]  # on from step 3
    said = [record.getMessage() for record in caplog.records if record.name == "widthwise"]
    assert said == [
        f"checkpoint: {folder / names[1]} cannot be read ({weights.name} is too short); "
        "going on from the one before it"
    ]
    assert not list(folder.glob(".*"))


def test_a_damaged_checkpoint_takes_the_place_of_no_good_one(tmp_path: Path) -> None:
    options = replace(OPTIONS, checkpoint=tmp_path, keep=2, checkpoint_every=2)
    run(SPEC, options, lambda metrics: metrics.step >= 6)
    names = ["step_000000004", "step_000000006"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    (tmp_path / names[1] / ".metadata").unlink()
    # On from step 4, and stopped before the damaged one's step is done again.
    run(SPEC, replace(options, keep=1, evaluations=12), lambda metrics: metrics.step >= 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000005", "step_000000006"]


def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew(tmp_path: Path) -> None:
    options = replace(OPTIONS, checkpoint=tmp_path, keep=2)
    run(SPEC, options, lambda _: True)
    (path,) = tmp_path.iterdir()
    (path / ".metadata").write_bytes(b"damaged")
    head = re.escape(f"checkpoint: none in {tmp_path} can be read (")
    with pytest.raises(ConfigError, match=rf"^{head}.+\); remove them to start anew$"):
        run(SPEC, options)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [(1_000, "File too large"), (20_000, "[^\\n]*unexpected pos[^\\n]*")],
    ids=["in the run", "in the background"],
)
def test_a_disk_that_takes_no_more_leaves_the_last_good_checkpoint(
    alone: list[dict[str, Any]], tmp_path: Path, limit: int, reason: str
) -> None:
    options = replace(OPTIONS, checkpoint=tmp_path, keep=2)
    run(SPEC, options, lambda _: True)
    last = re.escape(f"the last good one is {tmp_path}/step_000000003")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(RunError, match=rf"^checkpoint: cannot be written \({reason}\); {last}$"):
            run(SPEC, options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert learnt(run(SPEC, options)) == alone


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    options = replace(OPTIONS, checkpoint=tmp_path, keep=1, evaluations=1)
    short = SPEC.model_copy(update={"horizon": Horizon(batch_tokens=128, tokens=128)})
    run(short, options)
    (path,) = tmp_path.iterdir()
    wider = short.model_copy(update={"model": SPEC.model.model_copy(update={"width": 48})})
    for spec, changed, complaint in (
        (short, replace(options, seed=4), "was made with seed = 3, not 4"),
        (wider, options, "was made with another model"),
    ):
        where = path / "progress.pt" if "seed" in complaint else path
        with pytest.raises(
            ConfigError, match=f"^{re.escape(f'checkpoint: {where} {complaint}')}; use another folder$"
        ):
            run(spec, changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"accumulate": 9},
            "accumulate: must be <= the 8 sequences of a worker's share of a batch, got 9",
        ),
        ({"parallel": "fsdp", "shards": 2}, "shards: must divide the 1 workers, got 2"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        run(SPEC, replace(OPTIONS, **options))


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
