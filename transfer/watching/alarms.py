"""The comparison of a run with its bands, and what is said where it leaves them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log

from widthwise.proxies.outcome import Metrics
from widthwise.transfer.plan import Plan
from widthwise.transfer.watching import causes
from widthwise.transfer.watching.bands import carried, decay_share, judged, stored
from widthwise.transfer.watching.laws import evaluation_steps
from widthwise.transfer.watching.records import Carried, Place, Watch

Values = Mapping[tuple[str, Place], float]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A value outside its band.

    Attributes:
        step, tokens: of the evaluation.
        quantity, kind: what left its band; ``run`` is the whole model.
        value: measured.
        low, high: the band; `low` is None where none is too low.
        cause, advice: the likely one, and what to do, in plain words.
    """

    step: int
    tokens: int
    quantity: str
    kind: Place
    value: float
    low: float | None
    high: float
    cause: str
    advice: str


def watch_of(plan: Plan, *, evaluations: int, same_data: bool, even: bool = True) -> Watch | None:
    """Return what a plan's target is watched by, or None where its recipe has no bands.

    Args:
        plan: the target's.
        evaluations: of the target, evenly spaced.
        same_data: whether it trains on the proxies' tokens.
        even: whether λ is the same for all modules.

    Raises:
        ConfigError: the recipe's bands are damaged.
    """
    bands = stored(plan.recipe)
    if bands is None:
        return None
    quantities, left_out = judged(plan, same_data=same_data, even=even)
    steps = evaluation_steps(plan.horizon, evaluations)
    # They follow every step of the run, which may be long where nothing is judged.
    found = causes.suspicions(plan, decay_share(bands, "matrix"), steps) if quantities else []
    return Watch(
        schema="widthwise/bands/1",
        steps=steps,
        bands=tuple(carried(bands, plan, quantities, evaluations)),
        left_out=tuple(left_out),
        suspicions=tuple(found),
        rate=causes.rate(plan),
        time=causes.time(plan),
    )


def measured(metrics: Metrics) -> dict[tuple[str, Place], float]:
    """Return the values of an evaluation that a band may be about; those that are not finite are missing."""
    found: dict[tuple[str, Place], float | None] = {("loss", "run"): metrics.loss}
    if metrics.diagnostics is not None:
        found["gradient_norm", "run"] = metrics.diagnostics.gradient_norm
        for kind, values in metrics.diagnostics.kinds.items():
            for name in ("rms", "update_ratio", "gain"):
                found[name, kind] = getattr(values, name)
    return {place: value for place, value in found.items() if value is not None and isfinite(value)}


class Watcher:
    """Compares evaluations with their bands, in any training loop.

    A quantity raises an alarm where it lies outside its band twice in a row, or far outside: further from the edge
    than the edge is from the centre.

        watcher = Watcher(watch_of(plan, evaluations=10, same_data=True))
        ...
        for alarm in watcher.look(metrics.step, metrics.tokens, measured(metrics)):
            print(told(asdict(alarm)))
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.seen: dict[int, tuple[float, float]] = {}
        self.outside: set[tuple[str, Place]] = set()

    def look(self, step: int, tokens: int, values: Values) -> list[Alarm]:
        """Return the alarms of one evaluation.

        Args:
            step: one of the watch's steps; at others nothing is known.
            tokens: trained on so far.
            values: by quantity and kind.
        """
        if step not in self.watch.steps:
            return []
        place = self.watch.steps.index(step)
        ratios = [self._over_centre(name, values, place) for name in ("rms", "update_ratio")]
        if all(ratios):
            self.seen[place] = ratios[0] or 1.0, ratios[1] or 1.0
        found = [
            (band, value)
            for band in self.watch.bands
            if (value := values.get((band.quantity, band.kind))) is not None
            and _excess(band, value, place) > 0
        ]
        before, self.outside = self.outside, {(band.quantity, band.kind) for band, _ in found}
        left = [
            (band, value)
            for band, value in found
            if (band.quantity, band.kind) in before or _excess(band, value, place) > 1
        ]
        cause = self._cause([band for band, _ in left]) if left else ("", "")
        return [_alarm(step, tokens, band, value, place, cause) for band, value in left]

    def _over_centre(self, name: str, values: Values, place: int) -> float | None:
        centre, value = self.watch.expected(name, "matrix", place), values.get((name, "matrix"))
        return value / centre if value and centre else None

    def _cause(self, left: Sequence[Carried]) -> tuple[str, str]:
        """Return the likely cause and what to do, of what is surest first."""
        watch, kinds = self.watch, list(dict.fromkeys(band.kind for band in left if band.kind != "run"))
        if watch.rate is not None:
            return watch.rate
        if any(band.kind == "matrix" and band.quantity in ("rms", "update_ratio") for band in left):
            found = causes.nearest(watch.suspicions, self.seen)
            if found is not None:
                return found.cause, found.advice
        # Wrong weights in one place move the updates of all.
        wrong = list(dict.fromkeys(band.kind for band in left if band.quantity == "rms")) or kinds
        if wrong and "matrix" not in wrong:
            return causes.vectors(wrong)
        grown = any((band.quantity, band.kind) == ("gain", "matrix") for band in left)
        return watch.time if watch.time is not None and grown else causes.GENERAL


def _excess(band: Carried, value: float, place: int) -> float:
    """Return how far a value is beyond its band's edge, in the edge's own distance from the centre (logarithms)."""
    low, centre, high = band.low[place], band.centre[place], band.high[place]
    if centre is None or high is None:
        return 0.0
    if value > high:
        return log(value / high) / log(high / centre)
    if low is None or value >= low:
        return 0.0
    return log(low / value) / log(centre / low) if value > 0 else inf


def _alarm(step: int, tokens: int, band: Carried, value: float, place: int, cause: tuple[str, str]) -> Alarm:
    high = band.high[place]
    assert high is not None
    return Alarm(
        step=step,
        tokens=tokens,
        quantity=band.quantity,
        kind=band.kind,
        value=value,
        low=band.low[place],
        high=high,
        cause=cause[0],
        advice=cause[1],
    )
