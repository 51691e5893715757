"""Ray Tune executes: it starts the ledger's trials on reused workers and reports back to the ledger.

``Tuner.restore`` and Ray's own OptunaSearch are not used: their snapshots lag, and they lose or repeat trials.
Every session starts a fresh Tune run over the same study instead.
"""

import math
import tempfile
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.runs import RunSpec, base_settings
from widthwise.search.config import SweepConfig, require_gpus
from widthwise.search.ledger import Ledger, Status
from widthwise.search.progress import Progress
from widthwise.search.trial import trainable

# Times that a trial whose worker died is started again, from its last checkpoint.
RETRIES = 2


def run_trials(ledger: Ledger, resources: Mapping[str, float], progress: Progress) -> None:
    """Run the trials that the ledger wants, on a cluster with `resources`, until it wants no more or Ctrl-C."""
    share = _gpu_share(ledger.config, resources.get("GPU", 0.0))
    limit = ledger.config.concurrency or _capacity(resources, share)
    with tempfile.TemporaryDirectory() as scratch:
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


class _Unsaved:
    """Pickles to nothing: Tune saves its parts for a restore that is never made."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Proposer(_Unsaved, Searcher):
    """Hands the ledger's trials to Tune, and Tune's endings to the ledger."""

    def __init__(self, ledger: Ledger, limit: int, progress: Progress) -> None:
        # No metric: Tune would refuse a result without it, and a failed trial has none.
        super().__init__()
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


def _gpu_share(config: SweepConfig, gpus: float) -> float:
    if config.gpus_per_trial is None:
        return 1.0 if gpus else 0.0
    require_gpus(config, gpus)
    return config.gpus_per_trial


def _capacity(resources: Mapping[str, float], share: float) -> int:
    cpus = int(resources.get("CPU", 1))
    return max(1, min(cpus, math.floor(resources["GPU"] / share)) if share else cpus)
