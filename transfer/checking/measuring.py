"""What a check measures, as pure functions of its observations: optima, drifts, exponents, coordinates.

Definitions follow from the sources named beside them; widths are compared on a log₂ scale, so that a slope is
"octaves per doubling of the width" or an exponent.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import log2, prod, sqrt
from statistics import fmean

import numpy as np

from widthwise.transfer.checking.estimates import CONFIDENCE, Estimate, Scatter, mean_over_seeds, slope
from widthwise.transfer.checking.findings import AtWidth, Measured, Quality
from widthwise.transfer.checking.fitting import Losses, Optimum, find_optimum, loss_at, pooled_scatter
from widthwise.transfer.checking.observing import AXES, Axis, Observation, line


def measure(
    observations: Sequence[Observation], *, base_width: int, confidence: float = CONFIDENCE
) -> Measured:
    """Return all that the observations say; `base_width` must be among them at the transferred setting."""
    transferred = [one for one in observations if one.setting.is_transferred]
    widths = sorted({one.setting.width for one in transferred})
    steps = _common_steps(transferred)
    kappas = {width: _mean(_at(transferred, width), lambda one: one.kappa) for width in widths}
    pools = {axis: pooled_scatter([line(observations, width, axis) for width in widths]) for axis in AXES}
    at = tuple(
        _at_width(
            observations,
            width,
            kappas[base_width],
            kappas[width],
            steps,
            {axis: pool[index] for axis, pool in pools.items()},
            confidence,
        )
        for index, width in enumerate(widths)
    )
    p = _run_slope(transferred, singular_factor, confidence)
    rule_exponent = _rule_exponent(at)
    lr_drift = _drift(at, lambda one: one.lr_optimum, confidence)
    decay_drift = _drift(at, lambda one: one.decay_optimum, confidence)
    return Measured(
        base_width=base_width,
        widths=at,
        seeds=min(len({one.setting.seed for one in _at(transferred, width)}) for width in widths),
        deviation=_pooled_deviation(at),
        lr_drift=lr_drift,
        decay_drift=decay_drift,
        # The layers share the confidence: with Bonferroni's correction, all intervals hold together.
        coordinate_slopes=_coordinate_slopes(transferred, steps, 1 - (1 - confidence) / max(1, len(steps))),
        coordinate_slopes_alone=_coordinate_slopes(transferred, steps, confidence),
        singular_exponent=p,
        rule_decay_exponent=rule_exponent,
        singular_decay_exponent=None
        if p is None
        else Estimate(value=2 * p.value - 1, low=2 * p.low - 1, high=2 * p.high - 1),
        loss_decay_exponent=None
        if decay_drift is None or rule_exponent is None
        else decay_drift + rule_exponent,
        kappa_exponent=_run_slope(transferred, lambda one: _log2(one.kappa), confidence),
        quality=_quality(at),
    )


def decay_difference(losses: Losses, octaves: float, confidence: float = CONFIDENCE) -> Estimate | None:
    """Return the loss at a λ `octaves` off the rule's minus the loss at the rule's, in nats per token.

    Between measured points it is that of each seed's parabola through the nearest three. Nobody knows how good a
    parabola is there, so that the interval reaches as far as that of the chord, above which no convex landscape lies.
    Beyond the points nothing is said, and None is returned, as where a seed diverged at the rule's own λ.
    """
    finite = sorted(x for x, by_seed in losses.items() if None not in by_seed.values())
    if 0.0 not in finite or not finite[0] <= octaves <= finite[-1]:
        return None
    seeds = sorted(set.intersection(*(set(losses[x]) for x in finite)))

    def difference(points: Sequence[float]) -> Estimate:
        weights = [prod((octaves - other) / (x - other) for other in points if other != x) for x in points]
        rows = [[loss_at(losses, x, seed) for x in points] for seed in seeds]
        changes = [
            float(np.dot(weights, row)) - loss_at(losses, 0.0, seed)
            for row, seed in zip(rows, seeds, strict=True)
        ]
        return mean_over_seeds(changes, confidence)

    place = bisect(finite, octaves)
    # Lagrange's polynomials, exact where a point was measured.
    parabola = difference(sorted(finite, key=lambda x: abs(x - octaves))[:3])
    chord = difference(finite[place - 1 : place + 1])
    return replace(parabola, low=min(parabola.low, chord.low), high=max(parabola.high, chord.high))


def _at_width(
    observations: Sequence[Observation],
    width: int,
    base_kappa: float | None,
    kappa: float | None,
    steps: Mapping[str, Sequence[int]],
    scatter: Mapping[Axis, Scatter | None],
    confidence: float,
) -> AtWidth:
    runs = [one for one in _at(observations, width) if one.setting.is_transferred]
    losses = [one.loss for one in runs if one.loss is not None]
    weight_decay = runs[0].weight_decay
    followed = [one for one in runs if one.coordinates]
    logs = {layer: [_coordinate(one, layer, steps) for one in followed] for layer in steps if followed}
    singular = _mean(runs, _log_singular_value)
    return AtWidth(
        width=width,
        lr=runs[0].lr,
        weight_decay=weight_decay,
        loss=fmean(losses) if len(losses) == len(runs) else None,
        diverged=len(runs) - len(losses),
        lr_optimum=_optimum(line(observations, width, "lr"), scatter["lr"], confidence),
        decay_optimum=_optimum(line(observations, width, "decay"), scatter["decay"], confidence),
        top_singular_value=None if singular is None else 2**singular,
        kappa=kappa,
        corrected_decay=weight_decay * base_kappa / kappa if base_kappa and kappa else None,
        rms_ratio=_mean(runs, lambda one: one.rms_ratio),
        update_ratio=_mean(runs, lambda one: one.update_ratio),
        coordinates={layer: 2 ** fmean(values) for layer, values in logs.items()},
    )


def _at(observations: Iterable[Observation], width: int) -> list[Observation]:
    return [one for one in observations if one.setting.width == width]


def _optimum(losses: Losses, scatter: Scatter | None, confidence: float) -> Optimum | None:
    """Return the line's optimum; None where nothing but the transferred setting was run."""
    return find_optimum(losses, confidence, scatter=scatter) if len(losses) > 1 else None


Reading = Callable[[Observation], float | None]


def _mean(runs: Iterable[Observation], reading: Reading) -> float | None:
    known = [value for value in map(reading, runs) if value is not None]
    return fmean(known) if known else None


def _run_slope(runs: Iterable[Observation], reading: Reading, confidence: float) -> Estimate | None:
    """Return the slope of a reading in log₂ width; a run is one point, however many matrices it has."""
    points = [(log2(one.setting.width), reading(one)) for one in runs]
    known = [(x, y) for x, y in points if y is not None]
    return slope([x for x, _ in known], [y for _, y in known], confidence)


def _log2(value: float | None) -> float | None:
    return log2(value) if value else None


def _log_singular_value(run: Observation) -> float | None:
    values = [log2(value) for value in run.top_singular_values.values()]
    return fmean(values) if values else None


def singular_factor(run: Observation) -> float | None:
    """Return log₂ of σ₁/√(η/λ): what σ₁ ∝ √(η/λ)·d^p (arXiv 2510.15262) leaves for the width."""
    singular = _log_singular_value(run)
    if singular is None or not (run.lr and run.weight_decay):
        return None
    return singular - log2(run.lr / run.weight_decay) / 2


def _rule_exponent(at: Sequence[AtWidth]) -> float | None:
    """Return the rule's exponent of λ in width, from its own values."""
    if len(at) < 2 or not all(one.weight_decay for one in at):
        return None
    x, y = [log2(one.width) for one in at], [log2(one.weight_decay) for one in at]
    return float(np.polyfit(x, y, 1)[0])


def _drift(
    at: Sequence[AtWidth], which: Callable[[AtWidth], Optimum | None], confidence: float
) -> Estimate | None:
    """Return the slope of the seeds' minima in log₂ width; None unless every width's minimum is bracketed.

    As a minimum's own, the interval is widened by as much as cubics in place of parabolas would change the slope.
    """
    points: list[tuple[float, float, float]] = []
    for one in at:
        optimum = which(one)
        if optimum is None or optimum.by_seed is None:
            return None
        points += [(log2(one.width), minimum, optimum.shift) for minimum in optimum.by_seed.values()]
    x, minima, shifts = ([point[place] for point in points] for place in range(3))
    drift, change = slope(x, minima, confidence), slope(x, shifts)
    return None if drift is None or change is None else drift.widened(abs(change.value))


def _pooled_deviation(at: Sequence[AtWidth]) -> float | None:
    optima = [one.lr_optimum for one in at if one.lr_optimum is not None]
    known = [one.deviation for one in optima if one.deviation is not None]
    return sqrt(fmean(value**2 for value in known)) if known else None


def _common_steps(runs: Sequence[Observation]) -> dict[str, list[int]]:
    """Return layer → the steps at which its output had changed in every run.

    Behind a readout that starts at zero, nothing but the logits changes in the first step.
    """
    known = [one for one in runs if one.coordinates]
    steps: dict[str, list[int]] = {}
    for layer in known[0].coordinates if known else ():
        changes = [one.coordinates[layer] for one in known]
        common = range(min(map(len, changes)))
        moved = [step for step in common if all(change[step] > 0 for change in changes)]
        if moved:
            steps[layer] = moved
    return steps


def _coordinate(run: Observation, layer: str, steps: Mapping[str, Sequence[int]]) -> float:
    return fmean(log2(run.coordinates[layer][step]) for step in steps[layer])


def _coordinate_slopes(
    runs: Sequence[Observation], steps: Mapping[str, Sequence[int]], confidence: float
) -> dict[str, Estimate]:
    """Return the exponent of each layer's change in width (the coordinate check of arXiv 2203.03466, appendix D)."""
    slopes: dict[str, Estimate] = {}
    for layer in steps:
        found = _run_slope(
            (one for one in runs if one.coordinates),
            lambda one, layer=layer: _coordinate(one, layer, steps),  # type: ignore[misc]
            confidence,
        )
        if found is not None:
            slopes[layer] = found
    return slopes


def _quality(at: Sequence[AtWidth]) -> Quality | None:
    optima = [one.lr_optimum for one in at]
    decay = at[-1].decay_optimum
    if len(at) < 3 or any(one is None or one.octaves is None for one in optima):
        return None
    last = optima[-1]
    assert last is not None
    assert last.curvature is not None
    if last.regret is None:
        return None
    x = [log2(one.width) for one in at]
    # log₂ of the optimal η itself: the rule's is a power of the width, which leaves the residuals alone.
    y = [one.octaves.value for one in optima if one is not None and one.octaves is not None]
    residuals = np.asarray(y) - np.polyval(np.polyfit(x, y, 1), x)
    lost = 0.0 if decay is None or decay.regret is None else decay.regret.value
    return Quality(
        fit=sqrt(float(residuals @ residuals) / (len(at) - 2)),
        robustness=last.curvature,
        penalty=last.regret.value + lost,
    )
