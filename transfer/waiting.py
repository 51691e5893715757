"""A run that waits because nodes have left, and too few workers have room: said once, and in the run's folder."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import Any

from widthwise.proxies.files import read_json, write_json
from widthwise.proxies.storage import Place
from widthwise.proxies.validation import ConfigError, first_line

WAITING = "waiting.json"
"""In the run's folder while it waits: ``room``, the workers that Ray has room for, ``fewest``, those it needs, and
``held``, those whose room is not free: others hold it, or a node that has just left seems to be there still."""

SECONDS_BETWEEN_LOOKS = 2.0
# A cluster that does not answer is not waited for.
SECONDS_FOR_AN_ANSWER = 5.0

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """What a living node has, and what of it the run can use: it is free, or held by the run's workers."""

    total: Resources
    usable: Resources


def living_nodes(ray: Any) -> list[Node]:
    """Return the nodes of the cluster that this process is connected to, as this process's job can use them.

    What a node has free is no part of Ray's public interface.

    Raises:
        ConnectionError: the cluster does not answer.
        ImportError, AttributeError, KeyError, TypeError: another version of Ray does not tell it in this way.
    """
    state: Any = import_module("ray._private.state")
    try:
        free, held = state.available_resources_per_node(), _held(ray)
    except ray.exceptions.RayError as error:
        raise ConnectionError(first_line(error)) from error
    return [
        Node(node["Resources"], Counter(free.get(node["NodeID"], {})) + held.get(node["NodeID"], Counter()))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _held(ray: Any) -> dict[str, Counter[str]]:
    """Return what this job's placement groups hold of each node: Ray Train reserves its workers' resources by one."""
    job = ray.get_runtime_context().get_job_id()
    held: dict[str, Counter[str]] = {}
    for name, group in ray.util.placement_group_table().items():
        # The job is the last part of what it makes.
        if name.endswith(job) and group["state"] != "REMOVED":
            for bundle, node in group["bundles_to_node_id"].items():
                held.setdefault(node, Counter()).update(group["bundles"][bundle])
    return held


@contextmanager
def waiting_told(
    out: Place,
    worker: Resources,
    fewest: int,
    nodes: Callable[[], Sequence[Node]] | None,
    say: Callable[[str], None],
) -> Iterator[None]:
    """Look now and then whether the cluster has room for the fewest workers, and say so when that changes.

    Args:
        out: the run's folder.
        worker: what each worker needs.
        fewest: workers that the run needs.
        nodes: returns the living nodes, and raises as `living_nodes` does; None where none can leave, as of a
            local Ray.
        say: prints a line.
    """
    # Of a run that was killed while it waited.
    _forget(out)
    if nodes is None:
        yield
        return
    ended = Event()

    def look() -> None:
        waiting = was_short = False
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            try:
                found = nodes()
            except OSError:
                continue  # the cluster does not answer just now
            except (ImportError, AttributeError, KeyError, TypeError):
                return  # this version of Ray does not tell: nor do we
            room = sum(_room(node.usable, worker) for node in found)
            held = sum(_room(node.total, worker) for node in found) - room
            short = room < fewest
            # Seen twice: what workers held that have just ended is not free at once.
            if short == was_short and short != waiting:
                waiting = short
                _tell(out, room, fewest, held, say)
            was_short = short

    thread = Thread(target=look, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SECONDS_FOR_AN_ANSWER)
        _forget(out)


def waiting_for(out: Path) -> str | None:
    """Return what the run in a folder waits for, or None where it does not wait."""
    try:
        found = read_json(out / WAITING, "what a run waits for")
        return _needs(int(found["room"]), int(found["fewest"]), int(found["held"]))
    except (ConfigError, KeyError, TypeError, ValueError):
        return None


def _room(node: Resources, worker: Resources) -> int:
    """Return how many workers fit on a node."""
    return min(int(node.get(name, 0.0) // needed) for name, needed in worker.items() if needed)


def _needs(room: int, fewest: int, held: int) -> str:
    taken = f"; room for {held} more is not free" if held > 0 else ""
    return f"the run needs {fewest} worker{'s' if fewest > 1 else ''}, and Ray has room for {room}{taken}"


def _tell(out: Place, room: int, fewest: int, held: int, say: Callable[[str], None]) -> None:
    waits = room < fewest
    if waits:
        with suppress(OSError):
            write_json(out / WAITING, {"room": room, "fewest": fewest, "held": held})
    else:
        _forget(out)
    told = "waiting for nodes" if waits else "nodes are back"
    say(f"widthwise: {told}: {_needs(room, fewest, held if waits else 0)}")


def _forget(out: Place) -> None:
    with suppress(OSError):
        (out / WAITING).unlink(missing_ok=True)
