"""The panels of a watched target run: the bands that its recipe's proxies promised, and the run's line over them."""

from collections.abc import Iterable, Iterator

from widthwise.transfer.reporting.formats import MetricsLine
from widthwise.transfer.reporting.panels import Panel, Series
from widthwise.transfer.reporting.reading import RunFolder
from widthwise.transfer.watching.records import Carried

# What is always shown; other bands where the run has left them.
_SHOWN = {
    ("loss", "run"),
    ("gradient_norm", "run"),
    ("rms", "matrix"),
    ("update_ratio", "matrix"),
    ("gain", "matrix"),
}
_LABELS = {
    "loss": "validation loss (nats per token)",
    "gradient_norm": "‖g‖, whole model",
    "rms": "rms θ",
    "update_ratio": "‖ηu‖/‖θ‖",
    "gain": "rms(Wx)/rms(x)",
}


def watch_panels(runs: Iterable[RunFolder]) -> list[Panel]:
    """Return a panel per run and band."""
    return [panel for run in runs if run.watch for panel in _panels(run)]


def _panels(run: RunFolder) -> Iterator[Panel]:
    assert run.watch is not None
    raised = {(alarm.quantity, alarm.kind): alarm for alarm in reversed(run.alarms)}
    for band in run.watch.bands:
        place = (band.quantity, band.kind)
        line = [(float(one.step), value) for one in run.metrics if (value := _value(one, band)) is not None]
        if not line or (place not in _SHOWN and place not in raised):
            continue
        of = "" if band.kind == "run" else f" of {band.kind}"
        alarm = raised.get(place)
        yield Panel(
            what="bands",
            name=f"{run.name}-{band.quantity}-{band.kind}",
            title=f"{run.name}: {band.quantity.replace('_', ' ')}{of} and the proxies' band",
            x_label="step",
            y_label=_LABELS[band.quantity],
            series=(*_edges(band, run.watch.steps), _series(run.rule, line)),
            log="" if band.quantity == "loss" else "y",
            marks={} if alarm is None else {"alarm": float(alarm.step)},
        )


def _series(label: str, line: list[tuple[float, float]]) -> Series:
    return Series(label=label, x=[x for x, _ in line], y=[y for _, y in line], look="line", colour=1)


def _edges(band: Carried, steps: tuple[int, ...]) -> Iterator[Series]:
    """Yield the band as an area, or its upper edge where nothing is too low, and its centre."""
    rows = zip(steps, band.low, band.centre, band.high, strict=True)
    known = [(float(step), low, centre, high) for step, low, centre, high in rows if centre and high]
    x, centres, highs = ([row[place] or 0.0 for row in known] for place in (0, 2, 3))
    lows = [row[1] for row in known if row[1] is not None]
    if len(lows) == len(known):
        yield Series(label="band", x=[*x, *x[::-1]], y=[*highs, *lows[::-1]], look="area", colour=0)
    else:
        yield Series(label="upper edge of the band", x=x, y=highs, look="dashed", colour=0)
    yield Series(label="centre, from the proxies", x=x, y=centres, look="dotted", colour=0)


def _value(metrics: MetricsLine, band: Carried) -> float | None:
    if band.quantity == "loss":
        return metrics.loss
    if metrics.diagnostics is None:
        return None
    if band.quantity == "gradient_norm":
        return metrics.diagnostics.gradient_norm
    there = metrics.diagnostics.kinds.get(band.kind)
    value: float | None = getattr(there, band.quantity, None)
    return value
