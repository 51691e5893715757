"""Nodes: whether each of a cluster can run what this process sends it, and whether the local one lives."""

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from widthwise.proxies.validation import ConfigError

# Seconds for a node to start a worker and answer; a busy one may take long.
ANSWER_SECONDS = 60

NO_ROOM = "no node has a core, and the share of a GPU, that a trial takes: waiting for one"


def require_same_version(ray: Any) -> None:
    """Raise a ConfigError unless every living node of the cluster has this version of widthwise installed."""
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    # Within the function, so that Ray sends it as it is: a node without the package could not import it.
    def installed() -> str | None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("widthwise")
        except PackageNotFoundError:
            return None

    asking = ray.remote(num_cpus=0, max_retries=0)(installed)
    answers = {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})": asking.options(
            scheduling_strategy=On(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    try:
        found = dict(zip(answers, ray.get(list(answers.values()), timeout=ANSWER_SECONDS), strict=True))
    except RayError as error:
        rule = f"every node of the cluster must answer within {ANSWER_SECONDS} s"
        raise ConfigError(f"address: {rule}, got {type(error).__name__}") from None
    refuse_others(found, version("widthwise"))


def refuse_others(found: Mapping[str, str | None], own: str) -> None:
    """Raise a ConfigError that names the first node on which another version was found, or none."""
    for node, installed in found.items():
        if installed != own:
            has = "no widthwise" if installed is None else f"widthwise {installed}"
            rule = f"every node must have widthwise {own}, as this machine has"
            raise ConfigError(f"address: {rule}, got {has} on node {node}; install it there")


@dataclass(frozen=True)
class Death:
    """How a process ended: its name, and its exit status as `subprocess` has it."""

    name: str
    status: int

    def __str__(self) -> str:
        if self.status >= 0:
            return f"the local Ray's {self.name} ended with status {self.status}"
        return f"the local Ray's {self.name} was killed by {_signal(-self.status)}"

    @property
    def was_asked_for(self) -> bool:
        """Whether it may have ended as SIGTERM has it end, which schedulers send to all processes of a job."""
        return self.status >= 0 or self.status == -signal.SIGTERM


def local_death() -> Death | None:
    """Return how a process died without which the local Ray cannot go on; None while all live, or on a cluster.

    They are this process's children. Ray itself takes 10 s or more to notice, and then ends this process or waits.
    They are no part of Ray's public interface: another version of it may not tell.
    """
    node = _node()
    for name, process in node.dead_processes() if hasattr(node, "dead_processes") else ():
        if name in _ESSENTIAL:
            return Death(name, process.returncode)
    return None


def kill_local() -> None:
    """Kill the local Ray's processes, and those that they started; none on a cluster.

    Its agents, which end by themselves, would look for the head for a minute before.
    """
    known = [one.process.pid for some in getattr(_node(), "all_processes", {}).values() for one in some]
    for pid in known:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                known += map(int, children.read_text().split())
    for pid in known:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _node() -> Any:
    return getattr(sys.modules.get("ray._private.worker"), "_global_node", None)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Of the real-time signals only the first and the last have names.
        return f"signal {number}"


_ESSENTIAL = ("gcs_server", "raylet")
