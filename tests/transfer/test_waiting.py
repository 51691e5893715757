"""What is said of a run that has too few workers: when that begins, and when it ends."""

import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest
import ray

from widthwise.proxies.files import write_json
from widthwise.search.cluster import ray_session
from widthwise.transfer import waiting
from widthwise.transfer.waiting import WAITING, Node, living_nodes, waiting_for, waiting_told

HAS = {"CPU": 2.0, "GPU": 1.0, "memory": 1e9}
NODE = Node(total=HAS, usable=HAS)
HALF_HELD = Node(total=HAS, usable={**HAS, "CPU": 1.0})
WAITS = "the run needs 3 workers, and Ray has room for 2; room for 1 more is not free"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SECONDS_BETWEEN_LOOKS", 0.001)


def test_too_few_nodes_are_told_once_and_stand_in_the_folder(tmp_path: Path) -> None:
    # A node whose cores others hold half is none; one look fails, and one that is not seen again counts for nothing.
    few = [NODE, NODE, HALF_HELD]
    seen: Iterator[Sequence[Node] | None] = iter(
        [[NODE] * 3, [NODE] * 2, [NODE] * 3, few, None, few, [NODE] * 4, few, few]
    )
    said: SimpleQueue[tuple[str, str | None]] = SimpleQueue()

    def nodes() -> Sequence[Node]:
        found = next(seen, [NODE] * 4)
        if found is None:
            raise ConnectionError
        return found

    with waiting_told(
        tmp_path,
        {"CPU": 2, "GPU": 1, "TPU": 0},
        3,
        nodes,
        lambda line: said.put((line, waiting_for(tmp_path))),
    ):
        lines = [said.get(timeout=20) for _ in range(2)]
    assert said.empty()
    assert lines == [
        (f"widthwise: waiting for nodes: {WAITS}", WAITS),
        ("widthwise: nodes are back: the run needs 3 workers, and Ray has room for 4", None),
    ]


def test_what_was_killed_while_it_waited_does_not_wait_when_it_goes_on(tmp_path: Path) -> None:
    write_json(tmp_path / WAITING, {"room": 2, "fewest": 3, "held": 1})
    assert waiting_for(tmp_path) == WAITS
    with waiting_told(tmp_path, {"CPU": 1}, 1, lambda: [NODE], lambda line: None):
        assert waiting_for(tmp_path) is None


def test_what_waits_at_the_end_waits_no_more(tmp_path: Path) -> None:
    said: SimpleQueue[str] = SimpleQueue()
    with waiting_told(tmp_path, {"CPU": 1, "GPU": 0}, 1, list, said.put):
        assert said.get(timeout=20).endswith(": the run needs 1 worker, and Ray has room for 0")
        assert waiting_for(tmp_path) == "the run needs 1 worker, and Ray has room for 0"
    assert waiting_for(tmp_path) is None


def test_a_cluster_that_does_not_answer_is_asked_again() -> None:
    with pytest.raises(ConnectionError, match=r"^System error: Ray has not been started yet\."):
        living_nodes(ray)


def test_a_ray_that_does_not_tell_what_is_free_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("ray._private.state.available_resources_per_node")
    with waiting_told(tmp_path, {"CPU": 1}, 1, partial(living_nodes, ray), pytest.fail):
        [thread] = [thread for thread in threading.enumerate() if thread.name == "waiting"]
        thread.join(20)
        assert not thread.is_alive()


def test_a_fault_of_our_own_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: SimpleQueue[type[BaseException]] = SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda told: raised.put(told.exc_type))
    with waiting_told(tmp_path, {"CPU": 1}, 1, lambda: [NODE][1:][0], pytest.fail):
        assert raised.get(timeout=20) is IndexError


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_offers_what_is_free_and_what_the_run_itself_holds() -> None:
    with ray_session(None, cpus=4) as ray:
        (node,) = living_nodes(ray)
        assert (node.total["CPU"], node.usable["CPU"]) == (4, 4)
        ours = ray.util.placement_group([{"CPU": 1}] * 2)
        assert ours.wait(30)
        theirs = ray.remote(num_cpus=1)(Idle).remote()
        assert ray.get(theirs.answer.remote(), timeout=30)
        deadline = time.monotonic() + 30
        while living_nodes(ray)[0].usable["CPU"] != 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # Ray tells what is free a moment later
        ray.util.remove_placement_group(ours)
        while ray.available_resources()["CPU"] != 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert living_nodes(ray)[0].usable["CPU"] == 3


class Idle:
    def answer(self) -> bool:
        return True
