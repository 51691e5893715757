"""``widthwise stop``: stop a job; its last checkpoint stays."""

from dataclasses import dataclass

from tyro.conf import Positional

from widthwise.transfer.commands.job_options import OnCluster, going_on


@dataclass(frozen=True, kw_only=True)
class Stop(OnCluster):
    """Stop a job on a cluster; `widthwise resume` goes on with it."""

    job: Positional[str]
    """The job's id."""

    def run(self) -> int:
        """Stop the job and say how it ended."""
        cluster = self.cluster()
        job = cluster.stop(self.job)
        print(f"{job.id}: {job.verdict}{going_on(job, cluster.address)}")
        return 0
