"""Panels as plain data, with all numbers and texts of a plot: matplotlib and plotly draw the same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

What = Literal["lr", "decay", "singular-values", "coordinates", "diagnostics", "bands", "front"]
Look = Literal["points", "open", "joined", "line", "dashed", "dotted", "stars", "area"]

# Okabe and Ito's, for all kinds of sight; ink is for what belongs to no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY, INK = "#5b6675", "#1c2430"
LOSS = "validation loss (nats per token)"


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points or a line.

    Attributes:
        label: in the legend; empty for none.
        x, y: as many of each.
        look: points, open ones, points that a thin line joins, a line, stars that a line joins, or the area that a line
            bounds.
        colour: place among the colours; None is ink.
        error: ± in y, or None.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    colour: int | None = None
    error: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        what: kind of plot.
        name: of this panel among all.
        title, x_label, y_label: texts.
        series: what is drawn, in this order.
        log: axes that are logarithmic.
        ticks: values to write along x; none leaves them to the library.
        marks: label → x of a vertical line.
    """

    what: What
    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log: Literal["", "x", "y", "xy"] = ""
    ticks: Sequence[float] = ()
    marks: Mapping[str, float] = field(default_factory=dict)


def colour(series: Series) -> str:
    """Return a series' colour."""
    return INK if series.colour is None else COLOURS[series.colour % len(COLOURS)]
