"""Spare workers: processes that Ray starts before anything is to run in them.

An actor that takes one starts at once; else it waits a second for a process, and three more of a core for its
imports. Tasks cannot prepare workers for actors: Ray keeps the two apart. But its raylets start workers for their own
libraries (``NodeManagerService.PrestartWorkers``), and for us. What a process imports as it starts,
``RAY_preload_python_modules`` or a ``worker_process_setup_hook`` decides.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import ray
from ray._private.state import available_resources_per_node

ANSWER_SECONDS = 2
# Ray ends idle workers after a second where a node's cores are taken. Those of a job that has ended it ends anyway.
KEPT_SECONDS = 10**9


def start_spares(node: Mapping[str, Any], number: int, environment: str) -> None:
    """Have a node start workers for actors of this job; they are not awaited.

    Where the node does not answer, or Ray is one that has no such service, there are none: what would take them
    starts more slowly.

    Args:
        node: one of `ray.nodes()`.
        number: how many, besides those there are.
        environment: the runtime environment of the actors, as Ray serialises it; others cannot take the workers.
    """
    try:
        common, environments, manager, service = map(_generated, _PROTOCOL)
        request = manager.PrestartWorkersRequest(
            language=common.PYTHON,
            num_workers=number,
            job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
            keep_alive_duration_secs=KEPT_SECONDS,
            runtime_env_info=environments.RuntimeEnvInfo(serialized_runtime_env=environment),
        )
        channels: Any = importlib.import_module("ray._private.grpc_utils")
        address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        with channels.init_grpc_channel(address) as channel:
            service.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=ANSWER_SECONDS)
    except (ImportError, AttributeError, grpc.RpcError):
        pass


_PROTOCOL = ("common_pb2", "runtime_environment_pb2", "node_manager_pb2", "node_manager_pb2_grpc")


def _generated(name: str) -> Any:
    return importlib.import_module(f"ray.core.generated.{name}")


class Spares:
    """Gives the nodes workers to spare, those that join later too."""

    def __init__(self, number: Callable[[Mapping[str, float]], int], environment: str) -> None:
        """Take what says how many a node gets of whose resources so much is free, and their runtime environment."""
        self._number, self._environment, self._known = number, environment, set[str]()

    def look(self, nodes: list[Mapping[str, Any]]) -> None:
        """Start workers on the living nodes that are new."""
        new = [node for node in nodes if node["NodeID"] not in self._known]
        if new:
            free = available_resources_per_node()
            for node in new:
                self._known.add(node["NodeID"])
                if number := self._number(free.get(node["NodeID"], {})):
                    start_spares(node, number, self._environment)
