"""Given runs, executed as a sweep's trials are: on Ray Tune's reused workers, the study as the truth, resumable.

Which runs are wanted is a function of what came of the others, so that a caller can work in rounds and stop as soon
as its question is answered.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from optuna.trial import FrozenTrial, Trial, TrialState

from widthwise.proxies.data import absolute_source, open_tokens
from widthwise.proxies.runs import RunSpec
from widthwise.proxies.validation import ConfigError
from widthwise.search.books import Books, Next, Run
from widthwise.search.executing import Placement, execute
from widthwise.search.folders import Layout, require_content
from widthwise.search.names import GRID_STUDY, SWEEP_STUDY
from widthwise.search.outlook import Outlook
from widthwise.search.storage import Storage

__all__ = ["Outcome", "Placement", "Run", "run_all"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run.

    Attributes:
        status: how it ended.
        loss: its last validation loss in nats per token; None where it diverged.
        tokens: trained on.
        seconds: that the run took, its worker's start not counted.
        curve: (step, validation loss) of its evaluations.
        measured: what it measured besides, as JSON: ``parameters``, ``flops``, ``train_loss``, ``grad_norm``, and
            where its options ask for them ``diagnostics`` (of the last evaluation), ``course`` (by kind, of every
            evaluation) and ``coordinates``.
    """

    status: Literal["completed", "diverged"]
    loss: float | None
    tokens: int
    seconds: float
    curve: tuple[tuple[int, float], ...]
    measured: Mapping[str, Any]


Outcomes = Mapping[str, Outcome]
More = Callable[[Outcomes], Sequence[Run]]


def run_all(
    more: More,
    out: Path,
    *,
    config: Mapping[str, Any],
    data: str,
    what: str = "grid",
    resume: bool = False,
    storage: Storage | None = None,
    placement: Placement | None = None,
    show_progress: bool = True,
) -> dict[str, Outcome]:
    """Carry out the runs that `more` wants, until it wants no others.

    Args:
        more: given the outcomes of all runs that have ended, by key, returns the runs that are wanted, in the order
            in which they should start; those that have ended or are running are passed over. It is called with no
            outcomes first, whose runs the data must suffice for, and whenever a run has ended; it must answer the
            same to the same outcomes.
        out: folder for ``runs.db``, ``runs.jsonl`` and the checkpoints of unfinished runs.
        config: JSON that says what the runs are for; a resumed folder must have been started with the same.
        data: what all runs train on, in place of what their specs say.
        what: what the runs are in a word, for messages.
        resume: go on with the runs in `out`, finished ones kept and interrupted ones continued.
        storage: the database for the study; None is ``runs.db``, or the database that a resumed folder names.
        placement: the Ray cluster and how many runs at a time; None is a local Ray, one per core or GPU.
        show_progress: draw a progress bar on standard error.

    Returns:
        The outcomes by key, in the order in which the runs were started.

    Raises:
        ConfigError: for a user's mistake, before any run is started.
        RunError: where runs keep failing or cannot go on, as of `sweep`; those that ended are kept.
        KeyboardInterrupt: after Ctrl-C, when everything has been put away: what ended is kept, `resume` goes on.
    """
    placement = placement or Placement()
    source = absolute_source(data)
    fingerprint = _fingerprint(source, more({}))
    placement.require()
    grid = Grid(more, out, config, data=source, what=what, resume=resume, storage=storage)
    try:
        grid.require_data(fingerprint)
        if not grid.is_finished():
            execute(grid, placement, show_progress=show_progress)
        if not grid.is_finished():
            raise KeyboardInterrupt
        return grid.outcomes()
    finally:
        grid.close()


def kept_outcomes(
    out: Path,
    *,
    config: Mapping[str, Any],
    what: str = "grid",
    resume: bool = False,
    storage: Storage | None = None,
) -> dict[str, Outcome]:
    """Return what came of the runs in a folder that have ended, for a caller that runs no more.

    With `resume` a folder without runs is allowed, too: there is nothing that could be lost.

    Raises:
        ConfigError: as `run_all` refuses the folder.
    """
    layout = _layout(what)
    if not (resume and layout.is_in(out)):
        require_content(out, layout, resume=False)
        return {}
    grid = Grid(lambda _: [], out, config, data="", what=what, resume=True, storage=storage)
    try:
        return grid.outcomes()
    finally:
        grid.close()


def _fingerprint(source: str, runs: Sequence[Run]) -> str:
    """Return the fingerprint of the tokens; raise a ConfigError where they do not suffice for one of the runs."""
    if not runs:
        return open_tokens(source).fingerprint
    needs = {
        (one.spec.model.vocab_size, one.spec.model.context, one.spec.horizon.batch_tokens) for one in runs
    }
    for vocab_size, context, batch_tokens in needs:
        tokens = open_tokens(source, vocab_size=vocab_size)
        tokens.require(context, batch_tokens // context)
    return tokens.fingerprint


def _layout(what: str) -> Layout:
    return Layout(
        what=what,
        study=GRID_STUDY,
        records="runs.jsonl",
        folder="runs",
        foreign=dict.fromkeys(SWEEP_STUDY, "a sweep"),
    )


class Grid(Books):
    """The books of given runs: a trial of the study holds what is to be run, and then what came of it."""

    def __init__(
        self,
        more: More,
        out: Path,
        config: Mapping[str, Any],
        *,
        data: str,
        what: str = "grid",
        resume: bool,
        storage: Storage | None = None,
    ) -> None:
        """Create the folder's books, or open them with `resume`; errors as in `Books`."""
        self.more, self.data = more, data
        self._told = -1
        self._runs: Sequence[Run] = ()
        super().__init__(out, _layout(what), config, resume=resume, storage=storage)

    def outlook(self) -> Outlook:
        """Return what is expected of the runs that have not ended, once one of each width among them has."""
        took: dict[int, list[float]] = {}
        for trial in self._trials(TrialState.COMPLETE):
            width = json.loads(trial.user_attrs["spec"])["model"]["width"]
            took.setdefault(width, []).append(trial.user_attrs["seconds"])
        ended = self.outcomes().keys()
        widths = [run.spec.model.width for run in self._wishes() if run.key not in ended]
        is_known = all(width in took for width in widths)
        return Outlook(len(widths), sum(fmean(took[width]) for width in widths) if is_known else None)

    def is_finished(self) -> bool:
        """Return whether nothing is left to run."""
        return not self._trials(TrialState.WAITING, TrialState.RUNNING) and not self._missing()

    def outcomes(self) -> dict[str, Outcome]:
        """Return what came of the runs that have ended, by key; failed ones are made up for and not among them."""
        return {
            trial.user_attrs["key"]: _outcome(self._record(trial))
            for trial in self._trials(TrialState.COMPLETE)
        }

    def run(self, trial: Trial) -> Run:
        """Return what is to be run for `trial`, as it was wanted first."""
        stored = trial.user_attrs
        spec = RunSpec.model_validate_json(stored["spec"]).model_copy(update={"data": self.data})
        return Run(key=stored["key"], spec=spec, seed=stored["seed"], options=stored["options"])

    def label(self, record: Mapping[str, Any]) -> str:
        """Return what a record's run is called on the terminal."""
        return str(record["key"])

    def _wanted(self) -> Next:
        missing = self._missing()
        if not missing:
            return "wait" if self._trials(TrialState.RUNNING) else "finished"
        run = missing[0]
        # Enqueued, because that is one transaction: no trial is there without its run.
        stored = {"key": run.key, "spec": run.spec.model_dump_json(), "seed": run.seed}
        self._enqueue({}, {**stored, "options": dict(run.options)})
        return self._ask()

    def _missing(self) -> list[Run]:
        keys = self._keys()
        return [run for run in self._wishes() if run.key not in keys]

    def _wishes(self) -> Sequence[Run]:
        """Ask `more`, once for every number of outcomes."""
        ended = len(self._trials(TrialState.COMPLETE))
        if ended != self._told:
            self._runs, self._told = _checked(self.more(self.outcomes())), ended
        return self._runs

    def _keys(self) -> set[str]:
        """Return the keys of the runs that have ended, are running or are enqueued."""
        return {trial.user_attrs["key"] for trial in self._trials() if trial.state != TrialState.FAIL}

    def _record(self, trial: FrozenTrial) -> dict[str, Any]:
        stored = trial.user_attrs
        return {
            "key": stored["key"],
            "seed": stored["seed"],
            **super()._record(trial),
            "measured": stored.get("measured", {}),
        }


def _checked(runs: Sequence[Run]) -> Sequence[Run]:
    keys = [run.key for run in runs]
    for key in keys:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", key):
            raise ConfigError(f"key: must be letters, digits, '.', '_' and '-', got {key!r}")
        if keys.count(key) > 1:
            raise ConfigError(f"key: must be unique, got {key!r} twice")
    return runs


def _outcome(record: Mapping[str, Any]) -> Outcome:
    return Outcome(
        status=record["status"],
        loss=record["loss"] if record["status"] == "completed" else None,
        tokens=record["tokens"],
        seconds=record["seconds"],
        curve=tuple((step, loss) for step, loss in record["curve"]),
        measured=record["measured"],
    )
