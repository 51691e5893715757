"""Measure what a sweep costs beside its trials' own training: until the first trial, per trial, and in all.

    python benchmarks/sweep.py

Fifty trials of about two seconds each run as a sweep, one and two at a time, and in a bare loop in this process, one
after the other on one thread, half of them before each sweep and half after it. Rates are from the first trial's first
step to the last trial's end: what starting takes stands by itself, and so does a sweep of twenty tiny trials. What the
driver takes of a core is measured beside trials of a quarter of a minute too: it works when a trial begins, reports or
ends. Two bare loops at once say how much two of the machine's cores are slower than one, which no sweep can mend.
"""

import json
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import optuna
import torch

from widthwise.proxies import GPTConfig, Horizon
from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.runs import opened, run
from widthwise.search import SweepConfig, sweep
from widthwise.search.cluster import ray_session
from widthwise.search.ledger import trial_spec

TRIALS, STEPS, BATCH_TOKENS = 50, 200, 1024
CONCURRENCY = (1, 2)
TINY = {"trials": 20, "steps": 20}
LONG = {"trials": 4, "steps": 1500}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A sweep, in seconds.

    Attributes:
        records: its trials, as in ``trials.jsonl``.
        start: from the call to the first trial's first step.
        running: from there to the last trial's end.
        wall: the whole call.
        driver: share of a core that this process took while trials ran.
        gaps: between the ends of one trial and the next, less the next one's own training.
    """

    records: list[dict[str, Any]]
    start: float
    running: float
    wall: float
    driver: float
    gaps: list[float]


def main() -> None:
    ready = until_ready()
    sweeps, loops = {}, {}
    for concurrency in CONCURRENCY:
        config = configured(TRIALS, STEPS, concurrency)
        before = bare(config, TRIALS // 2)
        sweeps[concurrency] = measured(config)
        loops[concurrency] = before + bare(config, TRIALS // 2)
    at_once = bare_at_once(configured(TRIALS, STEPS, 1), TRIALS // 2)
    tiny, long = (measured(configured(**size, concurrency=2)) for size in (TINY, LONG))
    alone = sweeps[1]
    figures = {
        "trials": TRIALS,
        "seconds_until_ray_is_ready": round(ready, 2),
        "bare_loop_seconds": [round(seconds, 2) for seconds in loops.values()],
        "seconds_before_the_first_step": [round(one.start, 2) for one in sweeps.values()],
        "seconds_from_there_to_the_last_end": [round(one.running, 2) for one in sweeps.values()],
        "seconds_in_all": [round(one.wall, 2) for one in sweeps.values()],
        "rate_over_the_bare_loop_times_concurrency": [
            round(loops[concurrency] / one.running / concurrency, 3) for concurrency, one in sweeps.items()
        ],
        "bare_loop_over_two_at_once": round(fmean(loops.values()) / 2 / at_once, 3),
        "overhead_seconds_per_trial_median": round(median(alone.gaps), 3),
        "overhead_seconds_per_trial_max": round(max(alone.gaps), 3),
        "overhead_median_of_the_first_and_the_last_ten": [
            round(median(alone.gaps[:10]), 3),
            round(median(alone.gaps[-10:]), 3),
        ],
        "driver_share_of_a_core": [round(one.driver, 3) for one in sweeps.values()],
        "the_same_beside_longer_trials": round(long.driver, 3),
        "seconds_per_longer_trial": round(fmean(record["seconds"] for record in long.records), 1),
        "seconds_of_a_sweep_of_20_tiny_trials": round(tiny.wall, 1),
        "driver_max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(figures, indent=2))


def configured(trials: int, steps: int, concurrency: int) -> SweepConfig:
    return SweepConfig(
        model=GPTConfig(width=32, context=64),
        horizon=Horizon(batch_tokens=BATCH_TOKENS, tokens=BATCH_TOKENS * steps),
        trials=trials,
        concurrency=concurrency,
        seeds=1,
        prune=False,
        validation_batches=2,
    )


def until_ready() -> float:
    """Return the seconds until a local Ray takes work, its import included."""
    began = time.perf_counter()
    with ray_session(cpus=max(CONCURRENCY)):
        return time.perf_counter() - began


def measured(config: SweepConfig) -> Measured:
    """Run the sweep and return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        began, clock = datetime.now(), time.perf_counter()
        with watched() as samples:
            result = sweep(config, Path(folder) / "sweep", show_progress=False)
        wall = time.perf_counter() - clock
        ended = _endings(Path(folder) / "sweep")
    trained = [record["seconds"] for record in result.records]
    first = ended[0] - timedelta(seconds=trained[0])
    gaps = [
        (later - earlier).total_seconds() - own
        for (earlier, later), own in zip(pairwise(ended), trained[1:], strict=True)
    ]
    (since, before), *_, (until, after) = [one for one in samples if first < one[0] < ended[-1]]
    return Measured(
        records=result.records,
        start=(first - began).total_seconds(),
        running=(ended[-1] - first).total_seconds(),
        wall=wall,
        driver=(after - before) / (until - since).total_seconds(),
        gaps=gaps,
    )


@contextmanager
def watched() -> Iterator[list[tuple[datetime, float]]]:
    """Look at this process's processor time every half second: (when, seconds)."""
    samples: list[tuple[datetime, float]] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            samples.append((datetime.now(), time.process_time()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def bare(config: SweepConfig, trials: int) -> float:
    """Return the seconds that such trials take in a loop in this process, on one thread."""
    torch.set_num_threads(1)
    options = {"evaluations": config.evaluations, "validation_batches": config.validation_batches}
    spec = trial_spec(config, Hyperparameters(lr=0.03, weight_decay=1.0, huber_c=2.0))
    opened(config.data, config.model.vocab_size)
    began = time.perf_counter()
    for seed in range(trials):
        run(spec, RunOptions(seed=seed, **options))
    return time.perf_counter() - began


def bare_at_once(config: SweepConfig, trials: int) -> float:
    """Return the mean seconds of two bare loops in processes of their own, at the same time."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for count in (1, trials):  # the first for what is imported and built
            seconds = fmean(pool.map(bare, [config] * 2, [count] * 2))
    return seconds


def _endings(out: Path) -> list[datetime]:
    """Return when each trial ended, in order."""
    study = optuna.load_study(storage=f"sqlite:///{out / 'study.db'}", study_name="widthwise")
    return sorted(trial.datetime_complete for trial in study.trials if trial.datetime_complete)


if __name__ == "__main__":
    main()
