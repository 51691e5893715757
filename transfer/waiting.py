"""A run that waits because nodes have left, and too few workers have room: said once, and in the run's folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from widthwise.proxies.files import read_json, write_json
from widthwise.proxies.storage import Place
from widthwise.proxies.validation import ConfigError

WAITING = "waiting.json"
"""In the run's folder while it waits: ``room``, the workers that Ray has room for, and ``fewest``, those it needs."""

SECONDS_BETWEEN_LOOKS = 2.0
# A cluster that does not answer is not waited for.
SECONDS_FOR_AN_ANSWER = 5.0

Resources = Mapping[str, float]


@contextmanager
def waiting_told(
    out: Place,
    worker: Resources,
    fewest: int,
    nodes: Callable[[], Sequence[Resources]],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Look now and then whether the cluster has room for the fewest workers, and say so when that changes.

    Args:
        out: the run's folder.
        worker: what each worker needs.
        fewest: workers that the run needs.
        nodes: returns what each living node has.
        say: prints a line.
    """
    ended = Event()

    def look() -> None:
        waiting = False
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            try:
                room = sum(_room(node, worker) for node in nodes())
            except Exception:
                continue  # the cluster does not answer just now
            if (room < fewest) != waiting:
                waiting = not waiting
                _tell(out, room, fewest, say)

    # Of a run that was killed while it waited.
    _forget(out)
    thread = Thread(target=look, daemon=True)
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
        return _needs(int(found["room"]), int(found["fewest"]))
    except (ConfigError, KeyError, TypeError, ValueError):
        return None


def _room(node: Resources, worker: Resources) -> int:
    """Return how many workers fit on a node."""
    return min(int(node.get(name, 0.0) // needed) for name, needed in worker.items() if needed)


def _needs(room: int, fewest: int) -> str:
    return f"the run needs {fewest} worker{'s' if fewest > 1 else ''}, and Ray has room for {room}"


def _tell(out: Place, room: int, fewest: int, say: Callable[[str], None]) -> None:
    waits = room < fewest
    if waits:
        with suppress(OSError):
            write_json(out / WAITING, {"room": room, "fewest": fewest})
    else:
        _forget(out)
    say(f"widthwise: {'waiting for nodes' if waits else 'nodes are back'}: {_needs(room, fewest)}")


def _forget(out: Place) -> None:
    with suppress(OSError):
        (out / WAITING).unlink(missing_ok=True)
