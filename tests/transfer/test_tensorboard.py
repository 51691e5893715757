"""metrics.jsonl and TensorBoard's run of it: each evaluation once, whatever was lost."""

import json
from pathlib import Path

from widthwise.proxies.outcome import Metrics
from widthwise.transfer.run_files import Log

from ..events import events, scalars


def at(step: int, loss: float) -> Metrics:
    taken = {"seconds": 0.5 * step, "tokens_per_second": 2048.0, "lr_factor": 0.5}
    return Metrics(step=step, tokens=1024 * step, loss=loss, train_loss=loss + 0.25, grad_norm=None, **taken)


def test_a_resumed_run_has_every_evaluation_once_in_both(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Log(tmp_path, None)
    for step, loss in ((8, 4.0), (16, 3.5), (24, 3.25)):
        first.add(at(step, loss))
    # As after a kill, the file still open: the run goes on from the checkpoint of step 8.
    second = Log(tmp_path, None)
    for step, loss in ((16, 3.5), (24, 3.0)):
        second.add(at(step, loss))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(8, 4.0), (16, 3.5), (24, 3.0)]
    folder = tmp_path / "tensorboard" / "target"
    assert scalars(folder, "loss") == [(8192, 4.0), (16384, 3.5), (24576, 3.0)]
    assert scalars(folder, "train_loss") == [(8192, 4.25), (16384, 3.75), (24576, 3.25)]
    drawn = {value.tag for event in events(folder) for value in event.summary.value}
    assert drawn == {"loss", "train_loss", "lr_factor", "seconds", "tokens_per_second"}
