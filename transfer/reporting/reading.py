"""The folders of sweeps, checks and target runs, read for a report; a torn last line is forgiven.

A job that still runs may be writing the last line of a ``.jsonl`` file while we read it. Any other damage is
an error: a report that silently skips lines would show other numbers than the run had.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from widthwise.proxies.files import LOCK, is_locked, read_json
from widthwise.proxies.validation import ConfigError, Record
from widthwise.search import SweepConfig
from widthwise.search.front import front
from widthwise.search.names import GRID_STUDY, STUDIES, SWEEP_STUDY
from widthwise.transfer.recipe import SCHEMA, Recipe
from widthwise.transfer.reporting.formats import (
    AlarmLine,
    Evidence,
    MetricsLine,
    PlanFile,
    ResultFile,
    TrialLine,
)
from widthwise.transfer.watching.records import Watch
from widthwise.transfer.watching.telling import first_of_each

if TYPE_CHECKING:
    from widthwise.transfer.checking.running import CheckResult

_CHECK_FILE = "check.json"
_SWEEP_FILES = ("trials.jsonl", *SWEEP_STUDY)
_RUN_FILES = ("plan.json", "metrics.jsonl", "result.json")

BASELINE_RULE = "sp"
"""The rule that carries the proxy's values over as they are: what a plan is measured against."""


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """A sweep: finished trials by number, and once there is one the recipe with what it says of the sweep."""

    name: str
    folder: Path
    trials: list[TrialLine]
    recipe: Recipe | None
    evidence: Evidence
    config: SweepConfig | None

    @property
    def proposals(self) -> list[TrialLine]:
        """The sampler's own trials, without the repetitions of finalists and the fitted minimum."""
        return [trial for trial in self.trials if trial.confirms is None and not trial.fitted]

    @property
    def whole(self) -> list[TrialLine]:
        """The proposals of the longest horizon: all, where it is not searched."""
        longest = max((trial.horizon or 0 for trial in self.proposals), default=0)
        # What says nothing of it is of a sweep that has only one, or never began.
        return [trial for trial in self.proposals if trial.horizon in (None, longest)]

    @property
    def front(self) -> list[dict[str, Any]]:
        """The least loss against tokens, `widthwise.search.front.front`; empty where the horizon is not searched."""
        searched = len(self.whole) < len(self.proposals)
        return front(trial.model_dump() for trial in self.proposals) if searched else []

    @property
    def best(self) -> TrialLine | None:
        """The completed proposal of the whole horizon with the lowest loss."""
        scored = [(t.loss, t.number, t) for t in self.whole if t.loss is not None and t.status == "completed"]
        return min(scored)[2] if scored else None


@dataclass(frozen=True, kw_only=True)
class CheckFolder:
    """A finished check."""

    name: str
    folder: Path
    result: "CheckResult"

    @property
    def recipe(self) -> Recipe:
        """What was checked, without its evidence."""
        return self.result.recipe


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A target run: what was planned, its metrics by step, the result once there is one, and what it is watched by."""

    name: str
    folder: Path
    recipe: Recipe | None
    plan: PlanFile | None
    metrics: list[MetricsLine]
    result: ResultFile | None
    watch: Watch | None = None
    alarms: tuple[AlarmLine, ...] = ()

    @property
    def first_alarms(self) -> list[dict[str, Any]]:
        """The first alarm of every quantity and kind."""
        return first_of_each(alarm.model_dump() for alarm in self.alarms)

    @property
    def rule(self) -> str:
        """Name of the scaling rule, or ``unknown``."""
        stated = (self.result and self.result.rule) or (self.plan and self.plan.rule)
        return stated or "unknown"

    @property
    def width(self) -> int | None:
        """The target's width, where any file says it."""
        if self.result and self.result.width:
            return self.result.width
        return self.plan.model.width if self.plan else None

    @property
    def status(self) -> str:
        """How the run ended, or ``in progress``, or ``interrupted`` where nobody works at it any more."""
        if self.result:
            return self.result.status
        begun = (self.folder / LOCK).exists()
        return "interrupted" if begun and not is_locked(self.folder) else "in progress"

    @property
    def loss(self) -> float | None:
        """The last validation loss in nats per token; None before the first and after divergence."""
        if self.result:
            return self.result.loss
        return self.metrics[-1].loss if self.metrics else None

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        if self.result:
            return self.result.tokens
        return self.metrics[-1].tokens if self.metrics else 0


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything reportable in `folder`, by name, the baselines last."""

    folder: Path
    sweeps: list[SweepFolder]
    runs: list[RunFolder]
    checks: list[CheckFolder]


def read_contents(folder: Path, on_left_out: Callable[[str], object] | None = None) -> Contents:
    """Read `folder` and its direct subfolders, but those whose files are another program's, and unfinished checks.

    `on_left_out` is called with the reason for each of these.

    Raises:
        ConfigError: there is nothing to report, or a file is damaged.
    """
    leave_out = on_left_out or (lambda reason: None)
    if not folder.is_dir():
        raise ConfigError(f"folder: {folder} is not a folder")
    try:
        places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    except OSError as error:
        raise ConfigError(f"folder: {folder} cannot be read ({error.strerror})") from None
    sweeps, runs, checks = [], [], []
    for place in places:
        try:
            sweeps += [_sweep(place)] if _holds(place, _SWEEP_FILES) else []
            runs += [read_run(place)] if _holds(place, _RUN_FILES) else []
            checks += [_check(place)] if _holds(place, (_CHECK_FILE,)) else []
        except ConfigError as error:
            if place == folder or _is_ours(place):
                raise
            leave_out(str(error))
    # What a plan is compared with comes after it.
    runs.sort(key=lambda run: run.rule == BASELINE_RULE)
    unfinished = [f"the check in {place} has not finished" for place in places if _is_unfinished_check(place)]
    if not (sweeps or runs or checks):
        if unfinished:
            raise ConfigError(f"folder: {unfinished[0]}")
        raise ConfigError(f"folder: {folder} holds neither a sweep nor a finished check nor a target run")
    for one in unfinished:
        leave_out(one)
    return Contents(folder=folder, sweeps=sweeps, runs=runs, checks=checks)


def _holds(place: Path, names: tuple[str, ...]) -> bool:
    return any((place / name).is_file() for name in names)


def _is_unfinished_check(place: Path) -> bool:
    return _holds(place, GRID_STUDY) and not _holds(place, (_CHECK_FILE,))


def _is_ours(place: Path) -> bool:
    """Tell whether a folder holds a study, or a recipe by its schema: as every sweep, check and target run does."""
    try:
        schema = read_json(place / "recipe.json", "a recipe").get("schema")
    except ConfigError:
        schema = None
    return schema == SCHEMA or _holds(place, tuple(STUDIES))


def _sweep(place: Path) -> SweepFolder:
    recipe = _recipe(place)
    where = place / "recipe.json"
    evidence = Evidence.parse((recipe and recipe.evidence) or {}, where=f"{where}: evidence")
    config = ((recipe and recipe.provenance) or {}).get("config")
    trials = {trial.number: trial for trial in _lines(place / "trials.jsonl", TrialLine)}
    return SweepFolder(
        name=place.resolve().name,
        folder=place,
        trials=[trials[number] for number in sorted(trials)],
        recipe=recipe,
        evidence=evidence,
        config=None if config is None else SweepConfig.parse(config, where=f"{where}: provenance.config"),
    )


def _check(place: Path) -> CheckFolder:
    # It brings torch along.
    from widthwise.transfer.checking.recorded import read_check

    return CheckFolder(name=place.resolve().name, folder=place, result=read_check(place / _CHECK_FILE))


def read_run(place: Path) -> RunFolder:
    """Read a target run's folder; a ConfigError names what is damaged in it."""
    # A resumed run repeats the steps after its checkpoint: what it says last holds.
    metrics = {line.step: line for line in _lines(place / "metrics.jsonl", MetricsLine)}
    return RunFolder(
        name=place.resolve().name,
        folder=place,
        recipe=_recipe(place),
        plan=_record(place / "plan.json", PlanFile, "a plan"),
        metrics=[metrics[step] for step in sorted(metrics)],
        result=_record(place / "result.json", ResultFile, "a run's result"),
        watch=_record(place / "bands.json", Watch, "a run's bands"),
        alarms=tuple(_lines(place / "alarms.jsonl", AlarmLine)),
    )


def _recipe(place: Path) -> Recipe | None:
    path = place / "recipe.json"
    return Recipe.load(path) if path.exists() else None


L = TypeVar("L", bound=Record)


def _record(path: Path, cls: type[L], what: str) -> L | None:
    return cls.parse(read_json(path, what), where=str(path)) if path.exists() else None


def _lines(path: Path, cls: type[L]) -> Iterator[L]:
    if not path.exists():
        return
    try:
        *whole, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(whole, start=1):
        yield cls.parse(_object(line, f"{path}: line {number}"), where=f"{path}: line {number}")
    if torn:
        # A complete object that lacks only its newline counts; half of one is a job at work.
        try:
            document = _object(torn, str(path))
        except ConfigError:
            return
        yield cls.parse(document, where=f"{path}: line {len(whole) + 1}")


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        # Python writes NaN and Infinity for the loss of a run that diverged.
        document = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: not valid JSON") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: must be an object")
    return document
