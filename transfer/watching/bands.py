"""What the proxies showed at every share of their run, as a recipe keeps it, and carried to a target."""

from collections.abc import Iterator, Mapping, Sequence
from math import exp, log
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import Field

from widthwise.proxies.config import Kind
from widthwise.proxies.validation import Record
from widthwise.transfer.plan import Plan
from widthwise.transfer.recipe import Recipe
from widthwise.transfer.watching.laws import evaluation_steps
from widthwise.transfer.watching.quantities import QUANTITIES, RECORDED, Place, Quantity

SCHEMA: Literal["widthwise/bands/1"] = "widthwise/bands/1"
_OF_RUN = ("loss", "gradient_norm")
# Runs from whose extremes a band can be told.
LEAST_SEEDS = 2


class Band(Record):
    """One quantity over the evaluations: geometric mean, least and largest over the seeds; null where unknown."""

    centre: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


class Bands(Record):
    """What a recipe's runs measured, ``evidence.bands`` of the recipe.

    Attributes:
        seeds: runs.
        fractions: the evaluations, as shares of the run's steps.
        run: of the whole model: ``loss`` (validation, nats per token) and ``gradient_norm`` (before clipping).
        kinds: by kind, `RECORDED`, as `widthwise.proxies.outcome.KindDiagnostics` defines them.
    """

    seeds: int
    fractions: tuple[float, ...]
    run: dict[str, Band]
    kinds: dict[Kind, dict[str, Band]]


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


class Carried(Band):
    """A band at the target's evaluations, in the target's own values, its tolerance included.

    ``low`` is null where a value below is no alarm, all where the evaluation is not judged.
    """

    quantity: str
    kind: Place


class Suspicion(Record):
    """Something that may be wrong with the matrices, and what it would do to them.

    Attributes:
        cause, advice: in plain words.
        rms, update_ratio: factors on what the plan says, by evaluation.
    """

    cause: str
    advice: str
    rms: tuple[float, ...]
    update_ratio: tuple[float, ...]


class Watch(Record):
    """What a target run is compared with; ``bands.json`` of its folder.

    Attributes:
        schema_: the file's format, ``"schema"`` in JSON.
        steps: after which the target is evaluated.
        bands: by quantity and kind.
        left_out: what is not judged, and why, a line each.
        suspicions: about the matrices.
        rate, time: cause and advice from the plan alone, where its η does not fall with the width, or its Σηλ is
            too small for the decay to act; the first is taken before all suspicions, the second after them.
    """

    schema_: Literal["widthwise/bands/1"] = Field(SCHEMA, alias="schema")
    steps: tuple[int, ...]
    bands: tuple[Carried, ...]
    left_out: tuple[str, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()
    rate: tuple[str, str] | None = None
    time: tuple[str, str] | None = None

    def expected(self, quantity: str, kind: Place, place: int) -> float | None:
        """Return the centre of a band at an evaluation, or None where it is not judged."""
        found = [one for one in self.bands if (one.quantity, one.kind) == (quantity, kind)]
        return found[0].centre[place] if found else None


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

    def over(values: Sequence[float | None], tolerance: float) -> tuple[float | None, ...]:
        found = _interpolated(shares, bands.fractions, values, before)
        return tuple(
            None if one is None else one * unit * tolerance for one, unit in zip(found, after, strict=True)
        )

    return Carried(
        quantity=quantity.name,
        kind=kind,
        centre=over(band.centre, 1.0),
        low=over(band.low, 1 / margin) if quantity.below else (None,) * len(steps),
        high=over(band.high, margin),
    )


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


def judged(plan: Plan, *, same_data: bool, whole: bool) -> tuple[list[Quantity], list[str]]:
    """Return the quantities whose law reaches from a plan's proxies to its target, and why others do not.

    Args:
        plan: the target's.
        same_data: whether it trains on the proxies' tokens.
        whole: whether its weights are measured: every worker has all of them, and λ is shared out evenly.
    """
    ratios, left_out = plan.ratios, []
    steps = ratios.tokens / ratios.batch
    if not all(0.5 <= one <= 2 for one in (steps, ratios.batch, ratios.depth)):
        parts = f"×{steps:.3g} the proxies' steps, ×{ratios.batch:.3g} their batch, ×{ratios.depth:.3g} their depth"
        return [], [f"nothing is judged: the target has {parts}; the laws were tried to ×2"]
    names = {quantity.name for quantity in QUANTITIES}
    if not whole:
        names &= set(_OF_RUN)
        left_out.append("the weights are not judged: they are sharded, or λ is shared out among modules")
    if not same_data:
        names -= set(_OF_RUN)
        left_out.append("loss and gradient norm are not judged: the data are not those of the proxies")
    elif not (ratios.width >= 1 and ratios.depth >= 1 and ratios.tokens >= 1 and ratios.batch == 1):
        names -= set(_OF_RUN)
        left_out.append(
            "loss and gradient norm are not judged: the target is smaller than the proxies, or its batch other"
        )
    return [quantity for quantity in QUANTITIES if quantity.name in names], left_out
