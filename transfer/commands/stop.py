"""``widthwise stop``: stop a job; its last checkpoint stays."""

from dataclasses import dataclass

from tyro.conf import Positional

from widthwise.transfer.commands.job_options import OnCluster


@dataclass(frozen=True, kw_only=True)
class Stop(OnCluster):
    """Stop a job on a cluster; submit it again with --resume to go on."""

    job: Positional[str]
    """The job's id."""

    def run(self) -> int:
        """Stop the job and say how it ended."""
        job = self.cluster().stop(self.job)
        print(f"{job.id}: {job.verdict}")
        return 0
