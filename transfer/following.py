"""A target run's progress on standard error, read from its metrics file as the workers write it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from rich.progress import Progress as Bar
from rich.progress import TaskID

from widthwise.search.progress import console, progress_bar

SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def following(path: Path, steps: int, *, done: int | None = None, enabled: bool = True) -> Iterator[None]:
    """Show the evaluations that appear in `path`: a bar on a terminal, a line each elsewhere.

    Args:
        path: the metrics file.
        steps: of the whole run.
        done: the step that a resumed run goes on from; what the file holds already is not shown again.
        enabled: whether anything is shown.
    """
    screen, ended = console(enabled=enabled), Event()
    # Known by all that they say: a stretch that is repeated takes its own time.
    seen = set(_lines(path))
    with progress_bar("target", screen) as bar:
        task = bar.add_task("starting Ray", total=steps, completed=done or 0)
        if done is not None:
            bar.console.print(f"going on from step {done}", highlight=False)

        def look() -> None:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                _show(path, seen, bar, task)
            _show(path, seen, bar, task)

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _show(path: Path, seen: set[str], bar: Bar, task: TaskID) -> None:
    """Show the lines that were not seen yet."""
    new = [line for line in _lines(path) if line not in seen]
    seen.update(new)
    for line in new:
        metrics = json.loads(line)
        text = f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:,.0f} tokens/s"
        bar.update(task, completed=metrics["step"], description=text)
        if not bar.console.is_terminal:
            bar.console.print(f"step {metrics['step']}: {text}", highlight=False)
