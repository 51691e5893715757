"""The sweep: Optuna proposes, Ray Tune executes, the ledger remembers.

``Tuner.restore`` and Ray's own OptunaSearch are not used: their snapshots lag, and they lose or repeat trials.
Every session starts a fresh Tune run over the same study instead.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.data import absolute_source, open_tokens
from widthwise.proxies.runs import RunSpec, base_settings
from widthwise.proxies.validation import RunError
from widthwise.search.cluster import ray_session, require_ray
from widthwise.search.config import SweepConfig
from widthwise.search.ledger import MAX_FAILURES, Ledger, Status
from widthwise.search.progress import Progress
from widthwise.search.trial import trainable

# Times that a trial whose worker died is started again, from its last checkpoint.
RETRIES = 2


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """One setting trained with several seeds; `losses` are validation losses in nats per token, by seed."""

    number: int
    hyperparameters: Hyperparameters
    losses: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        """Return the finalist as plain data."""
        return {
            "number": self.number,
            "hyperparameters": self.hyperparameters.model_dump(mode="json"),
            "losses": {str(seed): loss for seed, loss in self.losses.items()},
            "mean": self.mean,
            "spread": self.spread,
        }

    @property
    def mean(self) -> float:
        """Mean loss over the seeds."""
        return statistics.fmean(self.losses.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None from a single one."""
        return statistics.stdev(self.losses.values()) if len(self.losses) > 1 else None


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        config: what was swept.
        finalists: best first, by mean loss over the seeds.
        records: every finished trial, as in ``trials.jsonl``.
        finished: False where the sweep was interrupted and can be resumed.
        seconds: wall time of this session.
        data_fingerprint: identifies the tokens.
    """

    config: SweepConfig
    finalists: list[Finalist]
    records: list[dict[str, Any]]
    finished: bool
    seconds: float
    data_fingerprint: str

    @property
    def best(self) -> Finalist:
        """The finalist with the lowest mean loss."""
        return self.finalists[0]

    def provenance(self) -> dict[str, Any]:
        """Return what produced the result: data, seed, versions and time."""
        return {
            "data": self.config.data,
            "data_fingerprint": self.data_fingerprint,
            "seed": self.config.seed,
            "seconds": round(self.seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("widthwise", "torch", "mup", "ray", "optuna")},
        }


def sweep(
    config: SweepConfig,
    out: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    show_progress: bool = True,
) -> SweepResult:
    """Tune η, λ and c on a proxy.

    Args:
        config: what to sweep.
        out: folder for ``study.db``, ``trials.jsonl`` and the trials' checkpoints.
        resume: go on with the sweep in `out`, finished trials kept and interrupted ones continued.
        address: a Ray cluster's ``host:port`` or ``auto``; None starts a local Ray.
        show_progress: draw a progress bar on standard error.

    Returns:
        The result; ``finished`` is False after Ctrl-C.

    Raises:
        ConfigError: for a user's mistake, before anything is written.
        RunError: where no trial completed, or trials keep failing.
    """
    started = time.perf_counter()
    config = config.model_copy(update={"data": absolute_source(config.data)})
    tokens = open_tokens(config.data, vocab_size=config.model.vocab_size)
    tokens.require(context=config.model.context, batch_size=config.horizon.sequences(config.model.context))
    if address is not None:
        require_ray(address)
    ledger = Ledger(config, out, resume=resume)
    try:
        with Progress(ledger, enabled=show_progress) as progress:
            finished = execute(ledger, address, progress)
    finally:
        ledger.close()
    return SweepResult(
        config=config,
        finalists=_finalists(ledger),
        records=ledger.records(),
        finished=finished,
        seconds=time.perf_counter() - started,
        data_fingerprint=tokens.fingerprint,
    )


def execute(ledger: Ledger, address: str | None, progress: Progress) -> bool:
    """Run the trials that the ledger wants; return whether it has all of them."""
    if ledger.is_finished():
        return True
    with (
        ray_session(address, cpus=ledger.config.concurrency) as ray,
        tempfile.TemporaryDirectory() as scratch,
    ):
        resources = ray.cluster_resources()
        share = _gpu_share(ledger.config, resources)
        limit = ledger.config.concurrency or _capacity(resources, share)
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": share}),
            tune_config=tune.TuneConfig(
                search_alg=_Proposer(ledger, limit, progress),
                scheduler=_Stopper(ledger, progress),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        ).fit()
    if len(ledger.failures) >= MAX_FAILURES:
        raise RunError(f"{len(ledger.failures)} trials failed, the last with: {ledger.failures[-1]}")
    return ledger.is_finished()


class _Unsaved:
    """Pickles to nothing: Tune saves its parts for a restore that is never made."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Proposer(_Unsaved, Searcher):
    """Hands the ledger's trials to Tune, and Tune's endings to the ledger."""

    def __init__(self, ledger: Ledger, limit: int, progress: Progress) -> None:
        super().__init__(metric="loss", mode="min")
        self.ledger, self.limit, self.progress = ledger, limit, progress
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        # Tune asks ahead for trials that cannot run yet; a proposal should know all results there are.
        if len(self.ledger.live) >= self.limit:
            return None
        trial = self.ledger.next()
        if trial == "wait":
            return None
        if trial == "finished":
            return None if self.ledger.live else Searcher.FINISHED
        number = self.numbers[trial_id] = trial.number
        config = self.ledger.config
        return {
            "number": number,
            "folder": str(self.ledger.folder(number).resolve()),
            "spec": _spec(config, self.ledger.hyperparameters(trial)).model_dump_json(),
            "options": {
                "seed": self.ledger.seed(trial),
                "evaluations": config.evaluations,
                "validation_batches": config.validation_batches,
            },
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.numbers.pop(trial_id)
        outcome = result or {}
        status: Status = "failed" if error or not outcome else outcome["status"]
        # A trial that ends while it says that it is running was stopped by the scheduler.
        self.ledger.finish(number, "stopped" if status == "running" else status, outcome)
        self.progress.ended()

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its study")


class _Stopper(_Unsaved, FIFOScheduler):
    """Stops the trials that the study's pruner gives up: its rungs live in the study and survive a restart."""

    def __init__(self, ledger: Ledger, progress: Progress) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger, self.progress = ledger, progress

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["status"] != "running":
            return str(TrialScheduler.CONTINUE)
        number = trial.config["number"]
        stop = self.ledger.report(number, result["step"], result["loss"])
        self.progress.step(number, result["step"])
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)


def _spec(config: SweepConfig, hyperparameters: Hyperparameters) -> RunSpec:
    return RunSpec(
        model=config.model,
        base_width=config.model.width,
        horizon=config.horizon,
        hyperparameters=hyperparameters,
        settings=base_settings(hyperparameters),
        data=config.data,
    )


def _finalists(ledger: Ledger) -> list[Finalist]:
    finalists = []
    for trial in ledger.finalists():
        runs = [trial, *ledger.confirmations(trial.number)]
        # A finalist that diverges with another seed is no finalist: its mean is infinite.
        losses = {ledger.seed(run): run.value for run in runs if run.value is not None}
        hyperparameters = ledger.hyperparameters(trial)
        finalists.append(Finalist(number=trial.number, hyperparameters=hyperparameters, losses=losses))
    if not finalists and ledger.is_finished():
        raise RunError("no trial completed: all diverged; lower the bounds of space.lr")
    return sorted(finalists, key=lambda finalist: finalist.mean)


def _gpu_share(config: SweepConfig, resources: Mapping[str, float]) -> float:
    if config.gpus_per_trial is not None:
        return config.gpus_per_trial
    return 1.0 if resources.get("GPU", 0) else 0.0


def _capacity(resources: Mapping[str, float], share: float) -> int:
    cpus = int(resources.get("CPU", 1))
    return max(1, min(cpus, math.floor(resources["GPU"] / share)) if share else cpus)
