"""``widthwise jobs``: the jobs that were submitted to a cluster, and how each stands."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from widthwise.transfer.commands.job_options import OnCluster
from widthwise.transfer.commands.options import Flag

if TYPE_CHECKING:
    from rich.table import Table

    from widthwise.transfer.jobs import Job


@dataclass(frozen=True, kw_only=True)
class Jobs(OnCluster):
    """List the jobs on a cluster, by their own results."""

    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Print a row per job, the latest first."""
        jobs = self.cluster().jobs()
        if self.json:
            from json import dumps

            print(dumps({"jobs": [_plain(job) for job in jobs]}, indent=2))
        else:
            from widthwise.transfer.commands.options import whole_lines

            whole_lines().print(jobs_table(jobs))
        return 0


def _plain(job: "Job") -> dict[str, Any]:
    """Return a job as JSON has it, its id under the name that `launch` and `resume` give it."""
    stands = asdict(job)
    return {"job": stands.pop("id"), **stands, "verdict": job.verdict}


def jobs_table(jobs: "Sequence[Job]") -> "Table":
    """Return a row per job, with the run's own word on how it stands beside Ray's."""
    from datetime import datetime

    from rich.table import Table

    table = Table()
    for name in ("job", "started", "stands", "Ray says"):
        table.add_column(name, no_wrap=True)
    table.add_column("folder", overflow="fold")
    for job in jobs:
        started = "" if job.started is None else f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M:%S}"
        table.add_row(job.id, started, job.verdict, job.status.lower(), job.out)
    return table
