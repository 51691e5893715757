"""A study and its trials in one folder: the truth that Ray Tune's executions are told from and told to.

Which trial comes next and what is still missing are functions of the study alone, so that what was killed at any
moment goes on where it was. Ray Tune only executes (see ``tuning``); a sweep's books are `Ledger`, those of given
runs `Grid`.
"""

import json
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from widthwise.proxies.files import is_unwritable, locked, system_error, write_atomic
from widthwise.proxies.outcome import finite
from widthwise.proxies.runs import RunSpec
from widthwise.proxies.validation import ConfigError, RunError, difference, first_line
from widthwise.search.folders import Layout, identify, opened, require_folder
from widthwise.search.front import curve_of, loss_of
from widthwise.search.outlook import Outlook
from widthwise.search.storage import Storage

# After so many failures in one session something is wrong that no further trial will cure.
MAX_FAILURES = 3

Next = Trial | Literal["wait", "finished"]
Status = Literal["running", "completed", "stopped", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run that is to be carried out.

    Attributes:
        key: its name, unique among the runs of a folder; letters, digits, ``.``, ``_`` and ``-``.
        spec: what is trained.
        seed: decides initialisation and batches.
        options: how: further fields of `RunOptions`, as JSON has them (``evaluations``, ``validation_batches``), and
            ``coordinates``, whether `coordinate_deltas` are measured besides.
    """

    key: str
    spec: RunSpec
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)


def trial_name(number: int) -> str:
    """Return what a trial's folder, its run and its curves in trackers are called."""
    return f"trial_{number:04d}"


class Books(ABC):
    """A study and its trials, of one folder, locked against a second process.

    Attributes:
        out: the folder, with the study or its place, a file of records, and a folder for each unfinished trial's
            checkpoint.
        live: trials handed out and not yet finished, by number.
        failures: errors of the trials that failed since the books were opened.
        places: trials that can run at a time, as who runs them knows: a live one may wait for a place.
    """

    def __init__(
        self,
        out: Path,
        layout: Layout,
        identity: Mapping[str, Any],
        *,
        may_change: frozenset[str] = frozenset(),
        resume: bool,
        storage: Storage | None = None,
    ) -> None:
        """Create the folder's books, or open them with `resume`.

        Args:
            out: the folder.
            layout: what its files are called.
            identity: JSON that says what the books are about; a resumed folder must have been started with the same.
            may_change: fields of `identity` that a resumption may change.
            resume: open the books that the folder has.
            storage: the database for the study; None is SQLite's file, or the database that the folder names.

        Raises:
            ConfigError: where the folder holds something else, cannot be written, or is in use, or so the study.
        """
        self.out, self.layout, self._identity = out, layout, identity
        self.live: dict[int, Trial] = {}
        self.failures: list[str] = []
        self.places = 1
        # What the live trials have reported, and the trials as they were read after the last change: nobody else writes
        # them, and a database takes its time for every answer.
        self._curves: dict[int, dict[int, float]] = {}
        self._read: list[FrozenTrial] | None = None
        # The records of those that have ended, which nothing changes any more, and their lines in the file.
        self._ended: dict[int, dict[str, Any]] = {}
        self._lines: dict[int, str] = {}
        require_folder(out, layout, resume=resume, storage=storage)
        self._lock = ExitStack()
        self._lock.enter_context(locked(out))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.study, self._secure = self._lock.enter_context(
                opened(out, layout, identity, resume=resume, storage=storage)
            )
            self._agree(identity, may_change)
            self._orphans = [trial.number for trial in self._trials(TrialState.RUNNING)]
            self.write_records()
            self.tidy()
        except BaseException as error:
            self.close()
            if is_unwritable(error):
                why = first_line(system_error(error))
                raise ConfigError(f"out: {out} cannot be written ({why})") from error
            raise

    def require_data(self, fingerprint: str) -> None:
        """Raise a ConfigError where other tokens were trained on before; losses of two corpora do not compare."""
        known = self.study.user_attrs.get("data_fingerprint")
        if known not in (None, fingerprint):
            what = f"the {self.layout.what} in {self.out}"
            raise ConfigError(f"data: must hold the tokens that {what} was started with, but differs")
        self.study.set_user_attr("data_fingerprint", fingerprint)
        # Not before: a resumption that is refused changes nothing.
        identify(self.study, self.layout, self._identity)
        self._tell_outlook()

    def close(self) -> None:
        """Release the folder and the study."""
        self._lock.close()

    @abstractmethod
    def outlook(self) -> Outlook:
        """Return what is to come, as far as is known, and what it is expected to take."""

    @abstractmethod
    def run(self, trial: Trial) -> Run:
        """Return what is to be run for `trial`."""

    def sample(self) -> Run | None:
        """Return a run that takes as much memory as any of them, where that is known."""
        return None

    @abstractmethod
    def is_finished(self) -> bool:
        """Return whether nothing is left to run."""

    @abstractmethod
    def _wanted(self) -> Next:
        """Return the next trial where none was interrupted and none is enqueued."""

    def next(self) -> Next:
        """Return the next trial to run: an interrupted one, an enqueued one, or what else is wanted."""
        if len(self.failures) >= MAX_FAILURES:
            return "finished"
        if self._orphans:
            return self._adopt(self._orphans.pop(0))
        return self._ask() if self._trials(TrialState.WAITING) else self._wanted()

    def put_back(self, number: int) -> None:
        """Have `next` hand a live trial out once more, from its checkpoint: what ran it died."""
        del self.live[number], self._curves[number]
        self._orphans.append(number)

    def folder(self, number: int) -> Path:
        """Return the folder of a trial's checkpoint."""
        return self.out / self.layout.folder / trial_name(number)

    def report(self, number: int, step: int, loss: float) -> bool:
        """Record an intermediate loss; return whether the trial should stop, being behind the others."""
        trial, curve = self.live[number], self._curves[number]
        if not math.isfinite(loss):
            return False
        if step in curve:
            # Of a trial that was started again, which may have been killed before it had its answer.
            return step == max(curve) and self._is_behind(trial, step)
        curve[step] = loss
        self._keep(trial, step, loss)
        self._read = None
        return self._is_behind(trial, step)

    def finish(self, number: int, status: Status, outcome: Mapping[str, Any]) -> None:
        """Close a trial and remove its checkpoint: pruned if stopped, infinitely bad if diverged, or failed."""
        trial = self.live.pop(number)
        del self._curves[number]
        trial.set_user_attr("status", status)
        for name in ("tokens", "seconds", "error", "measured"):
            if name in outcome:
                trial.set_user_attr(name, outcome[name])
        if status == "failed":
            self.failures.append(str(outcome.get("error", "the worker died")))
            self._tell(trial, state=TrialState.FAIL)
        elif status == "stopped":
            self._tell(trial, state=TrialState.PRUNED)
        else:
            self._tell(trial, loss=math.inf if status == "diverged" else outcome["loss"])
        self._tell_outlook()
        self._secure()
        # Not before the study knows: until then a trial that is interrupted goes on from its checkpoint.
        shutil.rmtree(self.folder(number), ignore_errors=True)
        self.write_records()

    def require_there(self) -> None:
        """Raise a RunError where the folder has been removed or moved: what then goes wrong does not say so.

        A file system that fails just now may come back.
        """
        with suppress(OSError):
            if not self.layout.is_in(self.out):
                go_on = "go on with --resume where it is now"
                raise RunError(f"the {self.layout.what} in {self.out} is not there any more; {go_on}")

    def tidy(self) -> None:
        """Remove what lies in finished trials' folders: one that is stopped may write a checkpoint after its end."""
        for trial in self._trials():
            if trial.state.is_finished():
                shutil.rmtree(self.folder(trial.number), ignore_errors=True)

    def record(self, number: int) -> dict[str, Any]:
        """Return a trial, finished or not, as plain data."""
        return self._record(self._trials()[number])

    def records(self) -> list[dict[str, Any]]:
        """Return every finished trial as plain data."""
        ended = [trial for trial in self._trials() if trial.state.is_finished()]
        for trial in ended:
            if trial.number not in self._ended:
                self._ended[trial.number] = self._record(trial)
        return [self._ended[trial.number] for trial in ended]

    def label(self, record: Mapping[str, Any]) -> str:
        """Return what a record's trial is called on the terminal."""
        return f"trial {record['number']}"

    def write_records(self) -> None:
        """Write the file of records anew from the study: each finished trial stands in it exactly once."""
        for record in self.records():
            if record["number"] not in self._lines:
                self._lines[record["number"]] = json.dumps(record, allow_nan=False)
        lines = (f"{line}\n" for _, line in sorted(self._lines.items()))
        write_atomic(self.out / self.layout.records, "".join(lines))

    def _keep(self, trial: Trial, step: int, loss: float) -> None:
        """Store an intermediate loss."""
        trial.report(loss, step)

    def _values(self, trial: Trial, loss: float) -> tuple[float, ...]:
        """Return what the study is told of a trial that ended with `loss`."""
        return (loss,)

    def _is_behind(self, trial: Trial, step: int) -> bool:
        return False

    def _record(self, trial: FrozenTrial) -> dict[str, Any]:
        curve = sorted(curve_of(trial).items())
        loss = loss_of(trial)
        if loss is None and curve:
            loss = curve[-1][1]
        attributes = trial.user_attrs
        return {
            "number": trial.number,
            "status": attributes.get("status", "failed"),
            "loss": finite(loss),
            "tokens": attributes.get("tokens", 0),
            "seconds": attributes.get("seconds", 0.0),
            "error": attributes.get("error"),
            "curve": [list(point) for point in curve],
        }

    def _agree(self, identity: Mapping[str, Any], may_change: frozenset[str]) -> None:
        """Raise a ConfigError where a resumed study is about something else, but for what may change."""
        stored = self.study.user_attrs.get("config", {})
        for name, value in identity.items():
            # What a later version knows besides was not asked when the study was started.
            if name in stored and name not in may_change and stored[name] != value:
                where, was, now = difference(name, stored[name], value)
                rule = f"must be as the {self.layout.what} in {self.out} was started, {was}"
                raise ConfigError(f"{where}: {rule}, got {now}")
        if not stored:
            identify(self.study, self.layout, identity)

    def _tell_outlook(self) -> None:
        """Keep in the study what is to come, and when it ends, for who looks on from elsewhere."""
        outlook = self.outlook()
        left = outlook.seconds_left([], self.places)
        ends = None if left is None else time.time() + left
        self.study.set_user_attr("outlook", {"trials": outlook.trials, "ends": ends})

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials, or those in one of these states; a live one may lack what was drawn or set last."""
        if self._read is None:
            self._read = self.study.get_trials(deepcopy=False)
        return [trial for trial in self._read if not states or trial.state in states]

    def _ask(self) -> Trial:
        trial = self.study.ask()
        self._read = None
        # Of one of this number that a loss of power took out of the study.
        shutil.rmtree(self.folder(trial.number), ignore_errors=True)
        self.live[trial.number], self._curves[trial.number] = trial, {}
        return trial

    def _tell(self, trial: Trial, *, loss: float | None = None, state: TrialState | None = None) -> None:
        self.study.tell(trial, None if loss is None else self._values(trial, loss), state)
        self._read = None

    def _enqueue(self, parameters: dict[str, Any], attributes: dict[str, Any]) -> None:
        self.study.enqueue_trial(parameters, user_attrs=attributes)
        self._read = None

    def _adopt(self, number: int) -> Next:
        """Take over a trial that a dead process left running."""
        frozen = self._trials()[number]
        self.live[number] = Trial(self.study, frozen._trial_id)
        self._curves[number] = dict(curve_of(frozen))
        return self.live[number]
