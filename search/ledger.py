"""The sweep's books: which settings are proposed, which are finalists, and which confirmations are missing."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, Trial, TrialState

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.runs import RunSpec, base_settings
from widthwise.proxies.validation import ConfigError
from widthwise.search.books import Books, Run
from widthwise.search.config import SweepConfig
from widthwise.search.folders import Layout, loaded, require_folder
from widthwise.search.samplers import drawing, pruner, sampler

SWEEP = Layout(
    what="sweep",
    database="study.db",
    records="trials.jsonl",
    folder="trials",
    foreign={"recipe.json": "a recipe that no sweep in it made"},
)

_MAY_CHANGE = frozenset({"data", "trials", "concurrency", "gpus_per_trial", "finalists", "seeds"})


class Ledger(Books):
    """A sweep's study and trials in one folder, locked against a second sweep.

    Attributes:
        config: what the sweep is.
    """

    def __init__(self, config: SweepConfig, out: Path, *, resume: bool) -> None:
        """Create the folder's books, or open them with `resume`; errors as in `Books`."""
        self.config = config
        super().__init__(out, SWEEP, config.model_dump(mode="json"), may_change=_MAY_CHANGE, resume=resume)
        self.study.pruner = pruner(config)

    @property
    def total(self) -> int:
        """Trials that the whole sweep takes, the finalists' other seeds included."""
        return self.config.trials + self.config.finalists * (self.config.seeds - 1)

    def is_finished(self) -> bool:
        """Return whether nothing is left to run."""
        unfinished = self._trials(TrialState.WAITING, TrialState.RUNNING)
        return (
            not unfinished
            and len(self._proposed()) >= self.config.trials
            and not self._missing_confirmations()
        )

    def run(self, trial: Trial) -> Run:
        """Return what is to be run for `trial`, drawing what is not drawn yet."""
        config, hyperparameters = self.config, self.hyperparameters(trial)
        spec = RunSpec(
            model=config.model,
            base_width=config.model.width,
            horizon=config.horizon,
            hyperparameters=hyperparameters,
            settings=base_settings(hyperparameters),
            data=config.data,
        )
        options = {"evaluations": config.evaluations, "validation_batches": config.validation_batches}
        return Run(key=f"trial_{trial.number:04d}", spec=spec, seed=self.seed(trial), options=options)

    def hyperparameters(self, trial: Trial | FrozenTrial) -> Hyperparameters:
        """Return the settings that `trial` tries, drawing those not drawn yet."""
        config = self.config
        fixed = {
            name: getattr(config, name) for name in ("betas", "eps", "threshold", "corrected", "clip_norm")
        }
        with drawing():
            return Hyperparameters(**config.space.suggest(trial), **fixed)

    def seed(self, trial: Trial | FrozenTrial) -> int:
        """Return the seed that `trial` runs with."""
        return int(trial.user_attrs.get("seed", self.config.seed))

    def finalists(self) -> list[FrozenTrial]:
        """Return the best completed proposals, best first."""
        complete = [t for t in self._main() if t.state == TrialState.COMPLETE]
        scored = [(t.value, t.number, t) for t in complete if t.value is not None and math.isfinite(t.value)]
        return [trial for _, _, trial in sorted(scored)[: self.config.finalists]]

    def confirmations(self, number: int) -> list[FrozenTrial]:
        """Return the trials that try proposal `number` again with other seeds; failed ones are made up for."""
        trials = self.study.get_trials(deepcopy=False)
        confirming = [trial for trial in trials if trial.user_attrs.get("confirms") == number]
        return [trial for trial in confirming if trial.state != TrialState.FAIL]

    def _wanted(self) -> Trial | Literal["wait", "finished"]:
        """Return a new proposal, or, once all have ended, a confirmation."""
        place = len(self._proposed())
        if place < self.config.trials:
            return self._propose(place)
        if self._trials(TrialState.RUNNING):
            return "wait"
        missing = self._missing_confirmations()
        for trial, seed in missing:
            self.study.enqueue_trial(trial.params, user_attrs={"confirms": trial.number, "seed": seed})
        return self._ask() if missing else "finished"

    def _is_behind(self, trial: Trial, step: int) -> bool:
        if not self.config.prune or step >= self.config.horizon.steps or "confirms" in trial.user_attrs:
            return False
        return trial.should_prune()

    def _agree(self, identity: Mapping[str, Any], may_change: frozenset[str]) -> None:
        done = len(self._proposed())
        if self.config.trials < done:
            raise ConfigError(f"trials: must be >= {done}, which {self.out} holds, got {self.config.trials}")
        super()._agree(identity, may_change)

    def _proposed(self) -> list[FrozenTrial]:
        """Return the sampler's proposals; a failed one does not count and is made up for."""
        return [trial for trial in self._main() if trial.state != TrialState.FAIL]

    def _main(self) -> list[FrozenTrial]:
        return [t for t in self.study.get_trials(deepcopy=False) if "confirms" not in t.user_attrs]

    def _propose(self, place: int) -> Trial:
        # A sampler for each proposal, seeded by its place: what is proposed does not depend on restarts.
        self.study.sampler = sampler(self.config, place)
        return self._ask()

    def _adopt(self, number: int) -> Trial:
        # It may have died before its settings were drawn.
        place = sum(trial.number < number for trial in self._proposed())
        self.study.sampler = sampler(self.config, place)
        return super()._adopt(number)

    def _missing_confirmations(self) -> list[tuple[FrozenTrial, int]]:
        """Return the finalists and the seeds that they have not been tried with."""
        seeds = range(self.config.seed + 1, self.config.seed + self.config.seeds)
        return [
            (trial, seed)
            for trial in self.finalists()
            for seed in seeds
            if seed not in {self.seed(other) for other in self.confirmations(trial.number)}
        ]

    def _record(self, trial: FrozenTrial) -> dict[str, Any]:
        tried = {name: trial.params.get(name) for name in ("lr", "weight_decay", "decay", "huber_c")}
        return {
            "hyperparameters": tried,
            "width": self.config.model.width,
            "seed": self.seed(trial),
            "confirms": trial.user_attrs.get("confirms"),
            **super()._record(trial),
        }


def stored_config(out: Path) -> SweepConfig:
    """Return the configuration of the sweep in `out`.

    Raises:
        ConfigError: where there is none, or the study cannot be read.
    """
    require_folder(out, SWEEP, resume=True)
    return SweepConfig.parse(loaded(out, SWEEP).user_attrs["config"], where=str(out / SWEEP.database))
