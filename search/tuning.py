"""Ray Tune executes: it starts the books' trials on reused workers and reports back to the books.

``Tuner.restore`` and Ray's own OptunaSearch are not used: their snapshots lag, and they lose or repeat trials.
Every session starts a fresh Tune run over the same study instead.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from widthwise.proxies.validation import DiskFull, RunError
from widthwise.search.books import Books, Status
from widthwise.search.cluster import scratch_folder
from widthwise.search.executing import Placement
from widthwise.search.listening import Listener
from widthwise.search.nodes import NO_ROOM, local_death
from widthwise.search.packing import OUT_OF_MEMORY
from widthwise.search.silence import SECONDS_BETWEEN_LOOKS, Head
from widthwise.search.spares import Spares
from widthwise.search.trial import UNKEPT, trainable

# Times that a trial whose worker died is started again, from its last checkpoint. Tune's own retry would leave out
# a worker that dies between two trials, and counts some deaths twice.
RETRIES = 2


def run_trials(
    books: Books,
    placement: Placement,
    resources: Mapping[str, float],
    listeners: Sequence[Listener],
    warn: Callable[[str], None],
    end: Callable[[str], object],
) -> None:
    """Run the trials that the books want, on a cluster with `resources`, until they want no more or Ctrl-C.

    `warn` and `end` are called, from another thread, where Ray's head does not answer, as `not_for_ever` says.
    """
    share = _gpu_share(placement, resources.get("GPU", 0.0))
    capacity = max(1, _room(resources, share))
    limit = placement.concurrency or capacity
    # On the nodes of a cluster, where trials go on that lost theirs.
    most = 0 if placement.address is None else limit
    spares = Spares(lambda free: min(most, _room(free, share)))
    fuse = _Fuse()
    proposer = _Proposer(books, limit, capacity, listeners, fuse)
    with scratch_folder() as scratch, _told_as_failure(), Head(warn, end) as head:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": share}),
            tune_config=tune.TuneConfig(
                search_alg=proposer,
                scheduler=_Stopper(books, listeners, fuse, proposer.stopped),
                num_samples=-1,
                # All workers start at once then. One after the other, as else, the last may never come to be: a worker
                # that is free before the next one is there takes the trial that waits for that, which ends its start.
                max_concurrent_trials=limit,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                callbacks=[_Watch(fuse, spares, proposer, share, head, warn)],
            ),
        ).fit()


class _RayDied(BaseException):
    """The local Ray cannot go on; no Exception, because Tune would clean up with its help first."""


@contextmanager
def _told_as_failure() -> Iterator[None]:
    try:
        yield
    except _RayDied as death:
        raise RunError(f"{death}; what has ended is kept: go on with --resume") from None


class _Fuse:
    """Keeps what the books raised: Tune would take it for the trial's failure, and go on."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error


class _Unsaved:
    """Pickles to nothing: Tune saves its parts for a restore that is never made."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Watch(_Unsaved, tune.Callback):
    """Looks at the nodes, and ends the run where none is alive: Tune would wait for one for ever, and does not say so.

    It ends the run when the books cannot be kept or have gone, too, and when a process of the local Ray has died.
    """

    def __init__(
        self,
        fuse: _Fuse,
        spares: Spares,
        proposer: "_Proposer",
        share: float,
        head: Head,
        warn: Callable[[str], None],
    ) -> None:
        self.fuse, self.spares, self.proposer, self.share, self.head = fuse, spares, proposer, share, head
        self.warn = warn
        self.next_look = 0.0

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        if self.fuse.error:
            raise self.fuse.error
        if death := local_death():
            raise _RayDied(str(death))
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        self.proposer.books.require_there()
        nodes = self.head.nodes
        if nodes is None:
            return
        if not nodes:
            raise RunError("Ray's last node died; what has ended is kept: go on with --resume")
        room = sum(_room(node["Resources"], self.share) for node in nodes)
        if self.proposer.room and not room:
            self.warn(NO_ROOM)
        self.proposer.room = room
        # A trial that is about to start has no place on a node yet.
        if all(trial.status != Trial.PENDING for trial in trials):
            self.spares.look(nodes)


class _Proposer(_Unsaved, Searcher):
    """Hands the books' trials to Tune, and Tune's endings to the books.

    Attributes:
        limit: trials at a time, at most.
        room: trials that the cluster's nodes hold at a time.
        stopped: the evaluations at which live trials were stopped, by number.
    """

    def __init__(
        self, books: Books, limit: int, room: int, listeners: Sequence[Listener], fuse: _Fuse
    ) -> None:
        # No metric: Tune would refuse a result without it, and a failed trial has none.
        super().__init__()
        self.books, self.limit, self.room, self.listeners, self.fuse = books, limit, room, listeners, fuse
        self.stopped: dict[int, dict[str, Any]] = {}
        self.numbers: dict[str, int] = {}
        self.deaths: Counter[int] = Counter()

    def suggest(self, trial_id: str) -> Any:
        self.books.places = max(1, min(self.limit, self.room))
        with self.fuse.held():
            # Before a trial makes the folder anew.
            self.books.require_there()
        # Tune asks ahead for trials that cannot run yet; a proposal should know all results there are. One waits for a
        # place at most, so that a cluster that can grow does.
        if self.fuse.error or len(self.books.live) >= min(self.limit, self.room + 1):
            return None
        trial = self.books.next()
        if trial == "wait":
            return None
        if trial == "finished":
            return None if self.books.live else Searcher.FINISHED
        number = self.numbers[trial_id] = trial.number
        run = self.books.run(trial)
        for listener in self.listeners:
            listener.began(number)
        return {
            "number": number,
            "folder": str(self.books.folder(number).resolve()),
            "spec": run.spec.model_dump_json(),
            "options": {"seed": run.seed, **run.options},
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if self.fuse.error:
            return
        number = self.numbers.pop(trial_id)
        if number in self.stopped:
            # Whatever else the trial had come to by then: when it heard of it does not matter.
            result, error = {**self.stopped.pop(number), "status": "stopped"}, False
        if result and result["status"] == UNKEPT:
            with self.fuse.held():
                self.books.require_there()
                if result["full"]:
                    raise DiskFull(
                        f"the disk of {result['full']} is full; make room, and go on with --resume"
                    )
                raise RunError(f"{result['error']}; go on with --resume")
            return
        if error and self.deaths[number] < RETRIES:
            self.deaths[number] += 1
            self.books.put_back(number)
            for listener in self.listeners:
                listener.died(number)
            return
        outcome = dict(result or {})
        if "measured" in outcome:
            # A run that diverged measures NaN, which JSON cannot say.
            outcome["measured"] = json.loads(outcome["measured"], parse_constant=lambda _: None)
        status: Status = "failed" if error or not outcome else outcome["status"]
        with self.fuse.held():
            self.books.finish(number, status, outcome)
            if self.books.live and str(outcome.get("error", "")).startswith(OUT_OF_MEMORY):
                # Its neighbours had the memory: the setting is tried again among fewer, which ends with one alone.
                self.limit = min(self.limit, len(self.books.live))
                self.books.failures.pop()
            for listener in self.listeners:
                listener.ended(number)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its study")


class _Stopper(_Unsaved, FIFOScheduler):
    """Stops the trials that the books give up: what they decide from is in the study, and survives a restart."""

    def __init__(
        self,
        books: Books,
        listeners: Sequence[Listener],
        fuse: _Fuse,
        stopped: dict[int, dict[str, Any]],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.books, self.listeners, self.fuse, self.stopped = books, listeners, fuse, stopped

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        if not self.fuse.error:
            with self.fuse.held():
                self._hear(number, result["evaluations"])
        # An outcome is a trial's last word.
        stop = result["status"] != "running" or number in self.stopped
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def _hear(self, number: int, evaluations: Sequence[dict[str, Any]]) -> None:
        """Record evaluations, up to one at which the trial is to be stopped."""
        for evaluation in evaluations:
            behind = self.books.report(number, evaluation["step"], evaluation["loss"])
            for listener in self.listeners:
                listener.reported(number, evaluation)
            if behind:
                self.stopped[number] = evaluation
                return


def _gpu_share(placement: Placement, gpus: float) -> float:
    if placement.gpus_per_trial is None:
        return 1.0 if gpus else 0.0
    assert placement.gpus_per_trial != "auto"
    placement.require_gpus(gpus)
    return placement.gpus_per_trial


def _room(resources: Mapping[str, float], share: float) -> int:
    """Return how many trials fit into resources, each on a core and a share of a GPU."""
    cpus = int(resources.get("CPU", 0))
    return min(cpus, math.floor(resources.get("GPU", 0.0) / share)) if share else cpus
