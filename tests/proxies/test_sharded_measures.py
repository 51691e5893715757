"""Diagnostics and module-wise decay of sharded runs are those of replicated ones, on two workers.

Started as a script, this file is one worker of a process group.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from widthwise.proxies import (
    AWD,
    AdaDecay,
    AlphaDecay,
    GPTConfig,
    Horizon,
    Hyperparameters,
    RunOptions,
    recorder,
)
from widthwise.proxies.runs import RunSpec, base_settings, run

pytestmark = pytest.mark.slow

CONTEXT, STEPS, WORKERS = 16, 8, 2
ALPHA = Hyperparameters(lr=0.02, weight_decay=2.0, huber_c=1.0, threshold="ema", clip_norm=0.5)
TUNED = {
    "alpha": ALPHA,
    "alpha, lagging": ALPHA,
    "awd": Hyperparameters(lr=0.02, weight_decay=2.0, huber_c=1.0, clip_norm=0.5),
    "adadecay": Hyperparameters(lr=0.02, weight_decay=2.0, huber_c=1.0),
    "adadecay, l2": Hyperparameters(lr=0.02, weight_decay=2.0, decay="l2", huber_c=None),
}
METHODS = {
    "alpha": AlphaDecay(interval=3, mean_preserving=True),
    # Looks before steps 0, 3 and 7; what the second saw is used from step 5 on.
    "alpha, lagging": AlphaDecay(interval=4, lag=2, mean_preserving=True),
    "awd": AWD(),
    "adadecay": AdaDecay(),
    "adadecay, l2": AdaDecay(),
}
# Below the matrices' smaller side, and so a power iteration, or above.
EXACT_UP_TO = {"alpha": 60, "alpha, lagging": 60, "awd": 100, "adadecay": 60, "adadecay, l2": 100}
SHARDINGS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "hsdp": {"parallel": "fsdp", "shards": 1},
}
TIMED = ("seconds", "tokens_per_second")


def spec(way: str) -> RunSpec:
    return RunSpec(
        model=GPTConfig(width=64, head_dim=16, depth=2, context=CONTEXT),
        base_width=64,
        horizon=Horizon(batch_tokens=4 * CONTEXT, tokens=STEPS * 4 * CONTEXT),
        hyperparameters=TUNED[way],
        settings=base_settings(TUNED[way]),
        data="python",
        module_decay=METHODS[way],
    )


def told(way: str, options: RunOptions) -> list[dict[str, Any]]:
    """Return the metrics, diagnostics included, without what depends on the machine's speed."""
    history = [asdict(one) for one in run(spec(way), options).history]
    return [{name: value for name, value in one.items() if name not in TIMED} for one in history]


def worker(folder: Path, rank: int) -> None:
    """Be a worker: train in all ways, replicated and sharded."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORKERS)
    options = RunOptions(
        seed=3, evaluations=4, validation_batches=1, diagnostics=True, rank=rank, world_size=WORKERS
    )
    for way in METHODS:
        recorder.EXACT_UP_TO = EXACT_UP_TO[way]
        for name, sharding in SHARDINGS.items():
            found = told(way, replace(options, **sharding))
            (folder / f"{way}.{name}.{rank}.json").write_text(json.dumps(found))
    recorder.EXACT_UP_TO = EXACT_UP_TO["alpha, lagging"]
    stored = replace(options, **SHARDINGS["fsdp"], checkpoint=folder / "checkpoints", keep=1)
    run(spec("alpha, lagging"), stored, lambda metrics: metrics.step == 4)
    (folder / f"resumed.{rank}.json").write_text(json.dumps(told("alpha, lagging", stored)))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder where the workers leave what they were told."""
    made = tmp_path_factory.mktemp("workers")
    command = [sys.executable, __file__, str(made)]
    workers = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(WORKERS)
    ]
    errors = [one.communicate(timeout=200)[1] for one in workers]
    assert [one.returncode for one in workers] == [0] * WORKERS, "\n".join(errors)
    return made


@pytest.mark.parametrize("sharding", ["fsdp", "hsdp"])
@pytest.mark.parametrize("way", METHODS)
def test_sharded_runs_are_measured_and_decay_as_replicated_ones(
    way: str, sharding: str, folder: Path
) -> None:
    replicated, *sharded = [
        json.loads((folder / f"{way}.{name}.json").read_text())
        for name in ("ddp.0", f"{sharding}.0", f"{sharding}.1")
    ]
    assert sharded[0] == sharded[1]
    for one, other in zip(sharded[0], replicated, strict=True):
        assert_close(one, other, "")
    parameters = replicated[-1]["diagnostics"]["parameters"].values()
    assert {one["spectrum"] is None for one in parameters} == {EXACT_UP_TO[way] < 64}


@pytest.mark.parametrize("rank", range(WORKERS))
def test_a_sharded_run_that_was_stopped_while_spectra_were_computed_goes_on(rank: int, folder: Path) -> None:
    straight = json.loads((folder / f"alpha, lagging.fsdp.{rank}.json").read_text())
    assert json.loads((folder / f"resumed.{rank}.json").read_text()) == straight


def assert_close(one: Any, other: Any, where: str) -> None:
    """All numbers agree but for roundings, which some steps have amplified."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for name in other:
            assert_close(one[name], other[name], f"{where}.{name}")
    elif isinstance(other, list):
        # Singular values below a thousandth of the largest are lost in roundings.
        assert one == pytest.approx(other, rel=2e-4, abs=1e-3 * max(other)), where
    elif isinstance(other, float):
        assert one == pytest.approx(other, rel=2e-4), where
    else:
        assert one == other, where


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(Path(sys.argv[1]), int(sys.argv[2]))
