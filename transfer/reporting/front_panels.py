"""What a sweep with two objectives found: the least loss against tokens, and where the best settings go with them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from widthwise.transfer.reporting.panels import LOSS, Panel, Series
from widthwise.transfer.reporting.reading import SweepFolder
from widthwise.transfer.reporting.summary import nats, number

HEAD = ("tokens", "trials", "best", "loss", "above the last", "η", "λ", "c")


def front_rows(front: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table of a front, of `widthwise.search.front.front`, as texts."""
    least = front[-1]["loss"] if front else 0.0
    return [
        (
            f"{one['tokens']:,}",
            str(one["trials"]),
            str(one["number"]),
            nats(one["loss"]),
            f"{one['loss'] / least - 1:.1%}",
            number(one["hyperparameters"]["lr"]),
            number(one["hyperparameters"]["weight_decay"]),
            number(one["hyperparameters"]["huber_c"]),
        )
        for one in front
    ]


def front_panels(sweeps: Iterable[SweepFolder]) -> list[Panel]:
    """Return two panels for every sweep that searched its horizon: the loss, and η, against tokens."""
    return [panel for sweep in sweeps if sweep.front for panel in _panels(sweep)]


def _panels(sweep: SweepFolder) -> Iterator[Panel]:
    assert sweep.front
    trials = [one for one in sweep.proposals if one.status == "completed" and one.loss is not None]
    ticks = sorted({float(one.tokens) for one in trials})
    best = [float(one["tokens"]) for one in sweep.front]
    for name, label, values, least in (
        ("loss", LOSS, [one.loss or 0.0 for one in trials], [one["loss"] for one in sweep.front]),
        (
            "lr",
            "learning rate η",
            [one.hyperparameters.lr or 0.0 for one in trials],
            [one["hyperparameters"]["lr"] for one in sweep.front],
        ),
    ):
        tokens = [float(one.tokens) for one in trials]
        yield Panel(
            what="front",
            name=f"{sweep.name}-front-{name}",
            title=f"{sweep.name}: {'least loss' if name == 'loss' else 'η of the least loss'} against tokens",
            x_label="tokens of a trial",
            y_label=label,
            series=(
                Series(label="trials", x=tokens, y=values, look="points", colour=5),
                Series(label="Pareto front", x=best, y=least, look="stars", colour=1),
            ),
            log="xy",
            ticks=ticks,
        )
