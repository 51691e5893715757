"""The sweep: Optuna proposes, Ray Tune executes, the ledger remembers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.data import absolute_source
from widthwise.proxies.outcome import finite
from widthwise.proxies.validation import RunError
from widthwise.search.config import SweepConfig
from widthwise.search.executing import Placement, execute
from widthwise.search.fitting import Fit
from widthwise.search.folders import nothing_left
from widthwise.search.front import front, loss_of
from widthwise.search.ledger import Ledger
from widthwise.search.progress import say
from widthwise.search.status import standing_of
from widthwise.search.storage import Storage
from widthwise.search.trackers import require_trackers

# assumed: so close to an end of its range, as a share of the range's logarithm, a best value may lie beyond it.
EDGE = 0.05


@dataclass(frozen=True, kw_only=True)
class SeedLosses:
    """What one setting came to with several seeds.

    The setting was chosen for its loss with the first seed, which flatters it: of many settings, the best one is
    also a lucky one. Its losses with the other seeds are not chosen, so that finalists are compared by these.

    Attributes:
        losses: validation losses in nats per token, by seed, the one that the setting was chosen on first;
            infinite where the run diverged.
    """

    losses: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        """Return the losses and what is made of them as plain data; None for an infinite loss."""
        return {
            "losses": {str(seed): finite(loss) for seed, loss in self.losses.items()},
            "mean": finite(self.mean),
            "confirmed": finite(self.confirmed),
            "spread": self.spread,
        }

    @property
    def mean(self) -> float:
        """Mean loss over all seeds."""
        return statistics.fmean(self.losses.values())

    @property
    def confirmed(self) -> float | None:
        """Mean loss over the seeds that the setting was not chosen on; None where there are none."""
        _, *others = self.losses.values()
        return statistics.fmean(others) if others else None

    @property
    def score(self) -> float:
        """What finalists are compared by, the lower the better: `confirmed`, else `mean`."""
        return self.mean if self.confirmed is None else self.confirmed

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None from a single one, or where one diverged."""
        if len(self.losses) < 2 or not math.isfinite(self.mean):
            return None
        return statistics.stdev(self.losses.values())


@dataclass(frozen=True, kw_only=True)
class Finalist(SeedLosses):
    """One of a sweep's best settings, tried with several seeds.

    Attributes:
        number: its first trial's.
        fitted: whether it is the minimum of the quadratic, and not a proposal.
        courses: by seed, of the runs that measured diagnostics, `widthwise.proxies.outcome.course`.
    """

    number: int
    hyperparameters: Hyperparameters
    fitted: bool = False
    courses: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the finalist as plain data."""
        hyperparameters = self.hyperparameters.model_dump(mode="json")
        head = {"number": self.number, "fitted": self.fitted, "hyperparameters": hyperparameters}
        return {**head, **super().as_json()}


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        config: what was swept.
        finalists: the recommended one first, then by mean loss over the seeds that they were not chosen on.
        fit: the quadratic through the best trials; its minimum is among the finalists where it is determined.
        records: every finished trial, as in ``trials.jsonl``.
        finished: False where the sweep was interrupted and can be resumed.
        seconds: what all trials took, one after the other.
        ended: when the last trial ended; None before any did.
        data_fingerprint: identifies the tokens.
        standing: how the study stands, as `widthwise.search.status.study_status` tells it.
    """

    config: SweepConfig
    finalists: list[Finalist]
    fit: Fit
    records: list[dict[str, Any]]
    finished: bool
    seconds: float
    ended: datetime | None
    data_fingerprint: str
    standing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Finalist:
        """The recommended finalist: the fitted minimum, where another is not better beyond their seeds' scatter."""
        return self.finalists[0]

    @property
    def luckiest(self) -> int | None:
        """Number of the proposal with the lowest loss."""
        return min(self._completed, key=lambda one: one["loss"])["number"] if self._completed else None

    @property
    def _completed(self) -> list[dict[str, Any]]:
        """The proposals that completed the whole horizon."""
        whole = self.config.horizon.tokens
        return [
            one
            for one in self.records
            if one["status"] == "completed"
            and one["confirms"] is None
            and not one["fitted"]
            and one["horizon"] == whole
        ]

    @property
    def front(self) -> list[dict[str, Any]] | None:
        """The least loss against the tokens it takes, `widthwise.search.front.front`; None for a loss alone."""
        return None if self.config.min_tokens is None else front(self.records)

    @property
    def best_by_decay(self) -> dict[str, float | None]:
        """The lowest loss of each form of decay, with the seed that all proposals share; None where none completed.

        A gain of Huber's is one over AdamW (``l2``) at AdamW's own best λ, not over Huber's λ without Huber.
        """
        return {
            decay: min(
                (one["loss"] for one in self._completed if one["hyperparameters"]["decay"] == decay),
                default=None,
            )
            for decay in self.config.space.decay
        }

    @property
    def at_edge(self) -> list[str]:
        """The searched hyperparameters whose best value lies within `EDGE` of an end of its range."""
        best, space = self.best.hyperparameters, self.config.space
        values = {"lr": best.lr, "weight_decay": best.weight_decay, "huber_c": best.huber_c}
        return [name for name, value in values.items() if value and _is_at_edge(value, *getattr(space, name))]

    def provenance(self) -> dict[str, Any]:
        """Return what produced the result: the whole configuration, data, seed, versions and time."""
        return {
            "data": self.config.data,
            "data_fingerprint": self.data_fingerprint,
            "seed": self.config.seed,
            "seconds": round(self.seconds, 1),
            "finished": self.ended and self.ended.astimezone(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("widthwise", "torch", "mup", "ray", "optuna")},
            "config": self.config.model_dump(mode="json"),
        }


def sweep(
    config: SweepConfig,
    out: Path,
    *,
    resume: bool = False,
    storage: Storage | None = None,
    address: str | None = None,
    show_progress: bool = True,
) -> SweepResult:
    """Tune η, λ and c on a proxy.

    Where Ray's head has not answered for a minute, this ends the process with status 1, after a line on standard error:
    what waits for the head cannot be interrupted.

    Args:
        config: what to sweep.
        out: folder for ``study.db``, ``trials.jsonl`` and the trials' checkpoints.
        resume: go on with the sweep in `out`, finished trials kept and interrupted ones continued.
        storage: the database for the study; None is ``study.db``, or the database that a resumed folder names.
        address: a Ray cluster's ``host:port`` or ``auto``; None starts a local Ray.
        show_progress: draw a progress bar on standard error.

    Returns:
        The result; ``finished`` is False after Ctrl-C or SIGTERM.

    Raises:
        ConfigError: for a user's mistake, before anything is written.
        RunError: where no trial completed, or trials keep failing or cannot go on: there is no room for a checkpoint
            (`DiskFull`), or the folder, or what Ray runs on, has gone.
    """
    config = config.model_copy(update={"data": absolute_source(config.data)})
    tokens = config.open_data()
    placement = Placement(
        address=address, concurrency=config.concurrency, gpus_per_trial=config.gpus_per_trial
    )
    placement.require()
    require_trackers(config.log)
    with nothing_left(out):
        ledger = Ledger(config, out, resume=resume, storage=storage)
    try:
        ledger.require_data(tokens.fingerprint)
        if not ledger.is_finished():
            say(
                f"data: {config.data}, {tokens.train_tokens + tokens.validation_tokens:,} tokens",
                show_progress,
            )
            execute(
                ledger,
                placement,
                show_progress=show_progress,
                trackers=config.log,
                tokens_per_step=config.horizon.batch_tokens,
            )
        return result_of(ledger, tokens.fingerprint)
    finally:
        ledger.close()


def result_of(ledger: Ledger, data_fingerprint: str) -> SweepResult:
    """Return what stands in a sweep's books; the same for the same books, whenever it is asked."""
    records = ledger.records()
    ends = [trial.datetime_complete for trial in ledger.study.get_trials(deepcopy=False)]
    return SweepResult(
        config=ledger.config,
        finalists=_finalists(ledger),
        fit=ledger.fit(),
        records=records,
        finished=ledger.is_finished(),
        seconds=sum(record["seconds"] for record in records),
        ended=max((end for end in ends if end is not None), default=None),
        data_fingerprint=data_fingerprint,
        standing=standing_of(ledger.study, is_running=False),
    )


def _finalists(ledger: Ledger) -> list[Finalist]:
    """Return the finalists, the recommended one first."""
    fitted = ledger.fitted()
    candidates = [*ledger.finalists(), *([fitted] if fitted and fitted.state.is_finished() else [])]
    finalists = [_finalist(ledger, trial, trial is fitted) for trial in candidates]
    if ledger.is_finished() and not any(math.isfinite(finalist.mean) for finalist in finalists):
        of = f" of {ledger.config.horizon.tokens:,} tokens" if ledger.config.min_tokens else ""
        raise RunError(f"no trial{of} completed with every seed: all diverged; lower the bounds of space.lr")
    ordered = sorted(finalists, key=lambda finalist: finalist.score)
    for finalist in ordered:
        if finalist.fitted and finalist.score <= ordered[0].score + _scatter(finalists):
            return [finalist, *(other for other in ordered if other is not finalist)]
    return ordered


def _finalist(ledger: Ledger, trial: FrozenTrial, fitted: bool) -> Finalist:
    runs = [trial, *ledger.confirmations(trial.number)]
    # A finalist that diverges with another seed is no finalist: its score is infinite.
    losses = {ledger.seed(run): loss for run in runs if (loss := loss_of(run)) is not None}
    measured = {ledger.seed(run): run.user_attrs.get("measured", {}).get("course") for run in runs}
    return Finalist(
        number=trial.number,
        hyperparameters=ledger.hyperparameters(trial),
        losses=losses,
        fitted=fitted,
        courses={seed: course for seed, course in measured.items() if course},
    )


def _scatter(finalists: list[Finalist]) -> float:
    """Return the standard error of the difference of two finalists' scores, from all their seeds together."""
    spreads = [finalist.spread for finalist in finalists if finalist.spread is not None]
    if not spreads:
        return 0.0
    others = max(len(finalist.losses) for finalist in finalists) - 1
    return math.sqrt(statistics.fmean(spread**2 for spread in spreads) * 2 / others)


def _is_at_edge(value: float, low: float, high: float) -> bool:
    """Return whether a value lies close to an end of its log-uniform range; a range of one value has no ends."""
    if low == high:
        return False
    place = math.log(value / low) / math.log(high / low)
    return not EDGE < place < 1 - EDGE
