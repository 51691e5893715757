"""``widthwise logs``: what a job has printed; its exit status is the job's own."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from widthwise.transfer.commands.job_options import OnCluster, exit_status, going_on


@dataclass(frozen=True, kw_only=True)
class Logs(OnCluster):
    """Print a job's output; exit with 1 where it did not complete."""

    job: Positional[str]
    """The job's id, as `widthwise launch --submit` prints it."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"], help_behavior_hint="")] = False
    """Go on until the job ends."""

    def run(self) -> int:
        """Print the log; the exit status goes by what the run itself said, not by Ray."""
        from widthwise.transfer.jobs import visible

        cluster = self.cluster()
        job = cluster.job(self.job)
        if self.follow and not job.ended:
            for line in cluster.follow(self.job):
                print(visible(line), end="", flush=True)
            job = cluster.job(self.job)
        else:
            print(visible(cluster.log(self.job)), end="")
        if job.ended:
            stands = f"{job.verdict} (Ray says {job.status.lower()})"
            print(f"widthwise: {job.id}: {stands}{going_on(job, cluster.address)}", file=sys.stderr)
        return exit_status(job)
