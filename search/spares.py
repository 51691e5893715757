"""Spare workers: processes that Ray starts before anything is to run in them.

An actor that takes one starts at once; else it waits a second for a process, and three more of a core for its
imports. Tasks cannot prepare workers for actors: Ray keeps the two apart. But its raylets start workers for their own
libraries (``NodeManagerService.PrestartWorkers``), and for us. What a process imports as it starts,
``RAY_preload_python_modules`` or a ``worker_process_setup_hook`` decides.

None of this is Ray's public interface: where another version has no such service, there are no spare workers, and
what would take them starts more slowly.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import grpc
import ray

ANSWER_SECONDS = 2
# Ray ends idle workers after a second where a node's cores are taken. Those of a job that has ended it ends anyway.
KEPT_SECONDS = 10**9


class Spares:
    """Gives the nodes workers to spare for Tune's trials, those that join later too."""

    def __init__(self, number: Callable[[Mapping[str, float]], int]) -> None:
        """Take what says how many a node gets of whose resources so much is free."""
        self._number, self._known = number, set[str]()

    def look(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Start workers on those living nodes, of `ray.nodes()`, that are new; they are not awaited."""
        for node in nodes:
            if node["NodeID"] not in self._known:
                self._known.add(node["NodeID"])
                with suppress(ImportError, AttributeError, TypeError, ValueError, grpc.RpcError):
                    _start(node, self._number)


def _start(node: Mapping[str, Any], number: Callable[[Mapping[str, float]], int]) -> None:
    state: Any = import_module("ray._private.state")
    wanted = number(state.available_resources_per_node().get(node["NodeID"], {}))
    if not wanted:
        return
    common, environments, manager, service = (
        import_module(f"ray.core.generated.{name}") for name in _PROTOCOL
    )
    request = manager.PrestartWorkersRequest(
        language=common.PYTHON,
        num_workers=wanted,
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        keep_alive_duration_secs=KEPT_SECONDS,
        # Ray gives an actor no worker of another environment.
        runtime_env_info=environments.RuntimeEnvInfo(serialized_runtime_env=_tunes_environment()),
    )
    channels: Any = import_module("ray._private.grpc_utils")
    with channels.init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        service.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=ANSWER_SECONDS)


_PROTOCOL = ("common_pb2", "runtime_environment_pb2", "node_manager_pb2", "node_manager_pb2_grpc")


def _tunes_environment() -> str:
    """Return the runtime environment that Tune gives its actors, as Ray serialises it."""
    tune: Any = import_module("ray.tune.execution.class_cache")
    passed_on = {name: os.environ[name] for name in tune.ENV_VARS_TO_PROPAGATE if name in os.environ}
    environment: Any = import_module("ray.runtime_env")
    return str(environment.RuntimeEnv(env_vars=tune.DEFAULT_ENV_VARS | passed_on).serialize())
