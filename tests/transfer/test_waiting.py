"""What is said of a run that has too few workers: when that begins, and when it ends."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue

import pytest

from widthwise.proxies.files import write_json
from widthwise.transfer import waiting
from widthwise.transfer.waiting import WAITING, waiting_for, waiting_told

NODE = {"CPU": 2.0, "GPU": 1.0, "memory": 1e9}
WAITS = "the run needs 3 workers, and Ray has room for 2"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SECONDS_BETWEEN_LOOKS", 0.001)


def test_too_few_nodes_are_told_once_and_stand_in_the_folder(tmp_path: Path) -> None:
    # A node with half its cores is none; one look fails.
    seen: Iterator[Sequence[Mapping[str, float]] | None] = iter(
        [[NODE] * 3, [NODE] * 2, None, [NODE, NODE, {**NODE, "CPU": 1.0}], [NODE] * 2, [NODE] * 4]
    )
    said: SimpleQueue[tuple[str, str | None]] = SimpleQueue()

    def nodes() -> Sequence[Mapping[str, float]]:
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
    write_json(tmp_path / WAITING, {"room": 2, "fewest": 3})
    assert waiting_for(tmp_path) == WAITS
    with waiting_told(tmp_path, {"CPU": 1}, 1, lambda: [NODE], lambda line: None):
        assert waiting_for(tmp_path) is None


def test_what_waits_at_the_end_waits_no_more(tmp_path: Path) -> None:
    said: SimpleQueue[str] = SimpleQueue()
    with waiting_told(tmp_path, {"CPU": 1, "GPU": 0}, 1, list, said.put):
        assert said.get(timeout=20).endswith(": the run needs 1 worker, and Ray has room for 0")
        assert waiting_for(tmp_path) == "the run needs 1 worker, and Ray has room for 0"
    assert waiting_for(tmp_path) is None
