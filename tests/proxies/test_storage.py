"""Runs that keep their checkpoints on an S3 server: half-written ones do not count, and resumption is bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters, RunOptions
from widthwise.proxies.outcome import TrainResult
from widthwise.proxies.runs import RunSpec, base_settings, run
from widthwise.proxies.storage import RemotePath, place
from widthwise.proxies.validation import ConfigError, RunError

CONTEXT, STEPS = 16, 12
TUNED = Hyperparameters(lr=0.02, weight_decay=0.5, huber_c=1.0, threshold="ema", clip_norm=0.5)
SPEC = RunSpec(
    model=GPTConfig(width=24, head_dim=8, depth=1, context=CONTEXT),
    base_width=24,
    horizon=Horizon(batch_tokens=4 * CONTEXT, tokens=STEPS * 4 * CONTEXT),
    hyperparameters=TUNED,
    settings=base_settings(TUNED),
    data="python",
)
OPTIONS = RunOptions(seed=3, evaluations=4, validation_batches=1, keep=2)


def learnt(result: TrainResult) -> list[tuple[int, float, float]]:
    return [(one.step, one.loss, one.train_loss) for one in result.history]


def names(folder: RemotePath) -> list[str]:
    return sorted({name.partition("/")[0] for name in folder.sizes()} - {""})


@pytest.fixture
def bucket(s3: Callable[[], str]) -> RemotePath:
    """Return a folder of a bucket of this test's."""
    torch.set_num_threads(1)
    found = place(f"{s3()}/run/checkpoints")
    assert isinstance(found, RemotePath)
    return found


@pytest.fixture(params=["pyarrow", "fsspec"])
def remote(request: pytest.FixtureRequest) -> RemotePath:
    """Return a folder that pyarrow reaches, or fsspec."""
    if request.param == "pyarrow":
        found: RemotePath = request.getfixturevalue("bucket")
        return found
    torch.set_num_threads(1)
    there = place(f"memory://{uuid4().hex}/run/checkpoints")
    assert isinstance(there, RemotePath)
    return there


def stopped(at: int) -> Callable[[Any], bool]:
    return lambda metrics: metrics.step >= at


def test_a_run_goes_on_from_the_last_whole_checkpoint(remote: RemotePath) -> None:
    alone = learnt(run(SPEC, OPTIONS))
    options = replace(OPTIONS, checkpoint=remote)
    run(SPEC, options, stopped(9))
    assert names(remote) == ["step_000000006", "step_000000009"]
    # As a worker leaves it that is killed: all of it but what is written last.
    (remote / "step_000000009" / "progress.pt").unlink()
    resumed: list[int] = []
    assert learnt(run(SPEC, options, lambda metrics: resumed.append(metrics.step))) == alone
    assert resumed == [9, 12]
    assert names(remote) == ["step_000000009", "step_000000012"]


def test_a_damaged_checkpoint_is_passed_over(bucket: RemotePath, caplog: pytest.LogCaptureFixture) -> None:
    options = replace(OPTIONS, checkpoint=bucket)
    run(SPEC, options, stopped(6))
    weights = bucket / "step_000000006" / "__0_0.distcp"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert learnt(run(SPEC, options)) == learnt(run(SPEC, replace(OPTIONS, keep=None)))
    said = [record.getMessage() for record in caplog.records if record.name == "widthwise"]
    assert said == [
        f"checkpoint: {bucket / 'step_000000006'} cannot be read (__0_0.distcp is too short); "
        "going on from the one before it"
    ]


def test_storage_that_takes_nothing_more_leaves_the_last_good_checkpoint(bucket: RemotePath) -> None:
    absent = replace(bucket, root=f"{bucket.root}-absent")
    with pytest.raises(RunError) as failed:
        run(SPEC, replace(OPTIONS, checkpoint=absent))
    message = str(failed.value)
    assert message.startswith("checkpoint: cannot be written (")
    assert message.endswith("; there is none yet")
    assert "not found" in message


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "s3://name:hidden@bucket/run",
            "s3://…: must hold no credentials; they belong into the environment of every process",
        ),
        (
            "abfss://a@b/run?account_key=hidden",
            "abfss://…: must hold no credentials; they belong into the environment of every process",
        ),
        ("s3://bucket", "s3://bucket: must be a URI with a path below its bucket or host"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused(uri: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        place(uri)
    assert str(refused.value) == message


def test_an_unknown_storage_is_refused_when_it_is_looked_at() -> None:
    with pytest.raises(ConfigError) as refused:
        place("nowhere://host/run").exists()
    assert str(refused.value) == "nowhere://host: cannot be reached (Protocol not known: nowhere)"


def test_paths_and_files_are_paths(tmp_path: Path) -> None:
    assert place(str(tmp_path)) == place(f"file://{tmp_path}") == tmp_path
    remote = place("s3://bucket/run/?region=us-east-1")
    assert str(remote / "plan.json") == "s3://bucket/run/plan.json?region=us-east-1"
    assert place(str(remote)) == remote
