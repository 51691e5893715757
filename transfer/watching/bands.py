"""What the proxies showed at every share of their run, as a recipe keeps it, and carried to a target."""

from collections.abc import Iterator, Mapping, Sequence
from math import exp, log
from statistics import fmean
from typing import Any

import numpy as np

from widthwise.proxies.config import Kind
from widthwise.transfer.plan import Plan
from widthwise.transfer.recipe import Recipe
from widthwise.transfer.watching.laws import evaluation_steps
from widthwise.transfer.watching.quantities import QUANTITIES, RECORDED, Quantity
from widthwise.transfer.watching.records import Band, Bands, Carried, Place

_OF_RUN = ("loss", "gradient_norm")
# Runs from whose extremes a band can be told.
LEAST_SEEDS = 2
# measured: proxies of width 16 leave the noise law of the RMS by more than a band allows.
LEAST_WIDTH = 32


def bands_of(courses: Mapping[int, Sequence[Mapping[str, Any]]], steps: int) -> Bands | None:
    """Return the bands of one setting's runs, or None where fewer than two measured.

    Args:
        courses: by seed, as `widthwise.search.sweeping.Finalist` has them.
        steps: of the whole run.
    """
    if len(courses) < LEAST_SEEDS:
        return None
    by_step = [{one["step"]: one for one in course} for course in courses.values()]
    # A run that was resumed from before it measured lacks the first ones.
    common = sorted(set.intersection(*map(set, by_step)))
    rows = [[course[step] for course in by_step] for step in common]
    kinds = rows[0][0]["kinds"] if rows else {}
    return Bands(
        seeds=len(courses),
        fractions=tuple(step / steps for step in common),
        run={name: _band([[one[name] for one in row] for row in rows]) for name in _OF_RUN},
        kinds={
            kind: {
                name: _band([[one["kinds"][kind][name] for one in row] for row in rows]) for name in RECORDED
            }
            for kind in kinds
        },
    )


def _band(rows: Sequence[Sequence[float | None]]) -> Band:
    """Return the band of values by evaluation and seed."""
    known = [[value for value in row if value] for row in rows]
    whole = [len(values) == len(row) for values, row in zip(known, rows, strict=True)]
    pick = [values if all_there else [] for values, all_there in zip(known, whole, strict=True)]
    return Band(
        centre=tuple(exp(fmean(map(log, values))) if values else None for values in pick),
        low=tuple(min(values, default=None) for values in pick),
        high=tuple(max(values, default=None) for values in pick),
    )


def stored(recipe: Recipe) -> Bands | None:
    """Return the bands in a recipe's evidence, or None where it has none.

    Raises:
        ConfigError: they are damaged.
    """
    found = (recipe.evidence or {}).get("bands")
    return None if found is None else Bands.parse(found, where="evidence.bands")


def carried(bands: Bands, plan: Plan, quantities: Sequence[Quantity], evaluations: int) -> Iterator[Carried]:
    """Yield the bands of these quantities, carried to a plan by their laws."""
    steps = evaluation_steps(plan.horizon, evaluations)
    for quantity in quantities:
        for kind in quantity.kinds:
            there = bands.run if kind == "run" else bands.kinds.get(kind, {})
            if quantity.name in there:
                yield _carried(bands, there[quantity.name], plan, quantity, kind, steps)


def _carried(
    bands: Bands, band: Band, plan: Plan, quantity: Quantity, kind: Place, steps: Sequence[int]
) -> Carried:
    base = plan.recipe.at(width=plan.recipe.proxy.width)
    of = "matrix" if kind == "run" else kind
    kappa = decay_share(bands, of)
    then = [round(fraction * base.horizon.steps) for fraction in bands.fractions]
    before, after = quantity.unit(base, of, kappa, then), quantity.unit(plan, of, kappa, steps)
    shares = [step / plan.horizon.steps for step in steps]
    margin = quantity.margin(plan.ratios.width)

    def over(values: Sequence[float | None], factor: float = 1.0) -> tuple[float | None, ...]:
        found = _interpolated(shares, bands.fractions, values, before)
        return tuple(
            None if one is None else one * unit * factor for one, unit in zip(found, after, strict=True)
        )

    low, high = _widened(band)
    return Carried(
        quantity=quantity.name,
        kind=kind,
        centre=over(band.centre),
        low=over(low, 1 / margin) if quantity.below else (None,) * len(steps),
        high=over(high, margin),
    )


def _widened(band: Band) -> tuple[list[float | None], list[float | None]]:
    """Return the extremes, each moved outwards by half their range: few seeds do not show the largest."""
    pairs = list(zip(band.low, band.high, strict=True))
    low = [None if a is None or b is None else a * (a / b) ** 0.5 for a, b in pairs]
    return low, [None if a is None or b is None else b * (b / a) ** 0.5 for a, b in pairs]


def _interpolated(
    shares: Sequence[float],
    fractions: Sequence[float],
    values: Sequence[float | None],
    units: Sequence[float],
) -> list[float | None]:
    """Return values over their units at other shares of the run: linear in the logarithm; None outside."""
    known = [(f, v / u) for f, v, u in zip(fractions, values, units, strict=True) if v and u]
    if not known:
        return [None] * len(shares)
    places, logs = np.array([place for place, _ in known]), np.log([value for _, value in known])
    inside = [places[0] <= share <= places[-1] for share in shares]
    found = np.exp(np.interp(shares, places, logs)).tolist()
    return [one if is_inside else None for one, is_inside in zip(found, inside, strict=True)]


def decay_share(bands: Bands, kind: Kind) -> float:
    """Return κ̂ of a kind in the proxies, its mean over the run; 1 where it does not decay."""
    band = bands.kinds.get(kind, {}).get("kappa")
    known = [value for value in band.centre if value is not None] if band else []
    return fmean(known) if known else 1.0


def judged(plan: Plan, *, same_data: bool, even: bool) -> tuple[list[Quantity], list[str]]:
    """Return the quantities whose law reaches from a plan's proxies to its target, and why others do not.

    Args:
        plan: the target's.
        same_data: whether it trains on the proxies' tokens.
        even: whether λ is the same for all modules, as the laws take it.
    """
    ratios, left_out = plan.ratios, []
    steps = ratios.tokens / ratios.batch
    if plan.recipe.proxy.width < LEAST_WIDTH:
        return [], [f"nothing is judged: the laws were tried with proxies of width {LEAST_WIDTH} and more"]
    if not all(0.5 <= one <= 2 for one in (steps, ratios.batch, ratios.depth)):
        parts = f"×{steps:.3g} the proxies' steps, ×{ratios.batch:.3g} their batch, ×{ratios.depth:.3g} their depth"
        return [], [f"nothing is judged: the target has {parts}; the laws were tried to ×2"]
    names = {quantity.name for quantity in QUANTITIES}
    if not even:
        names &= set(_OF_RUN)
        left_out.append("the weights are not judged: λ is shared out among modules")
    if not same_data:
        names -= set(_OF_RUN)
        left_out.append("loss and gradient norm are not judged: the data are not those of the proxies")
    elif not (ratios.width >= 1 and ratios.depth >= 1 and ratios.tokens >= 1 and ratios.batch == 1):
        names -= set(_OF_RUN)
        left_out.append(
            "loss and gradient norm are not judged: the target is smaller than the proxies, or its batch other"
        )
    pace = max(steps, 1 / steps)
    if any(quantity.reach < pace for quantity in QUANTITIES):
        left_out.append("some weights are not judged: the target has other than the proxies' steps")
    return [one for one in QUANTITIES if one.name in names and one.reach >= pace], left_out
