"""A target run as other schedulers take it: a Slurm batch script, a KubeRay ``RayJob``.

Both start a Ray cluster of their own, behind a token, and run ``widthwise launch`` on it; both need GPUs, one
for each worker, and a folder that all nodes share.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import ceil
from pathlib import PurePosixPath
from typing import Any

from widthwise.proxies.validation import ConfigError

CPUS_PER_WORKER = 8
MOUNTED_RECIPE = "/etc/widthwise/recipe.json"
"""Where a pod of the cluster's head finds the recipe."""
_LARGEST = 1_000_000  # bytes; a ConfigMap takes 1 MiB


@dataclass(frozen=True, kw_only=True)
class Job:
    """A target run to be scheduled.

    Attributes:
        argv: ``launch`` and its options, for a cluster that runs on the spot.
        recipe: the recipe file's content.
        files: Python files of the user's own rule and model, by path; a RayJob carries them.
        out: the run's folder, absolute.
        workers: data-parallel workers, a GPU each.
        fewest: workers that the run goes on with, where others have left.
        nodes: machines that they are spread over.
    """

    argv: Sequence[str]
    recipe: str
    files: Mapping[str, str] = field(default_factory=dict)
    out: str
    workers: int
    fewest: int
    nodes: int

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.workers % self.nodes:
            raise ConfigError(f"nodes: must be >= 1 and divide the {self.workers} workers, got {self.nodes}")

    @property
    def per_node(self) -> int:
        """Workers on a node."""
        return self.workers // self.nodes

    @property
    def elastic(self) -> bool:
        """Whether the run goes on without some of its workers."""
        return self.fewest < self.workers


def slurm_script(job: Job) -> str:
    """Return a batch script; submitted again, it goes on from the run's last checkpoint.

    Ray's own status is not trusted: the script succeeds where ``result.json`` says that the run completed.
    """
    out = shlex.quote(job.out)
    # Slurm ends a job, and a step of it, when one of its nodes fails, unless it is told not to.
    spared = "#SBATCH --no-kill\n" if job.elastic else ""
    step = "srun --no-kill" if job.elastic else "srun"
    return f"""#!/bin/bash
#SBATCH --job-name=widthwise
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={job.per_node}
#SBATCH --cpus-per-task={CPUS_PER_WORKER * job.per_node}
#SBATCH --exclusive
{spared}#SBATCH --requeue
#SBATCH --open-mode=append
# Submit it from the folder with the recipe and your own rule or model, which all nodes see, where widthwise and ray are
# on the PATH of every node; add --partition, --account and --time as your site asks for them.
set -euo pipefail

out={out}
launch=({shlex.join(["widthwise", *job.argv])})
if [[ -e "$out/plan.json" ]]; then
  launch+=(--resume)
fi

export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | cut -d ' ' -f 1):6379
{step} --nodes={job.nodes} --ntasks={job.nodes} \\
  ray symmetric-run --address "$address" --min-nodes {job.nodes} --num-gpus={job.per_node} -- "${{launch[@]}}"
grep -q '"status": "completed"' "$out/result.json"
"""


def ray_job(job: Job, *, image: str, claim: str) -> str:
    """Return the YAML of a KubeRay ``RayJob`` and of the ConfigMap that holds its recipe.

    Args:
        job: what to run.
        image: a container image with widthwise and ray.
        claim: name of the PersistentVolumeClaim, shared by all pods, that holds the run's folder.

    Raises:
        ConfigError: the run's folder does not lie in a folder of the root, where the volume is mounted, or the
            files are too large for a ConfigMap.
    """
    import yaml

    parts = PurePosixPath(job.out).parts
    if len(parts) < 3:
        raise ConfigError(f"out: must lie in a folder below /, where the volume is mounted, got {job.out!r}")
    data = {
        PurePosixPath(MOUNTED_RECIPE).name: job.recipe,
        **{_key(path): job.files[path] for path in job.files},
    }
    if (size := sum(len(text.encode()) for text in data.values())) > _LARGEST:
        raise ConfigError(
            f"model: recipe, rule and model must take <= {_LARGEST:,} bytes in all, got {size:,}"
        )
    recipe = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "widthwise-recipe"},
        "data": data,
    }
    # From the folder that the modules are found in.
    there = f"cd {PurePosixPath(MOUNTED_RECIPE).parent} && " if job.files else ""
    run = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "widthwise"},
        "spec": {
            "entrypoint": there + shlex.join(["widthwise", *job.argv]),
            "shutdownAfterJobFinishes": True,
            # A run restarts its own workers; another attempt needs --resume.
            "backoffLimit": 0,
            "rayClusterSpec": _cluster(job, image, claim, "".join(parts[:2])),
        },
    }

    class Readable(yaml.SafeDumper):  # type: ignore[misc]
        """Texts as they stand instead of quoted on one line, and no cross-references."""

        def ignore_aliases(self, data: object) -> bool:
            return True

        def represent_text(self, text: str) -> Any:
            style = "|" if "\n" in text else None
            return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Readable.add_representer(str, Readable.represent_text)
    text: str = yaml.dump_all([recipe, run], Dumper=Readable, sort_keys=False, allow_unicode=True, width=110)
    return text


def _cluster(job: Job, image: str, claim: str, mount: str) -> dict[str, Any]:
    gpus = {"cpu": str(CPUS_PER_WORKER * job.per_node), "nvidia.com/gpu": str(job.per_node)}
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # The driver alone runs here: workers go where the GPUs are.
            "rayStartParams": {"num-cpus": "0"},
            "template": _pod("ray-head", image, {"cpu": "4", "memory": "16Gi"}, claim, mount, job),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": job.nodes,
                "minReplicas": ceil(job.fewest / job.per_node),
                "maxReplicas": job.nodes,
                "rayStartParams": {},
                "template": _pod("ray-worker", image, gpus, claim, mount),
            }
        ],
    }


def _mounted(job: Job) -> dict[str, Any]:
    """Return the ConfigMap as a volume; where a file's path is not its key, every path is named."""
    volume: dict[str, Any] = {"name": "widthwise-recipe"}
    if any(_key(path) != path for path in job.files):
        paths = [PurePosixPath(MOUNTED_RECIPE).name, *job.files]
        volume["items"] = [{"key": _key(path), "path": path} for path in paths]
    return volume


def _key(path: str) -> str:
    """Return a file's key in a ConfigMap, which takes no slashes."""
    return path.replace("/", "..")


def _pod(
    name: str, image: str, resources: dict[str, str], claim: str, mount: str, job: Job | None = None
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}]
    mounts = [{"name": "shared", "mountPath": mount}]
    if job is not None:
        volumes.append({"name": "recipe", "configMap": _mounted(job)})
        mounts.append({"name": "recipe", "mountPath": str(PurePosixPath(MOUNTED_RECIPE).parent)})
    container = {
        "name": name,
        "image": image,
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts,
    }
    return {"spec": {"containers": [container], "volumes": volumes}}
