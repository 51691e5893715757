"""The sweep's books: the Optuna study is the truth, and everything that follows is read off it.

Which trial comes next, which are finalists and what is still missing are functions of the study alone, so
that a sweep killed at any moment goes on where it was. Ray Tune only executes (see ``sweeping``).
"""

import json
import math
import shutil
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.files import locked, write_atomic
from widthwise.proxies.outcome import finite
from widthwise.proxies.validation import ConfigError
from widthwise.search.config import SweepConfig

STUDY = "widthwise"
# After so many failures in one session something is wrong that no further trial will cure.
MAX_FAILURES = 3
# assumed: asynchronous successive halving's first rung, as a share of the steps, and its reduction factor.
FIRST_RUNG, REDUCTION = 1 / 3, 2

Status = Literal["running", "completed", "stopped", "diverged", "failed"]


class Ledger:
    """A sweep's study and trials in one folder, locked against a second sweep.

    Attributes:
        config: what the sweep is.
        out: its folder, with ``study.db``, ``trials.jsonl`` and ``trials/trial_NNNN/``.
        live: trials handed out and not yet finished, by number.
        failures: errors of the trials that failed since the ledger was opened.
    """

    def __init__(self, config: SweepConfig, out: Path, *, resume: bool) -> None:
        """Create the folder's books, or open them with `resume`.

        Raises:
            ConfigError: where the folder holds another sweep, cannot be written, or is in use.
        """
        self.config, self.out = config, out
        self.live: dict[int, Trial] = {}
        self.failures: list[str] = []
        require_folder(out, resume=resume)
        self._lock = ExitStack()
        self._lock.enter_context(locked(out))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.study = _loaded(out) if resume else _created(out)
            self._agree(config)
        except BaseException:
            self.close()
            raise
        self.study.pruner = _pruner(config)
        self._orphans = [trial.number for trial in self._trials(TrialState.RUNNING)]
        self.write_records()

    def require_data(self, fingerprint: str) -> None:
        """Raise a ConfigError where the sweep was started on other tokens; losses of two corpora do not compare."""
        known = self.study.user_attrs.get("data_fingerprint")
        if known not in (None, fingerprint):
            raise ConfigError(
                f"data: must hold the tokens that the sweep in {self.out} was started with, but differs"
            )
        self.study.set_user_attr("data_fingerprint", fingerprint)

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    @property
    def total(self) -> int:
        """Trials that the whole sweep takes, the finalists' other seeds included."""
        return self.config.trials + self.config.finalists * (self.config.seeds - 1)

    def next(self) -> Trial | Literal["wait", "finished"]:
        """Return the next trial to run: an interrupted one, a confirmation, or a new proposal."""
        if len(self.failures) >= MAX_FAILURES:
            return "finished"
        if self._orphans:
            return self._adopt(self._orphans.pop(0))
        if self._trials(TrialState.WAITING):
            return self._ask()
        place = len(self._proposed())
        if place < self.config.trials:
            return self._ask(place)
        if self._trials(TrialState.RUNNING):
            return "wait"
        missing = self._missing_confirmations()
        for trial, seed in missing:
            self.study.enqueue_trial(trial.params, user_attrs={"confirms": trial.number, "seed": seed})
        return self._ask() if missing else "finished"

    def is_finished(self) -> bool:
        """Return whether nothing is left to run."""
        unfinished = self._trials(TrialState.WAITING, TrialState.RUNNING)
        return (
            not unfinished
            and len(self._proposed()) >= self.config.trials
            and not self._missing_confirmations()
        )

    def hyperparameters(self, trial: Trial | FrozenTrial) -> Hyperparameters:
        """Return the settings that `trial` tries, drawing those not drawn yet."""
        config = self.config
        fixed = {
            name: getattr(config, name) for name in ("betas", "eps", "threshold", "corrected", "clip_norm")
        }
        return Hyperparameters(**config.space.suggest(trial), **fixed)

    def seed(self, trial: Trial | FrozenTrial) -> int:
        """Return the seed that `trial` runs with."""
        return int(trial.user_attrs.get("seed", self.config.seed))

    def folder(self, number: int) -> Path:
        """Return the folder of a trial's checkpoint."""
        return self.out / "trials" / f"trial_{number:04d}"

    def report(self, number: int, step: int, loss: float) -> bool:
        """Record an intermediate loss; return whether the trial should stop, being behind the others."""
        trial = self.live[number]
        known = self.study.get_trials(deepcopy=False)[number].intermediate_values
        if not math.isfinite(loss) or step in known:
            return False
        trial.report(loss, step)
        if not self.config.prune or step >= self.config.horizon.steps or "confirms" in trial.user_attrs:
            return False
        return trial.should_prune()

    def finish(self, number: int, status: Status, outcome: Mapping[str, Any]) -> None:
        """Close a trial and remove its checkpoint: pruned if stopped, infinitely bad if diverged, or failed."""
        trial = self.live.pop(number)
        trial.set_user_attr("status", status)
        for name in ("tokens", "seconds", "error"):
            if name in outcome:
                trial.set_user_attr(name, outcome[name])
        if status == "failed":
            self.failures.append(str(outcome.get("error", "the worker died")))
            self.study.tell(trial, state=TrialState.FAIL)
        elif status == "stopped":
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, math.inf if status == "diverged" else outcome["loss"])
        # Not before the study knows: until then a trial that is interrupted goes on from its checkpoint.
        shutil.rmtree(self.folder(number), ignore_errors=True)
        self.write_records()

    def records(self) -> list[dict[str, Any]]:
        """Return every finished trial: hyperparameters, width, seed, status, loss, tokens, seconds, curve."""
        return [
            self._record(trial)
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        ]

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

    def write_records(self) -> None:
        """Write ``trials.jsonl`` anew from the study: each finished trial stands in it exactly once."""
        lines = [json.dumps(record, allow_nan=False) for record in self.records()]
        write_atomic(self.out / "trials.jsonl", "".join(f"{line}\n" for line in lines))

    def _agree(self, config: SweepConfig) -> None:
        """Store the configuration with a new study; a resumed one must have the same, but for its size."""
        stored = self.study.user_attrs.get("config")
        given = config.model_dump(mode="json")
        if stored is not None:
            for name, value in given.items():
                if name not in _MAY_CHANGE and stored[name] != value:
                    where, was, now = _difference(name, stored[name], value)
                    rule = f"must be as the sweep in {self.out} was started, {was}"
                    raise ConfigError(f"{where}: {rule}, got {now}")
            done = len(self._proposed())
            if config.trials < done:
                raise ConfigError(f"trials: must be >= {done}, which {self.out} holds, got {config.trials}")
        self.study.set_user_attr("config", given)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _proposed(self) -> list[FrozenTrial]:
        """Return the sampler's proposals; a failed one does not count and is made up for."""
        return [trial for trial in self._main() if trial.state != TrialState.FAIL]

    def _main(self) -> list[FrozenTrial]:
        return [t for t in self.study.get_trials(deepcopy=False) if "confirms" not in t.user_attrs]

    def _ask(self, place: int = 0) -> Trial:
        # A sampler for each proposal, seeded by its place: what is proposed does not depend on restarts.
        self.study.sampler = _sampler(self.config, place)
        trial = self.study.ask()
        self.live[trial.number] = trial
        return trial

    def _adopt(self, number: int) -> Trial:
        frozen = self.study.get_trials(deepcopy=False)[number]
        # It may have died before its settings were drawn.
        place = sum(trial.number < number for trial in self._proposed())
        self.study.sampler = _sampler(self.config, place)
        self.live[number] = Trial(self.study, frozen._trial_id)
        return self.live[number]

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
        curve = sorted(trial.intermediate_values.items())
        loss = trial.value if trial.value is not None or not curve else curve[-1][1]
        hyperparameters = {
            name: trial.params.get(name) for name in ("lr", "weight_decay", "decay", "huber_c")
        }
        return {
            "number": trial.number,
            "hyperparameters": hyperparameters,
            "width": self.config.model.width,
            "seed": self.seed(trial),
            "status": trial.user_attrs.get("status", "failed"),
            "loss": finite(loss),
            "tokens": trial.user_attrs.get("tokens", 0),
            "seconds": trial.user_attrs.get("seconds", 0.0),
            "confirms": trial.user_attrs.get("confirms"),
            "error": trial.user_attrs.get("error"),
            "curve": [list(point) for point in curve],
        }


def _difference(name: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """Return the path of the first difference, and both values."""
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next((key for key in now if was.get(key) != now[key]), None)
        if inner is not None:
            return _difference(f"{name}.{inner}", was.get(inner), now[inner])
    return name, was, now


_MAY_CHANGE = {"data", "trials", "concurrency", "gpus_per_trial", "finalists", "seeds"}


def require_folder(out: Path, *, resume: bool) -> None:
    """Make the folder `out`, or raise a ConfigError where it holds another sweep or cannot be written."""
    exists = (out / "study.db").exists()
    if exists and not resume:
        raise ConfigError(
            f"out: {out} holds a sweep already; add --resume to go on with it, or name another folder"
        )
    if resume and not exists:
        raise ConfigError(f"out: {out} holds no sweep to resume")
    if (out / "plan.json").exists():
        raise ConfigError(f"out: {out} holds a target run; name another folder")
    if not exists and (out / "recipe.json").exists():
        raise ConfigError(f"out: {out} holds a recipe that no sweep in it made; name another folder")
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error.strerror})") from None


def stored_config(out: Path) -> SweepConfig:
    """Return the configuration of the sweep in `out`.

    Raises:
        ConfigError: where there is none, or the study cannot be read.
    """
    require_folder(out, resume=True)
    return SweepConfig.parse(_loaded(out).user_attrs["config"], where=str(out / "study.db"))


def _created(out: Path) -> optuna.Study:
    return optuna.create_study(storage=_storage(out), study_name=STUDY, direction="minimize")


def _loaded(out: Path) -> optuna.Study:
    try:
        study = optuna.load_study(storage=_storage(out), study_name=STUDY)
        study.user_attrs["config"]
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"out: {out / 'study.db'} cannot be read as a sweep's study ({reason})") from error
    return study


def _storage(out: Path) -> str:
    return f"sqlite:///{out / 'study.db'}"


def _pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    first = max(1, round(FIRST_RUNG * config.horizon.steps))
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=REDUCTION)


def _sampler(config: SweepConfig, place: int) -> optuna.samplers.BaseSampler:
    seed = int(np.random.SeedSequence((config.seed, place)).generate_state(1)[0])
    startup = min(10, max(4, config.trials // 3))
    with warnings.catch_warnings():
        # `group` handles a coefficient that is drawn only on one arm; it is marked experimental.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=startup)
