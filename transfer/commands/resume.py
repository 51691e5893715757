"""``widthwise resume``: send a job again that died or was stopped, to go on with its run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from widthwise.transfer.commands.job_options import OnCluster
from widthwise.transfer.commands.options import Flag, Option
from widthwise.transfer.commands.submitting import require_wheel


@dataclass(frozen=True, kw_only=True)
class Resume(OnCluster):
    """Send a job again that died or was stopped, to go on from its run's last checkpoint."""

    job: Positional[str]
    """The job's id."""
    wheel: Option[Path] = None
    """This package as a wheel, where the cluster has not installed it."""
    abort_on: Option[Literal["divergence", "nan", "alarm"]] = None
    """What ends the run from now on, as for `widthwise launch`; as before if not given."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Send the job and print the new one's id."""
        require_wheel(self.wheel)
        cluster = self.cluster()
        job, out = cluster.resume(self.job, wheel=self.wheel, abort_on=self.abort_on)
        if self.json:
            print(json.dumps({"job": job, "address": cluster.address, "out": out}))
        else:
            print(f"job {job}; follow it with: widthwise logs {job} --address {cluster.address} --follow")
        return 0
