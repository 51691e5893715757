"""How many trials share a GPU, and what happens to those that run out of its memory."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from widthwise.proxies import GPTConfig, Horizon
from widthwise.search import SweepConfig
from widthwise.search.books import MAX_FAILURES
from widthwise.search.executing import Placement, _settled
from widthwise.search.ledger import Ledger
from widthwise.search.packing import share, taken_by, trials_per_gpu
from widthwise.search.progress import Progress
from widthwise.search.tuning import _Fuse, _Proposer

GB = 10**9
FULL = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def ledger(tmp_path: Path, real_text: Path) -> Iterator[Ledger]:
    config = SweepConfig(
        model=GPTConfig(width=32, context=64),
        horizon=Horizon(batch_tokens=1024, tokens=102_400),
        data=str(real_text),
        gpus_per_trial="auto",
    )
    opened = Ledger(config, tmp_path / "sweep", resume=False)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("taken", "total", "cores", "expected"),
    [
        (10 * GB, 80 * GB, 64, 7),  # floor(0.9 * 80 / 10)
        (9 * GB, 80 * GB, 64, 8),
        (9 * GB + 1, 80 * GB, 64, 7),
        (1 * GB, 80 * GB, 64, 16),  # no more take turns
        (1 * GB, 80 * GB, 3, 3),  # a core each
        (75 * GB, 80 * GB, 64, 1),
        (1 * GB, 80 * GB, 0, 1),
    ],
)
def test_as_many_trials_share_a_gpu_as_fit_with_room_to_spare(
    taken: int, total: int, cores: int, expected: int
) -> None:
    assert trials_per_gpu(taken, total, cores) == expected


@pytest.mark.parametrize("taken", [0, 81])
def test_what_a_trial_takes_lies_within_the_gpu(taken: int) -> None:
    with pytest.raises(ValueError, match=rf"^taken: must be in \(0, 80\], got {taken}$"):
        trials_per_gpu(taken, 80, 8)


@pytest.mark.parametrize("trials", range(1, 17))
def test_so_many_shares_fit_in_a_gpu_as_ray_counts_and_no_more(trials: int) -> None:
    counted = round(share(trials) * 10_000)
    assert counted * trials <= 10_000 < counted * (trials + 1)


def test_a_sample_is_a_trial_but_for_its_settings(ledger: Ledger) -> None:
    trial = ledger.next()
    assert not isinstance(trial, str)
    run, sample = ledger.run(trial), ledger.sample()
    apart = {"hyperparameters", "settings"}
    assert sample.spec.model_dump(exclude=apart) == run.spec.model_dump(exclude=apart)
    assert (sample.seed, sample.options) == (run.seed, {**run.options, "diagnostics": True})
    assert set(sample.spec.settings) == set(run.spec.settings)


def test_without_a_gpu_nothing_is_measured_and_nothing_shared(ledger: Ledger) -> None:
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0})
    settled = _settled(ledger, Placement(gpus_per_trial="auto"), ray, Progress(ledger, enabled=False))
    assert settled == Placement()


def handed_out(proposer: _Proposer, names: str) -> list[bool]:
    return [isinstance(proposer.suggest(name), dict) for name in names]


def test_trials_that_run_out_of_memory_are_recorded_and_fewer_run_at_a_time(ledger: Ledger) -> None:
    proposer = _Proposer(ledger, 4, 4, [], _Fuse())
    assert handed_out(proposer, "abcde") == [True] * 4 + [False]
    for name in "abc":
        proposer.on_trial_complete(name, {"status": "failed", "error": FULL})
    assert ledger.failures == []
    assert [record["error"] for record in ledger.records()] == [FULL] * 3
    # One was left: from now on one at a time, and nobody else is to blame.
    assert handed_out(proposer, "f") == [False]
    proposer.on_trial_complete("d", {"status": "failed", "error": FULL})
    for count in range(1, MAX_FAILURES):
        assert ledger.failures == [FULL] * count
        assert handed_out(proposer, "gh") == [True, False]
        proposer.on_trial_complete("g", {"status": "failed", "error": FULL})
    assert ledger.next() == "finished"


def test_any_other_failure_lets_as_many_run_as_before(ledger: Ledger) -> None:
    proposer = _Proposer(ledger, 2, 2, [], _Fuse())
    assert handed_out(proposer, "ab") == [True] * 2
    proposer.on_trial_complete("a", {"status": "failed", "error": "OSError: no space left"})
    assert handed_out(proposer, "cd") == [True, False]


@pytest.mark.gpu
def test_what_a_trial_takes_on_a_gpu_is_more_than_the_allocator_gave_out(ledger: Ledger) -> None:
    sample = ledger.sample()
    taken, total = taken_by(sample.spec, 0, dict(sample.options))
    assert torch.cuda.max_memory_allocated() < taken < total
    assert trials_per_gpu(taken, total, 16) > 1
