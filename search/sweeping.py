"""The sweep: Optuna proposes, Ray Tune executes, the ledger remembers."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.data import absolute_source, open_tokens
from widthwise.proxies.validation import RunError
from widthwise.search.cluster import ray_session, require_ray
from widthwise.search.config import SweepConfig
from widthwise.search.ledger import MAX_FAILURES, Ledger
from widthwise.search.progress import Progress


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
            "losses": {str(seed): _finite(loss) for seed, loss in self.losses.items()},
            "mean": _finite(self.mean),
            "spread": self.spread,
        }

    @property
    def mean(self) -> float:
        """Mean loss over the seeds."""
        return statistics.fmean(self.losses.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None from a single one, or where one diverged."""
        if len(self.losses) < 2 or not math.isfinite(self.mean):
            return None
        return statistics.stdev(self.losses.values())


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
        if not ledger.is_finished():
            _run(ledger, address, show_progress)
        return SweepResult(
            config=config,
            finalists=_finalists(ledger),
            records=ledger.records(),
            finished=ledger.is_finished(),
            seconds=time.perf_counter() - started,
            data_fingerprint=tokens.fingerprint,
        )
    finally:
        ledger.close()


def _run(ledger: Ledger, address: str | None, show_progress: bool) -> None:
    with (
        Progress(ledger, enabled=show_progress) as progress,
        ray_session(address, cpus=ledger.config.concurrency) as ray,
    ):
        # Here, because what Ray reads on import the session sets.
        from widthwise.search.tuning import run_trials

        run_trials(ledger, ray.cluster_resources(), progress)
    if len(ledger.failures) >= MAX_FAILURES:
        raise RunError(f"{len(ledger.failures)} trials failed, the last with: {ledger.failures[-1]}")


def _finalists(ledger: Ledger) -> list[Finalist]:
    finalists = []
    for trial in ledger.finalists():
        runs = [trial, *ledger.confirmations(trial.number)]
        # A finalist that diverges with another seed is no finalist: its mean is infinite.
        losses = {ledger.seed(run): run.value for run in runs if run.value is not None}
        hyperparameters = ledger.hyperparameters(trial)
        finalists.append(Finalist(number=trial.number, hyperparameters=hyperparameters, losses=losses))
    if ledger.is_finished() and not any(math.isfinite(finalist.mean) for finalist in finalists):
        raise RunError("no trial completed with every seed: all diverged; lower the bounds of space.lr")
    return sorted(finalists, key=lambda finalist: finalist.mean)


def _finite(loss: float) -> float | None:
    """Return a loss as JSON can say it: None where the run diverged."""
    return loss if math.isfinite(loss) else None
