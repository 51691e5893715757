"""What the commands on a cluster's jobs share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from widthwise.transfer.commands.options import Flag

if TYPE_CHECKING:
    from widthwise.transfer.jobs import Cluster, Job

# The exit status of a command that was refused.
_REFUSED = 2


@dataclass(frozen=True, kw_only=True)
class OnCluster:
    """A cluster, by its dashboard."""

    address: str = "http://127.0.0.1:8265"
    """The cluster's dashboard, host:port or URL."""
    insecure: Flag = False
    """Talk to a dashboard that takes jobs from anyone who reaches it."""

    def cluster(self) -> "Cluster":
        """Return the cluster, looked at."""
        from widthwise.transfer.jobs import Cluster

        return Cluster(self.address, insecure=self.insecure)


def going_on(job: "Job", address: str) -> str:
    """Return how to go on with a job that died or was stopped, after a semicolon; nothing for any other.

    Nor for one whose command was refused, as it would be again.
    """
    if not job.ended or job.verdict not in ("failed", "stopped") or job.exit == _REFUSED:
        return ""
    return f"; go on with: widthwise resume {job.id} --address {address}"


def exit_status(job: "Job") -> int:
    """Return 0 for a job that runs or whose own result says completed, and 1 otherwise."""
    return int(job.ended and job.verdict != "completed")
