"""A sweep's panels: the loss of its trials against η, and against λ, with the fitted quadratic."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from widthwise.search.fitting import WINDOW, Fit, Tried, fit_minimum
from widthwise.transfer.reporting.formats import TrialLine
from widthwise.transfer.reporting.panels import LOSS, Panel, Series
from widthwise.transfer.reporting.reading import SweepFolder
from widthwise.transfer.reporting.summary import finalists, plural

Name = Literal["lr", "weight_decay"]

_SYMBOLS: dict[Name, str] = {"lr": "η", "weight_decay": "λ"}
_TITLES: dict[Name, str] = {"lr": "learning rate η", "weight_decay": "weight decay λ"}
# Of the palette, from small to large values of the other hyperparameter.
_SMALL_TO_LARGE = (5, 0, 3, 1)


def sweep_panels(sweeps: Iterable[SweepFolder]) -> list[Panel]:
    """Return two panels for every sweep of which a trial has completed the whole horizon."""
    return [
        panel
        for sweep in sweeps
        if sweep.best
        for panel in (_panel(sweep, "lr", "weight_decay"), _panel(sweep, "weight_decay", "lr"))
    ]


def _panel(sweep: SweepFolder, name: Name, other: Name) -> Panel:
    drawn = [one for one in sweep.whole if one.loss is not None and _value(one, name) and _value(one, other)]
    completed = [one for one in drawn if one.status == "completed"]
    stopped = [one for one in drawn if one.status == "stopped"]
    diverged = sum(one.status == "diverged" for one in sweep.whole)
    series = [*_by_other(completed, name, other)]
    if stopped:
        series.append(_points(stopped, name, "stopped, loss of fewer tokens", "open", None))
    series += [*_fitted(completed, name), *_recommended(sweep, name)]
    return Panel(
        what="lr" if name == "lr" else "decay",
        name=f"{sweep.name}-{name}",
        title=f"{sweep.name}: loss against {_SYMBOLS[name]}"
        + (f" ({plural(diverged, 'trial')} diverged)" if diverged else ""),
        x_label=_TITLES[name],
        y_label=LOSS,
        series=tuple(series),
        log="x",
    )


def _value(trial: TrialLine, name: Name) -> float:
    return getattr(trial.hyperparameters, name) or 0.0


def _points(
    trials: Sequence[TrialLine], name: Name, label: str, look: Literal["points", "open"], colour: int | None
) -> Series:
    x, losses = [_value(one, name) for one in trials], [one.loss or 0.0 for one in trials]
    return Series(label=label, x=x, y=losses, look=look, colour=colour)


def _by_other(trials: Sequence[TrialLine], name: Name, other: Name) -> Iterator[Series]:
    """Yield the completed trials in quarters by the other hyperparameter, each with its range."""
    ordered = sorted(trials, key=lambda one: _value(one, other))
    for colour, part in zip(_SMALL_TO_LARGE, np.array_split(np.arange(len(ordered)), 4), strict=True):
        group = [ordered[place] for place in part]
        if group:
            low, high = _value(group[0], other), _value(group[-1], other)
            span = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
            yield _points(group, name, f"{_SYMBOLS[other]} {span}", "points", colour)


def _fitted(trials: Sequence[TrialLine], name: Name) -> Iterator[Series]:
    """Yield the quadratic, least over the other hyperparameter, where its minimum is trusted and it was fitted."""
    fit = fit_of(trials)
    if fit.problem is not None or fit.loss is None:
        return
    values = [_value(one, name) for one in trials]
    x = np.geomspace(min(values), max(values), 101).tolist()
    curve = [(value, fit.along(name, value) or 0.0) for value in x]
    near = [(value, loss) for value, loss in curve if loss <= fit.loss * (1 + WINDOW)]
    # Its shape is that of all forms of decay, its height that of the best trial's.
    label = f"fitted quadratic of {plural(fit.trials, 'trial')} ({fit.decay})"
    yield Series(label=label, x=[x for x, _ in near], y=[y for _, y in near], look="dashed")


def fit_of(trials: Iterable[TrialLine]) -> Fit:
    """Return the quadratic through completed trials, as the sweep itself fits it."""
    tuned = [(one.loss, one.hyperparameters.model_dump()) for one in trials]
    return fit_minimum([Tried(loss=loss, **drawn) for loss, drawn in tuned if loss is not None])


def _recommended(sweep: SweepFolder, name: Name) -> Iterator[Series]:
    for finalist in finalists(sweep)[:1]:
        value = getattr(finalist.hyperparameters, name)
        if sweep.recipe and value and finalist.mean is not None:
            label = f"recommended{' (fitted)' if finalist.fitted else ''}, mean over seeds"
            yield Series(label=label, x=[value], y=[finalist.mean], look="stars")
