"""What a terminal shows of a study while it runs, below the bar: a line of counts, and the best trial."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress import Progress
from rich.text import Text

_SAID = {"completed": "completed", "stopped": "stopped early", "diverged": "diverged", "failed": "failed"}


class BarAndLines(Progress):
    """Rich's bar, with lines of text below it."""

    lines: Sequence[str] = ()

    def get_renderable(self) -> RenderableType:
        """Return the bar's table with the lines below."""
        bar = super().get_renderable()
        return Group(bar, *(Text(line, no_wrap=True, overflow="ellipsis") for line in self.lines))


def counts_line(records: Sequence[Mapping[str, Any]], latest: Sequence[Mapping[str, Any]]) -> str:
    """Return how many trials run and how the others ended, and the tokens a second of the running ones together.

    Args:
        records: the trials that have ended, as in ``trials.jsonl``.
        latest: of every running trial its last evaluation, empty before the first: ``tokens``, ``seconds``.
    """
    ended = Counter(record["status"] for record in records)
    said = [
        f"{len(latest)} running",
        *(f"{ended[status]} {name}" for status, name in _SAID.items() if ended[status]),
    ]
    speed = sum(one["tokens"] / one["seconds"] for one in latest if one.get("seconds"))
    return ", ".join(said) + (f"; {speed:,.0f} tokens/s" if speed else "")


def best_line(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a sweep's lowest loss with the first seed, and what was tried; None before a trial has completed."""
    # A check's runs differ in width, and have no `hyperparameters`: none of them is the best.
    completed = [
        one
        for one in records
        if one["status"] == "completed" and "hyperparameters" in one and one["confirms"] is None
    ]
    if not completed:
        return None
    best = min(completed, key=lambda one: one["loss"])
    tried = best["hyperparameters"]
    c = "∞" if tried["huber_c"] is None else f"{tried['huber_c']:.3g}"
    settings = f"η {tried['lr']:.3g}, λ {tried['weight_decay']:.3g}, c {c} ({tried['decay']})"
    return f"best: trial {best['number']}, loss {best['loss']:.4f}, {settings}"
