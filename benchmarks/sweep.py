"""Measure what a sweep costs beside its trials' own training: until the first trial, and per trial.

    python benchmarks/sweep.py

Trials run one after the other, so that the time between two endings is one trial's training and its overhead.
"""

import json
import resource
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

import optuna

from widthwise.proxies import GPTConfig, Horizon
from widthwise.search import SweepConfig, sweep

TRIALS = 20


def main() -> None:
    config = SweepConfig(
        model=GPTConfig(width=32, context=64),
        horizon=Horizon(batch_tokens=1024, tokens=51_200),
        trials=TRIALS,
        seeds=1,
        concurrency=1,
        prune=False,
        validation_batches=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        began, clock = datetime.now(), time.perf_counter()
        result = sweep(config, Path(folder) / "sweep", show_progress=False)
        wall = time.perf_counter() - clock
        ended = _endings(Path(folder) / "sweep")
    trained = [record["seconds"] for record in result.records]
    first = (ended[0] - began).total_seconds() - trained[0]
    overheads = [
        (later - earlier).total_seconds() - own
        for (earlier, later), own in zip(pairwise(ended), trained[1:], strict=True)
    ]
    figures = {
        "trials": TRIALS,
        "wall_seconds": round(wall, 2),
        "training_seconds": round(sum(trained), 2),
        "seconds_before_the_first_trial": round(first, 2),
        "overhead_seconds_per_trial_median": round(median(overheads), 3),
        "overhead_seconds_per_trial_max": round(max(overheads), 3),
        "driver_max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(figures, indent=2))


def _endings(out: Path) -> list[datetime]:
    """Return when each trial ended, in order."""
    study = optuna.load_study(storage=f"sqlite:///{out / 'study.db'}", study_name="widthwise")
    return sorted(trial.datetime_complete for trial in study.trials if trial.datetime_complete)


if __name__ == "__main__":
    main()
