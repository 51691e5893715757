"""Several trials at a time, on workers that go from one trial to the next."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import GPTConfig, Horizon
from widthwise.search import SearchSpace, SweepConfig
from widthwise.search.cluster import ray_session
from widthwise.search.executing import Placement
from widthwise.search.ledger import Ledger

pytestmark = pytest.mark.ray


class Workers:
    """Hears which process reported of which trial."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}

    def began(self, number: int) -> None:
        pass

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        self.pids[number] = result["pid"]

    def died(self, number: int) -> None:
        pass

    def ended(self, number: int) -> None:
        pass


@pytest.mark.slow
def test_trials_shorter_than_a_workers_start_run_two_at_a_time_on_the_same_two_workers(
    tmp_path: Path,
) -> None:
    config = SweepConfig(
        model=GPTConfig(width=32, context=64),
        horizon=Horizon(batch_tokens=1024, tokens=102_400),
        trials=8,
        seeds=1,
        finalists=1,
        prune=False,
        space=SearchSpace(lr=(0.005, 0.02)),
    )
    ledger, heard = Ledger(config, tmp_path / "sweep", resume=False), Workers()
    with ray_session(cpus=2) as ray:
        from widthwise.search.tuning import run_trials

        run_trials(ledger, Placement(concurrency=2), ray.cluster_resources(), [heard], print, print)
    ledger.close()
    assert ledger.places == 2
    assert [record["status"] for record in ledger.records()] == ["completed"] * 8
    assert len(heard.pids) == 8
    assert len(set(heard.pids.values())) == 2
