"""The sweep's books: which settings are proposed, which are finalists, and which confirmations are missing."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.runs import RunSpec, base_settings
from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search.books import Books, Next, Run, trial_name
from widthwise.search.config import SweepConfig
from widthwise.search.fitting import Fit, Tried, fit_minimum
from widthwise.search.outlook import Outlook, of_sweep
from widthwise.search.pruning import is_behind
from widthwise.search.samplers import drawing, grid_points, sampler
from widthwise.search.storage import Storage
from widthwise.search.stored import SWEEP

# measured (docs/results/search/samplers.md): so many trials of every form of decay are not stopped.
MIN_COMPLETED = 3
# Proposals in a row that may be too short.
MAX_REFUSALS = 1000
# Attributes of the trials that the sampler has not proposed.
_NOT_PROPOSED = {"confirms", "fitted"}
_MAY_CHANGE = frozenset(
    {"data", "trials", "concurrency", "gpus_per_trial", "finalists", "seeds", "patience", "log"}
)


class Ledger(Books):
    """A sweep's study and trials in one folder, locked against a second sweep.

    Attributes:
        config: what the sweep is.
    """

    def __init__(
        self, config: SweepConfig, out: Path, *, resume: bool, storage: Storage | None = None
    ) -> None:
        """Create the folder's books, or open them with `resume`; errors as in `Books`."""
        self.config = config
        self._fitted_to = -1
        identity = config.model_dump(mode="json")
        # A grid of more points is another grid.
        may_change = _MAY_CHANGE - ({"trials"} if config.sampler == "grid" else set())
        layout = replace(SWEEP, objectives=1 if config.min_tokens is None else 2)
        super().__init__(out, layout, identity, may_change=may_change, resume=resume, storage=storage)

    def _to_come(self) -> tuple[int, int]:
        """Return how many proposals, and how many other trials, have not ended, by how things stand now."""
        unfinished = self._trials(TrialState.WAITING, TrialState.RUNNING)
        others = sum(bool(trial.user_attrs.keys() & _NOT_PROPOSED) for trial in unfinished)
        proposals = len(unfinished) - others
        if not self._has_proposed():
            proposals += self.config.trials - len(self._proposed())
        # Those whose other seeds cannot be missed yet.
        candidates = self.config.finalists - len(self.finalists()) if proposals else 0
        if self.config.seeds > 1 and self.fitted() is None and self.fit().problem is None:
            candidates += 1
        return proposals, others + len(self._missing()) + candidates * (self.config.seeds - 1)

    def outlook(self) -> Outlook:
        """Return what is expected of proposals, the finalists' other seeds, and the fitted minimum's."""
        proposals, others = self._to_come()
        return of_sweep(self.records(), tokens=self.config.horizon.tokens, proposals=proposals, others=others)

    def is_finished(self) -> bool:
        """Return whether nothing is left to run."""
        unfinished = self._trials(TrialState.WAITING, TrialState.RUNNING)
        return not unfinished and self._has_proposed() and not self._missing()

    def run(self, trial: Trial) -> Run:
        """Return what is to be run for `trial`, drawing what is not drawn yet."""
        hyperparameters = self.hyperparameters(trial)
        # What a target run is watched by is measured where the settings are the ones to be recommended.
        diagnostics = bool(trial.user_attrs.keys() & _NOT_PROPOSED)
        name, spec = trial_name(trial.number), trial_spec(self._config(trial), hyperparameters)
        return self._run(name, spec, self.seed(trial), diagnostics=diagnostics)

    def sample(self) -> Run:
        """Return a run with diagnostics: they take memory, the settings make no difference to it."""
        space = self.config.space
        tuned: dict[str, Any] = {
            "lr": space.lr[0],
            "weight_decay": space.weight_decay[0],
            "huber_c": space.huber_c[0],
        }
        hyperparameters = Hyperparameters(**tuned, decay=space.decay[0], **self._fixed())
        return self._run(
            "sample", trial_spec(self.config, hyperparameters), self.config.seed, diagnostics=True
        )

    def _run(self, key: str, spec: RunSpec, seed: int, *, diagnostics: bool) -> Run:
        options = {
            "evaluations": self.config.evaluations,
            "validation_batches": self.config.validation_batches,
            "diagnostics": diagnostics,
        }
        return Run(key=key, spec=spec, seed=seed, options=options)

    def _config(self, trial: Trial | FrozenTrial) -> SweepConfig:
        """Return the sweep with the horizon of `trial`, drawing it where it is not drawn yet."""
        if not self.config.halvings:
            return self.config
        with drawing():
            return self.config.halved(trial.suggest_int("halvings", 0, self.config.halvings))

    def hyperparameters(self, trial: Trial | FrozenTrial) -> Hyperparameters:
        """Return the settings that `trial` tries, drawing those not drawn yet."""
        with drawing():
            return Hyperparameters(**self.config.space.suggest(trial), **self._fixed())

    def _fixed(self) -> dict[str, Any]:
        """Return the optimizer's settings that are not searched."""
        names = ("betas", "eps", "threshold", "corrected", "clip_norm")
        return {name: getattr(self.config, name) for name in names}

    def seed(self, trial: Trial | FrozenTrial) -> int:
        """Return the seed that `trial` runs with."""
        return int(trial.user_attrs.get("seed", self.config.seed))

    def records(self) -> list[dict[str, Any]]:
        """Return every trial that was run and has ended as plain data."""
        return [record for record in super().records() if record["status"] != "refused"]

    def finalists(self) -> list[FrozenTrial]:
        """Return the best completed proposals, best first."""
        return self._scored()[: self.config.finalists]

    def confirmations(self, number: int) -> list[FrozenTrial]:
        """Return the trials that try proposal `number` again with other seeds; failed ones are made up for."""
        confirming = [trial for trial in self._trials() if trial.user_attrs.get("confirms") == number]
        return [trial for trial in confirming if trial.state != TrialState.FAIL]

    def fit(self) -> Fit:
        """Return the quadratic through the trials near the best."""
        scored = self._scored()
        if len(scored) != self._fitted_to:
            self._fit, self._fitted_to = fit_minimum([_tried(trial) for trial in scored]), len(scored)
        return self._fit

    def fitted(self) -> FrozenTrial | None:
        """Return the trial at the minimum of the quadratic, once it is there; a failed one is made up for."""
        count = len(self._scored())
        tried = [
            t for t in self._trials() if t.user_attrs.get("fitted") == count and t.state != TrialState.FAIL
        ]
        return tried[0] if tried else None

    def _wanted(self) -> Next:
        """Return a new proposal, or, once all have ended, the fitted minimum or a confirmation."""
        if not self._has_proposed():
            return self._propose()
        if not all(trial.state.is_finished() for trial in self._proposed()):
            return "wait"
        missing = self._missing()
        for parameters, attributes in missing:
            self._enqueue(parameters, attributes)
        if missing:
            return self._ask()
        return "wait" if self._trials(TrialState.RUNNING) else "finished"

    def _missing(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return what is to be run beside the proposals: parameters, and what the study is to say of them."""
        if self.config.seeds == 1:
            return []
        fitted, fit = self.fitted(), self.fit()
        confirmed = [*self.finalists(), *([fitted] if fitted else [])]
        missing = [
            (trial.params or trial.system_attrs["fixed_params"], {"confirms": trial.number, "seed": seed})
            for trial in confirmed
            for seed in range(self.config.seed + 1, self.config.seed + self.config.seeds)
            if seed not in {self.seed(other) for other in self.confirmations(trial.number)}
        ]
        if fitted is None and fit.problem is None:
            whole = {"halvings": 0} if self.config.halvings else {}
            missing.insert(0, (fit.parameters() | whole, {"fitted": len(self._scored())}))
        return missing

    def _agree(self, identity: Mapping[str, Any], may_change: frozenset[str]) -> None:
        done, trials = len(self._proposed()), self.config.trials
        if trials < done:
            raise ConfigError(f"trials: must be >= {done}, which {self.out} holds, got {trials}")
        super()._agree(identity, may_change)

    def _keep(self, trial: Trial, step: int, loss: float) -> None:
        if self.layout.objectives == 1:
            super()._keep(trial, step, loss)
        else:
            # Optuna has neither reports nor pruning where there are two objectives.
            trial.set_user_attr("curve", list(self._curves[trial.number].items()))

    def _values(self, trial: Trial, loss: float) -> tuple[float, ...]:
        if self.layout.objectives == 1:
            return (loss,)
        return (loss, math.log2(self._config(trial).horizon.tokens))

    def _is_behind(self, trial: Trial, step: int) -> bool:
        if (
            not self.config.prune
            or self.layout.objectives > 1
            or step >= self.config.horizon.steps
            or trial.user_attrs.keys() & _NOT_PROPOSED
        ):
            return False
        same = [one for one in self._scored() if one.params["decay"] == trial.params["decay"]]
        others = [one.intermediate_values for one in self._main() if one.number != trial.number]
        first = max(1, round(self.config.grace * self.config.horizon.steps))
        return len(same) >= MIN_COMPLETED and is_behind(self._curves[trial.number], others, first=first)

    def _proposed(self) -> list[FrozenTrial]:
        """Return the sampler's proposals; one that failed or was refused does not count and is made up for."""
        return [one for one in self._main() if one.state != TrialState.FAIL and not _is_refused(one)]

    def _main(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if not trial.user_attrs.keys() & _NOT_PROPOSED]

    def _scored(self) -> list[FrozenTrial]:
        """Return the proposals that completed the whole horizon with a finite loss, best first."""
        complete = [t for t in self._main() if t.state == TrialState.COMPLETE and not _halvings(t)]
        scored = [(t.values[0], t.number, t) for t in complete if math.isfinite(t.values[0])]
        return [trial for _, _, trial in sorted(scored)]

    def _has_proposed(self) -> bool:
        """Return whether the sampler has proposed enough."""
        return len(self._proposed()) >= self.config.trials or self._is_settled()

    def _is_settled(self) -> bool:
        """Return whether as many proposals as the patience allows have ended since the best one."""
        best, patience = self._scored()[:1], self.config.patience
        if patience is None or not best:
            return False
        since = [one for one in self._proposed() if one.number > best[0].number and one.state.is_finished()]
        return len(since) >= patience

    def _propose(self) -> Trial:
        """Return the sampler's next proposal that is long enough."""
        for _ in range(MAX_REFUSALS):
            # A sampler for each proposal, seeded by its place: what is proposed does not depend on restarts.
            self.study.sampler = sampler(self.config, self._place())
            trial = self._ask()
            if not self._refuses(trial):
                return trial
        least = self.config.min_horizon
        raise RunError(
            f"min_horizon: of {MAX_REFUSALS} proposals in a row none had a horizon Σηλ of {least:g}"
        )

    def _adopt(self, number: int) -> Next:
        if any(one.number == number for one in self._main()):
            # It may have died before its settings were drawn; those of the others were enqueued with them.
            self.study.sampler = sampler(self.config, self._place(number))
        super()._adopt(number)
        return self.next() if self._refuses(self.live[number]) else self.live[number]

    def _refuses(self, trial: Trial) -> bool:
        """Return whether `trial` is too short to be run; the sampler is told that it is infinitely bad."""
        tried = self.hyperparameters(trial)
        if not self._config(trial).is_too_short(tried.lr, tried.weight_decay):
            return False
        del self.live[trial.number], self._curves[trial.number]
        trial.set_user_attr("status", "refused")
        self._tell(trial, loss=math.inf)
        return True

    def _place(self, before: int | None = None) -> int:
        """Return the number of proposals, refused ones too, before trial `before` or in all; of a grid a free one."""
        proposed = [one for one in self._main() if one.state != TrialState.FAIL]
        if self.config.sampler == "grid":
            taken = [one.params for one in proposed if one.number != before]
            points = grid_points(self.config)
            return next(place for place, point in enumerate(points) if point not in taken)
        return sum(before is None or one.number < before for one in proposed)

    def _record(self, trial: FrozenTrial) -> dict[str, Any]:
        tried = {name: trial.params.get(name) for name in ("lr", "weight_decay", "decay", "huber_c")}
        return {
            "hyperparameters": tried,
            "width": self.config.model.width,
            "seed": self.seed(trial),
            "confirms": trial.user_attrs.get("confirms"),
            "fitted": "fitted" in trial.user_attrs,
            "horizon": self.config.halved(_halvings(trial)).horizon.tokens,
            **super()._record(trial),
        }


def trial_spec(config: SweepConfig, hyperparameters: Hyperparameters) -> RunSpec:
    """Return what a trial of a sweep trains with these settings."""
    return RunSpec(
        model=config.model,
        base_width=config.model.width,
        horizon=config.horizon,
        hyperparameters=hyperparameters,
        settings=base_settings(hyperparameters),
        data=config.data,
    )


def _tried(trial: FrozenTrial) -> Tried:
    tried = {name: value for name, value in trial.params.items() if name != "halvings"}
    return Tried(loss=trial.values[0], **tried)


def _halvings(trial: FrozenTrial) -> int:
    return int(trial.params.get("halvings", 0))


def _is_refused(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("status") == "refused"
