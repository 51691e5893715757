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
def following(path: Path, steps: int, *, enabled: bool = True) -> Iterator[None]:
    """Show the evaluations that appear in `path`: a bar on a terminal, a line each elsewhere."""
    screen, ended = console(enabled=enabled), Event()
    with progress_bar("target", screen) as bar:
        task = bar.add_task("starting Ray", total=steps)

        def look() -> None:
            seen = 0
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                seen = _show(path, seen, bar, task)
            _show(path, seen, bar, task)

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _show(path: Path, seen: int, bar: Bar, task: TaskID) -> int:
    """Show the lines after the first `seen`; return how many there are."""
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines[seen:]:
        metrics = json.loads(line)
        text = f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:,.0f} tokens/s"
        bar.update(task, completed=metrics["step"], description=text)
        if not bar.console.is_terminal:
            bar.console.print(f"step {metrics['step']}: {text}", highlight=False)
    return len(lines)
