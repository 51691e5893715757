"""Panels drawn by matplotlib, as a file for a paper or a README."""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, get_args

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from widthwise.proxies.files import replacing
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.reporting.check_panels import check_panels
from widthwise.transfer.reporting.front_panels import front_panels
from widthwise.transfer.reporting.panels import GREY, Look, Panel, What, colour
from widthwise.transfer.reporting.reading import Contents, read_contents
from widthwise.transfer.reporting.sweep_panels import sweep_panels
from widthwise.transfer.reporting.watch_panels import watch_panels
from widthwise.transfer.reporting.weight_panels import run_panels

FORMATS = (".png", ".svg", ".pdf")
_WITHIN = 3  # labels that find room among the points
_LOOKS: dict[Look, dict[str, Any]] = {
    "points": {"linestyle": "none", "marker": "o", "markersize": 5, "capsize": 2},
    "open": {"linestyle": "none", "marker": "o", "markersize": 5, "markerfacecolor": "none", "capsize": 2},
    "joined": {"linewidth": 0.6, "marker": "o", "markersize": 5, "capsize": 2},
    # Also one evaluation is seen.
    "line": {"linewidth": 1.6, "marker": "."},
    "dashed": {"linewidth": 1.2, "linestyle": "--"},
    "dotted": {"linewidth": 1.2, "linestyle": ":"},
    "stars": {"linewidth": 1.2, "marker": "*", "markersize": 10},
    "area": {"alpha": 0.18, "linewidth": 0},
}


def plot(
    folder: Path, out: Path, what: str | None = None, *, on_left_out: Callable[[str], object] | None = None
) -> Path:
    """Draw what lies in `folder`, and its direct subfolders: checks, sweeps, and target runs' diagnostics.

    Args:
        folder: of a check, of a sweep or of a target run, or one of several such.
        out: the figure's file, ``.png``, ``.svg`` or ``.pdf``.
        what: one kind of panel of `What`; None is all that there are.
        on_left_out: called with the reason for each subfolder of another program's, or of an unfinished check.

    Returns:
        `out`.

    Raises:
        ConfigError: there is nothing to draw, a file is damaged, or the figure cannot be written.
    """
    if out.suffix not in FORMATS:
        raise ConfigError(f"out: must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {str(out)!r}")
    if what is not None and what not in get_args(What):
        raise ConfigError(f"what: must be one of {', '.join(get_args(What))}, got {what!r}")
    found = folder_panels(read_contents(folder, on_left_out))
    panels = [panel for panel in found if what in (None, panel.what)]
    if not panels:
        there = ", ".join(dict.fromkeys(panel.what for panel in found))
        rule = (
            f"must be one of {there}"
            if found
            else "a check that trained, a sweep with a completed trial, or runs with --diagnostics are needed"
        )
        raise ConfigError(f"what: {folder} holds no {what or 'plots'}; {rule}")
    _save(draw(panels), out)
    return out


def folder_panels(contents: Contents) -> list[Panel]:
    """Return all panels of a folder, a check after the other, the sweeps' and the runs' together."""
    checks = [panel for one in contents.checks for panel in check_panels(one.result)]
    sweeps = sweep_panels(contents.sweeps) + front_panels(contents.sweeps)
    return checks + sweeps + run_panels(contents.runs) + watch_panels(contents.runs)


def draw(panels: Sequence[Panel]) -> Figure:
    """Return a figure of the panels, two beside each other."""
    columns = min(2, len(panels))
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(6.4 * columns, 4.4 * rows), layout="constrained")
    for place, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(rows, columns, place), panel)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for one in panel.series:
        # A label that begins with an underscore is left out of the legend.
        style = {"color": colour(one), "label": _plain(one.label) or "_", **_LOOKS[one.look]}
        if one.look in ("points", "open", "joined"):
            axes.errorbar(one.x, one.y, yerr=one.error, **style)
        elif one.look == "area":
            axes.fill(one.x, one.y, **style)
        else:
            axes.plot(one.x, one.y, **style)
    for label, x in panel.marks.items():
        axes.axvline(x, color=GREY, linewidth=0.8, linestyle=":")
        _mark(axes, label, x)
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.grid(alpha=0.25)
    if "y" in panel.log:
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis, *axes.get_ylim())
    if panel.log == "x":
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis, *axes.get_xlim())
    if panel.log == "xy":
        axes.set_xscale("log")
        axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    _legend(axes)


def _mark(axes: Axes, label: str, x: float) -> None:
    """Write a vertical line's label beside it, clear of the error bars that stand on it, over the rest."""
    look: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 7, "color": GREY}
    beside: dict[str, Any] = {"xytext": (-4, 0), "textcoords": "offset points", "annotation_clip": False}
    halo = [withStroke(linewidth=3, foreground="white")]
    where = axes.get_xaxis_transform()
    axes.annotate(_plain(label), (x, 0.98), xycoords=where, path_effects=halo, zorder=4, **beside, **look)


def _legend(axes: Axes) -> None:
    """Draw the legend within the axes, or below where it is so large that it would hide points."""
    labels = axes.get_legend_handles_labels()[1]
    if len(labels) > _WITHIN:
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 2}
        axes.legend(fontsize=8, frameon=False, **below)
    else:
        axes.legend(fontsize=8)


def _plain_numbers(axis: Axis, low: float, high: float) -> None:
    """Write a logarithmic axis' numbers without powers of ten."""
    if high > 8 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain = StrMethodFormatter("{x:g}")
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(NullFormatter() if high > 8 * low else plain)


def _plain(label: str) -> str:
    """Return a label that matplotlib does not read as mathematics."""
    return label.replace("$", r"\$")


def _save(figure: Figure, out: Path) -> None:
    """Write a figure whole or not at all; the same one twice is the same file."""
    with matplotlib.rc_context({"svg.hashsalt": "widthwise"}):
        try:
            with replacing(out) as file:
                kind = out.suffix.removeprefix(".")
                dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
                figure.savefig(file, format=kind, dpi=120, metadata=dates.get(kind))
        except OSError as error:
            raise ConfigError(f"out: {out} cannot be written ({error.strerror})") from None
