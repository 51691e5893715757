"""Measure what telling experiment trackers costs a sweep: what its driver waits for, and what their thread takes.

    python benchmarks/trackers.py                          # TensorBoard
    WANDB_MODE=offline python benchmarks/trackers.py tensorboard wandb mlflow

The trials are made up: a sweep's driver is played by a loop that hands them out, reports eight losses of each and ends
them, as fast as it can, so that nothing of what is measured is training or Ray.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from widthwise.proxies import GPTConfig, Horizon
from widthwise.search import SweepConfig
from widthwise.search.ledger import Ledger
from widthwise.search.trackers import require_trackers
from widthwise.search.tracking import Tracking

TRIALS, EVALUATIONS, STEPS = 20, 8, 40


def main() -> None:
    trackers: tuple[Any, ...] = tuple(sys.argv[1:]) or ("tensorboard",)
    require_trackers(trackers)
    print(json.dumps({tracker: measured((tracker,)) for tracker in trackers}, indent=2))


def measured(trackers: tuple[Any, ...]) -> dict[str, float]:
    """Play a sweep; return milliseconds that calls took in the driver, and what the trackers' thread took in all."""
    config = SweepConfig(
        model=GPTConfig(width=32, context=64),
        horizon=Horizon(batch_tokens=1024, tokens=1024 * STEPS),
        trials=TRIALS,
        seeds=1,
        prune=False,
    )
    taken: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(config, Path(folder) / "sweep", resume=False)
        tracking = Tracking(ledger, trackers, tokens_per_step=1024, warn=print)
        began = time.perf_counter()
        with tracking:
            for _ in range(TRIALS):
                play(ledger, tracking, taken)
            told = time.perf_counter()
        ended = time.perf_counter()
        ledger.close()
    return {
        "driver_ms_per_call_median": round(1e3 * median(taken), 2),
        "driver_ms_per_call_max": round(1e3 * max(taken), 2),
        "thread_behind_at_the_end_seconds": round(ended - told, 2),
        "seconds_in_all": round(ended - began, 2),
    }


def play(ledger: Ledger, tracking: Tracking, taken: list[float]) -> None:
    """Let one trial begin, report and end; add what each call of the tracking took."""

    def timed(call: Any, *arguments: Any) -> None:
        clock = time.perf_counter()
        call(*arguments)
        taken.append(time.perf_counter() - clock)

    trial = ledger.next()
    assert not isinstance(trial, str)
    ledger.run(trial)
    timed(tracking.began, trial.number)
    for evaluation in range(1, EVALUATIONS + 1):
        step = evaluation * STEPS // EVALUATIONS
        ledger.report(trial.number, step, 4.0 - 0.1 * evaluation)
        timed(tracking.reported, trial.number, {"step": step, "loss": 4.0 - 0.1 * evaluation})
    ledger.finish(trial.number, "completed", {"loss": 3.2, "tokens": 1024 * STEPS, "seconds": 1.0})
    timed(tracking.ended, trial.number)


if __name__ == "__main__":
    main()
