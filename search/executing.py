"""Books carried out: Ray started or joined, and Tune run until nothing more is wanted."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch

from widthwise.proxies.files import is_unwritable, system_error
from widthwise.proxies.validation import ConfigError, RunError, first_line
from widthwise.search.books import MAX_FAILURES, Books
from widthwise.search.cluster import ray_session, require_ray
from widthwise.search.nodes import kill_local
from widthwise.search.progress import Progress
from widthwise.search.standard_error import standard_error
from widthwise.search.trackers import Tracker
from widthwise.search.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where trials run.

    Attributes:
        address: a Ray cluster's ``host:port`` or ``auto``; None starts a local Ray.
        concurrency: trials at a time; None takes one per core, or per GPU share.
        gpus_per_trial: share of a GPU per trial; ``auto`` chooses it by the memory that one trial takes, of books
            that know what a trial is; None takes a whole one where there is any.
    """

    address: str | None = None
    concurrency: int | None = None
    gpus_per_trial: float | Literal["auto"] | None = None

    def require(self) -> None:
        """Raise a ConfigError where no Ray answers at the address, or this machine lacks the GPUs asked for."""
        if self.address is not None:
            require_ray(self.address)
        else:
            self.require_gpus(torch.cuda.device_count())

    def require_gpus(self, gpus: float) -> None:
        """Raise a ConfigError where trials ask for GPUs and there is none: Tune would wait for one for ever."""
        if self.gpus_per_trial not in (None, "auto", 0) and not gpus:
            raise ConfigError(f"gpus_per_trial: must be 0 where Ray has no GPU, got {self.gpus_per_trial}")


def _settled(books: Books, placement: Placement, ray: Any, progress: Progress) -> Placement:
    """Return the placement with a share of a GPU in place of ``auto``; without a GPU there is nothing to share."""
    if placement.gpus_per_trial != "auto":
        return placement
    resources, sample = ray.cluster_resources(), books.sample()
    gpus = resources.get("GPU", 0.0)
    if not gpus or sample is None:
        return replace(placement, gpus_per_trial=None)
    from widthwise.search.packing import measured_share

    progress.say("measuring a trial's memory")
    share = measured_share(ray, sample.spec, dict(sample.options), cores=resources["CPU"], gpus=gpus)
    progress.say(f"{round(1 / share)} trials share a GPU")
    return replace(placement, gpus_per_trial=share)


def execute(
    books: Books,
    placement: Placement,
    *,
    show_progress: bool,
    trackers: tuple[Tracker, ...] = (),
    tokens_per_step: int = 0,
) -> None:
    """Run the trials that the books want, until they want no more, Ctrl-C or SIGTERM.

    Args:
        books: of a sweep where there are trackers.
        placement: where.
        show_progress: say on standard error what is being done.
        trackers: are told of the trials.
        tokens_per_step: what a step of every trial takes, for the trackers.

    Raises:
        ConfigError: where the cluster lacks the GPUs asked for.
        RunError: where trials keep failing, or cannot go on: there is no room for a checkpoint (`DiskFull`), or the
            books' folder, or what Ray runs on, has gone.
    """
    try:
        _run(books, placement, show_progress, trackers, tokens_per_step)
    except Exception as error:
        books.require_there()
        if isinstance(error, ConfigError | RunError) or not is_unwritable(error, books.out):
            raise
        why = first_line(system_error(error))
        raise RunError(f"{books.out} cannot be written any more ({why}); go on with --resume") from error
    books.tidy()
    if len(books.failures) >= MAX_FAILURES:
        failed = f"{len(books.failures)} trials failed, the last with: {books.failures[-1]}"
        raise RunError(f"{failed}; mend it and go on with --resume ({books.out})")


def _end(progress: Progress, why: str) -> None:
    """End the process from another thread: the main one waits within Ray."""
    progress.bar.stop()
    print(f"widthwise: failed: {why}; what has ended is kept: go on with --resume", file=standard_error())
    kill_local()
    os._exit(1)


def _run(
    books: Books,
    placement: Placement,
    show_progress: bool,
    trackers: tuple[Tracker, ...],
    tokens_per_step: int,
) -> None:
    with (
        # What Tune does on Ctrl-C while trials run, and neither before and after nor on SIGTERM.
        suppress(KeyboardInterrupt),
        Progress(books, enabled=show_progress) as progress,
        Tracking(books, trackers, tokens_per_step=tokens_per_step, warn=progress.warn) as tracking,
        ray_session(
            placement.address,
            cpus=placement.concurrency,
            # There, because what Ray reads on import the session sets.
            prepare=lambda: import_module("widthwise.search.tuning"),
        ) as ray,
    ):
        from widthwise.search.tuning import run_trials

        settled = _settled(books, placement, ray, progress)
        run_trials(
            books,
            settled,
            ray.cluster_resources(),
            (progress, tracking),
            progress.warn,
            partial(_end, progress),
        )
