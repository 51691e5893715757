"""A target run's progress and alarms on standard error, read from its files as the workers write them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from rich.progress import Progress as Bar
from rich.progress import TaskID

from widthwise.proxies.storage import Place
from widthwise.search.progress import console, progress_bar
from widthwise.transfer.watching.telling import told

# On this machine's file systems, and on storage that charges for each look.
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_REQUESTS = 5.0


@contextmanager
def following(out: Place, steps: int, *, done: int | None = None, enabled: bool = True) -> Iterator[None]:
    """Show the evaluations that appear in a folder: a bar on a terminal, a line each elsewhere; alarms a line each.

    Of the alarms of one quantity and kind the first is shown.

    Args:
        out: the run's folder, with ``metrics.jsonl`` and ``alarms.jsonl``.
        steps: of the whole run.
        done: the step that a resumed run goes on from; what the file holds already is not shown again.
        enabled: whether anything is shown.
    """
    screen, ended = console(enabled=enabled), Event()
    path, alarms = out / "metrics.jsonl", out / "alarms.jsonl"
    pause = SECONDS_BETWEEN_LOOKS if isinstance(out, Path) else SECONDS_BETWEEN_REQUESTS
    # Known by all that they say: a stretch that is repeated takes its own time.
    seen = set(_lines(path))
    raised = {_what(line) for line in _lines(alarms)}
    with progress_bar("target", screen) as bar:
        task = bar.add_task("starting Ray", total=steps, completed=done or 0)
        if done is not None:
            bar.console.print(f"going on from step {done}", highlight=False)

        def look() -> None:
            while not ended.wait(pause):
                _show(path, seen, bar, task)
                _raise(alarms, raised, bar)
            _show(path, seen, bar, task)
            _raise(alarms, raised, bar)

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _lines(path: Place) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []  # not there yet, or not to be had just now


def _show(path: Place, seen: set[str], bar: Bar, task: TaskID) -> None:
    """Show the lines that were not seen yet."""
    new = [line for line in _lines(path) if line not in seen]
    seen.update(new)
    for line in new:
        metrics = json.loads(line)
        text = f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in metrics:
            text += f", MFU {metrics['mfu']:.1%}"
        bar.update(task, completed=metrics["step"], description=text)
        if not bar.console.is_terminal:
            bar.console.print(f"step {metrics['step']}: {text}", highlight=False)


def _what(line: str) -> tuple[str, str]:
    alarm = json.loads(line)
    return alarm["quantity"], alarm["kind"]


def _raise(path: Place, raised: set[tuple[str, str]], bar: Bar) -> None:
    """Show the alarms of what has not raised one yet."""
    for line in _lines(path):
        if (what := _what(line)) not in raised:
            raised.add(what)
            said = f"widthwise: {told(json.loads(line))}"
            bar.console.print(said, highlight=False, markup=False, soft_wrap=True)
