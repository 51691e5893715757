"""A check's panels: landscapes along η and λ, the largest singular value, the coordinate check."""

from collections.abc import Iterator, Sequence
from math import exp, log, sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np

from widthwise.proxies.outcome import SPECTRUM_SHARES
from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.findings import AtWidth, Measured
from widthwise.transfer.checking.fitting import Optimum
from widthwise.transfer.checking.measuring import singular_factor
from widthwise.transfer.checking.observing import Axis, line
from widthwise.transfer.checking.tables import interval
from widthwise.transfer.reporting.panels import LOSS, Panel, Series

if TYPE_CHECKING:
    from widthwise.transfer.checking.running import CheckResult

_SYMBOLS: dict[Axis, str] = {"lr": "η", "decay": "λ"}


def check_panels(result: "CheckResult") -> list[Panel]:
    """Return the panels that a check has the runs for; none where the horizon kept it from training."""
    measured = result.measured
    if measured is None:
        return []
    drawn = [
        _landscape(result, measured, "lr"),
        _landscape(result, measured, "decay"),
        _singular_values(result, measured),
        _spectra(result, measured),
        _coordinates(measured),
    ]
    return [panel for panel in drawn if panel.series]


# Landscapes


def _landscape(result: "CheckResult", measured: Measured, axis: Axis) -> Panel:
    """Return the loss along η or λ, a colour per width, the fitted minima joined."""
    series: list[Series] = []
    minima: list[tuple[float, float]] = []
    for colour, at in enumerate(measured.widths):
        optimum = at.lr_optimum if axis == "lr" else at.decay_optimum
        if optimum is None:
            continue
        series += _along(result, at, axis, optimum, colour)
        if optimum.octaves is not None and optimum.loss is not None:
            minima.append((optimum.octaves.value, optimum.loss))
    if minima:
        x, y = ([point[place] for point in minima] for place in range(2))
        series.append(Series(label="fitted minima", x=x, y=y, look="stars"))
    tuned = result.recipe.hyperparameters
    symbol, value = _SYMBOLS[axis], tuned.lr if axis == "lr" else tuned.weight_decay
    where = f"{symbol} = {value:.4g} at width {measured.base_width}"
    marks = {f"transferred by {result.rule}": 0.0}
    return Panel(
        what=axis,
        name=axis,
        title=f"loss against {symbol}",
        x_label=f"log₂ {symbol}, off the rule's own ({where})",
        y_label=LOSS,
        series=tuple(series),
        marks=marks | (_other_rules(result) if axis == "decay" else {}),
    )


def _along(result: "CheckResult", at: AtWidth, axis: Axis, optimum: Optimum, colour: int) -> Iterator[Series]:
    """Yield a width's mean losses with their standard deviations over seeds, and its parabola."""
    losses = line(result.observations, at.width, axis)
    known = {
        x: [loss for loss in by_seed.values() if loss is not None]
        for x, by_seed in sorted(losses.items())
        if None not in by_seed.values()
    }
    diverged = len(losses) - len(known)
    lost = (
        f" ({diverged} value{'s' if diverged > 1 else ''} of {_SYMBOLS[axis]} diverged)" if diverged else ""
    )
    yield Series(
        label=f"width {at.width}{lost}",
        x=list(known),
        y=[fmean(values) for values in known.values()],
        look="joined",
        colour=colour,
        error=[stdev(values) if len(values) > 1 else 0.0 for values in known.values()],
    )
    if optimum.octaves is None or optimum.loss is None or optimum.curvature is None:
        return
    low, high = _near(list(known), optimum)
    x = np.linspace(low, high, 41)
    y = optimum.loss + optimum.curvature * (x - optimum.octaves.value) ** 2
    yield Series(label="", x=x.tolist(), y=y.tolist(), look="dashed", colour=colour)


def _near(offsets: list[float], optimum: Optimum) -> tuple[float, float]:
    """Return the ends between which the parabola is meant: two steps to either side of the best point."""
    assert optimum.best is not None
    step = min(abs(x - optimum.best) for x in offsets if x != optimum.best)
    return max(offsets[0], optimum.best - 2 * step), min(offsets[-1], optimum.best + 2 * step)


def _other_rules(result: "CheckResult") -> dict[str, float]:
    """Return where other rules' λ of the largest width lies, those of one value together."""
    names: dict[float, list[str]] = {}
    for name, other in result.alternatives.items():
        names.setdefault(round(other.octaves, 6), []).append(name)
    return {", ".join(together): octaves for octaves, together in names.items()}


# Powers of the width


def _singular_values(result: "CheckResult", measured: Measured) -> Panel:
    """Return σ₁/√(η/λ) of every transferred run against the width, with its power law and the rule's."""
    found = [
        (one.setting.width, 2**value)
        for one in result.observations
        if one.setting.is_transferred and (value := singular_factor(one)) is not None
    ]
    widths, values = [float(width) for width, _ in found], [value for _, value in found]
    series = [Series(label="a run", x=widths, y=values, look="points", colour=0)] if found else []
    if found and measured.singular_exponent is not None:
        label = f"measured: p = {interval(measured.singular_exponent)}"
        series.append(_power_law(label, widths, values, measured.singular_exponent, 0))
    kept = {at.width: sqrt(at.weight_decay / at.lr) for at in measured.widths if at.lr and at.weight_decay}
    if found and all(width in kept for width in widths):
        level = exp(fmean(log(value / kept[int(width)]) for width, value in zip(widths, values, strict=True)))
        y = [level * value for value in kept.values()]
        series.append(
            Series(
                label=f"{result.rule} supposes (σ₁ kept)",
                x=list(map(float, kept)),
                y=y,
                look="dotted",
                colour=1,
            )
        )
    return Panel(
        what="singular-values",
        name="singular-values",
        title="largest singular value",
        x_label="width",
        y_label="σ₁ ÷ √(η/λ), geometric mean over matrices",
        series=tuple(series),
        log="xy",
        ticks=[at.width for at in measured.widths],
    )


def _spectra(result: "CheckResult", measured: Measured) -> Panel:
    """Return each width's singular values, geometric means over matrices and seeds: equal ones are kept by the rule."""
    series = []
    for colour, at in enumerate(measured.widths):
        runs = [one for one in result.observations if one.setting.is_transferred]
        spectra = [values for one in runs if one.setting.width == at.width for values in one.spectra.values()]
        shares = zip(SPECTRUM_SHARES, zip(*spectra, strict=False), strict=False)
        known = [(share, exp(fmean(map(log, values)))) for share, values in shares if min(values) > 0]
        x, y = [share for share, _ in known], [value for _, value in known]
        if known:
            series.append(Series(label=f"width {at.width}", x=x, y=y, look="line", colour=colour))
    return Panel(
        what="singular-values",
        name="spectra",
        title="spectra of the matrices",
        x_label="share of the singular values that are larger",
        y_label="σ, geometric mean over matrices and seeds",
        series=tuple(series),
        log="xy",
        ticks=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9),
    )


def _power_law(label: str, x: Sequence[float], y: Sequence[float], exponent: Estimate, colour: int) -> Series:
    """Return the line of a measured exponent through the points' geometric means."""
    ends = [min(x), max(x)]
    middle, height = fmean(map(log, x)), fmean(map(log, y))
    values = [exp(height + exponent.value * (log(end) - middle)) for end in ends]
    return Series(label=label, x=ends, y=values, look="dashed", colour=colour)


def _coordinates(measured: Measured) -> Panel:
    """Return each layer's change in the first steps against the width, with the exponents of the verdict."""
    series: list[Series] = []
    for colour, (layer, exponent) in enumerate(measured.coordinate_slopes.items()):
        known = [
            (float(at.width), at.coordinates[layer]) for at in measured.widths if layer in at.coordinates
        ]
        x, y = [width for width, _ in known], [value for _, value in known]
        label = f"{layer}: width^{interval(exponent)}"
        series.append(Series(label="", x=x, y=y, look="points", colour=colour))
        series.append(_power_law(label, x, y, exponent, colour))
    return Panel(
        what="coordinates",
        name="coordinates",
        title="coordinate check",
        x_label="width",
        y_label="rms Δh, mean over the first ten steps",
        series=tuple(series),
        log="xy",
        ticks=[at.width for at in measured.widths],
    )
