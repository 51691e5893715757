"""Commands as Ray jobs: submitted to a cluster's dashboard, watched, followed and stopped."""

import asyncio
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from widthwise.proxies.validation import ConfigError, RunError, last_line
from widthwise.search.cluster import TOKEN_REFUSED
from widthwise.transfer.dashboard import dashboard, require_guarded
from widthwise.transfer.job_entry import MARK
from widthwise.transfer.submission import ENTRY, Submission, working_directory

STOP_SECONDS = 60
READY_SECONDS = 60

# Loggers that narrate every request; Ray sets each to INFO by itself.
_TALKATIVE = (
    "dashboard.modules.job.sdk",
    "dashboard.modules.dashboard_sdk",
    "_private.runtime_env.packaging",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the cluster knows it, and how its command ended by its own word.

    Attributes:
        id: Ray's submission id.
        status: Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        out: the folder that the run writes to.
        started: seconds since the epoch, or None.
        exit: the command's exit status; None where it has not ended, or ended without a word.
        result: what ``result.json`` held then.
        known: whether its log, which says the two, could be had.
    """

    id: str
    status: str
    out: str
    started: float | None
    exit: int | None
    result: dict[str, Any] | None
    known: bool = True

    @property
    def ended(self) -> bool:
        """Whether Ray counts it as over."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def verdict(self) -> str:
        """How it stands, whatever Ray's status says: the result's own status, or what there is instead."""
        if not self.ended:
            return self.status.lower()
        if not self.known:
            return "unknown"
        said = "failed" if self.result is None else str(self.result["status"])
        if said == "completed" and self.exit != 0:
            said = "failed"
        return "stopped" if said == "failed" and self.status == "STOPPED" else said


class Cluster:
    """A cluster's jobs, by its dashboard.

    Args:
        address: ``host:port`` or URL of the dashboard.
        insecure: whether one that takes jobs from anyone will do.

    Raises:
        ConfigError: nothing answers, it is open to a network, it asks for a token that is not given, or
            Ray's job client is not installed.
    """

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        self.address = dashboard(address)
        require_guarded(self.address, insecure=insecure)
        self._client = _client(self.address)

    def submit(self, submission: Submission) -> str:
        """Send a job and return its id."""
        job_id = f"widthwise-{secrets.token_hex(4)}"
        with working_directory(submission) as folder:
            _once_ready(
                lambda: self._client.submit_job(
                    entrypoint=f"python {ENTRY}",
                    submission_id=job_id,
                    runtime_env={"working_dir": str(folder)},
                    metadata={
                        "widthwise": version("widthwise"),
                        "out": submission.out,
                        "argv": json.dumps(submission.argv),
                    },
                )
            )
        return job_id

    def jobs(self) -> list[Job]:
        """Return the cluster's jobs that widthwise submitted, the latest first."""
        with _told():
            found = [one for one in self._client.list_jobs() if "widthwise" in (one.metadata or {})]
        jobs = [self._job(one) for one in found]
        return sorted(jobs, key=lambda job: job.started or 0, reverse=True)

    def job(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            ConfigError: there is none of this id.
        """
        try:
            with _told():
                return self._job(self._client.get_job_info(job_id))
        except RunError as error:
            if "status code 404" in str(error):
                raise ConfigError(f"job: {self.address} has no job {job_id!r}") from None
            raise

    def _job(self, details: Any) -> Job:
        """Return what Ray knows of a job, with its command's own last word."""
        status = str(details.status.value)
        log = self._log_if_any(details.submission_id) if details.status.is_terminal() else ""
        ending = _ending(log or "")
        return Job(
            id=details.submission_id,
            status=status,
            out=(details.metadata or {}).get("out", ""),
            started=None if details.start_time is None else details.start_time / 1000,
            exit=ending.get("exit"),
            result=ending.get("result"),
            known=log is not None,
        )

    def _log_if_any(self, job_id: str) -> str | None:
        """Return a log, or None where it cannot be had: its node may have gone, and the others' are there."""
        try:
            return self.log(job_id)
        except RunError:
            return None

    def resume(
        self, job_id: str, *, wheel: Path | None = None, abort_on: str | None = None
    ) -> tuple[str, str]:
        """Send a job that has ended again, to go on with its run; return the new job's id and the run's folder.

        Args:
            job_id: the job.
            wheel: this package, where the cluster has not installed it.
            abort_on: what ends the run from now on, as for ``widthwise launch``; None is as before.

        Raises:
            ConfigError: there is none of this id, its command is not known, or it has nothing to go on with, as
                `resumed` says.
        """
        job = self.job(job_id)
        with _told():
            metadata = self._client.get_job_info(job_id).metadata or {}
        argv = resumed(job, json.loads(metadata.get("argv", "null")), abort_on)
        return self.submit(Submission(argv=argv, out=job.out, files=None, wheel=wheel)), job.out

    def log(self, job_id: str) -> str:
        """Return what a job has printed so far."""
        with _told():
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield the lines that a job prints, as it does, until it ends."""
        chunks, unfinished = self._client.tail_job_logs(job_id), ""
        with asyncio.Runner() as runner, _told():
            while (chunk := runner.run(_next(chunks))) is not None:
                *lines, unfinished = (unfinished + chunk).splitlines(keepends=True) or [""]
                if unfinished.endswith("\n"):
                    lines, unfinished = [*lines, unfinished], ""
                yield from lines
        yield unfinished

    def stop(self, job_id: str) -> Job:
        """Stop a job and wait until it has ended; return it.

        Raises:
            ConfigError: there is none of this id.
            RunError: it does not end.
        """
        if not (job := self.job(job_id)).ended:
            with _told():
                self._client.stop_job(job_id)
        deadline = time.monotonic() + STOP_SECONDS
        while not (job := self.job(job_id)).ended:
            if time.monotonic() > deadline:
                raise RunError(f"{job_id} has not stopped within {STOP_SECONDS} s")
            time.sleep(0.5)
        return job


def resumed(job: Job, argv: Sequence[str] | None, abort_on: str | None) -> list[str]:
    """Return the command that goes on with a job's run, which `argv` began.

    Raises:
        ConfigError: the job has not ended, its command is not known (None), or its run has come to an end that it
            would come to again.
    """
    if not job.ended or job.verdict == "completed":
        raise ConfigError(f"job: must have ended before its run was completed, got {job.verdict} {job.id}")
    if argv is None:
        raise ConfigError(f"job: {job.id} was not sent by a widthwise that keeps its command")
    kept = [one for one in argv if one != "--resume"]
    if abort_on is not None:
        kept = [one for one in kept if not one.startswith("--abort-on=")] + [f"--abort-on={abort_on}"]
    ended = job.result or {}
    if ended.get("status") == "stopped" and "--abort-on=alarm" in kept:
        stopped = f"an alarm stopped the run of {job.id} at step {ended['steps']}, and would end it at once"
        raise ConfigError(f"job: {stopped}; go on with --abort-on divergence")
    if ended.get("status") == "diverged":
        raise ConfigError(f"job: the run of {job.id} diverged at step {ended['steps']}; launch another")
    return [*kept, "--resume"]


def _once_ready(submit: Callable[[], object]) -> None:
    """Submit, again and again while the cluster has only just started and has no agent yet to take a job."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            with _told():
                submit()
            return
        except RunError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


async def _next(chunks: Any) -> str | None:
    return await anext(chunks, None)


def visible(text: str) -> str:
    """Return a log without the line in which the job says how it ended."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(MARK))


def _ending(log: str) -> dict[str, Any]:
    """Return the command's own last word, or nothing where it was cut short."""
    marked = [line for line in log.splitlines() if line.startswith(MARK)]
    if not marked:
        return {}
    ending: dict[str, Any] = json.loads(marked[-1].removeprefix(MARK))
    return ending


def _client(address: str) -> Any:
    if find_spec("aiohttp") is None:
        raise ConfigError(
            "address: Ray's job client is not installed; install it with: pip install 'widthwise[jobs]'"
        )
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    with _unredirected(), _told():
        return JobSubmissionClient(address)


@contextmanager
def _unredirected() -> Iterator[None]:
    """Keep Ray from going to the address in its environment variables instead of the one that was looked at."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what Ray's client raises into one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ConfigError(f"address: {TOKEN_REFUSED}") from None
    except (ConfigError, RunError):
        raise
    except (OSError, RuntimeError) as error:
        raise RunError(f"the cluster answers: {last_line(error)}") from error
