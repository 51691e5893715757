"""The verdict on a transfer, by what was measured and by the tolerances of a rule that holds.

A false "holds" costs a month of GPUs, a false "inconclusive" a few more proxies: "holds" and "fails" are said only
where a whole confidence interval lies on one side of its tolerance, and everything between is inconclusive.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.findings import AtWidth, Measured
from widthwise.transfer.checking.fitting import Optimum

Outcome = Literal["holds", "fails", "inconclusive"]

# 95 % of the initial variance is forgotten when Ση·λ reaches 1.5: exp(-2 · 1.5) = 0.05.
ENOUGH_DECAY = 1.5
# The exponent of a layer's change in width that still counts as none.
COORDINATE_TOLERANCE = 0.1
# Octaves by which the optimum may move at every doubling of the width.
DRIFT_TOLERANCE = 1.0
# Standard deviations over seeds that the transferred setting may lose to the optimum.
REGRET_TOLERANCE = 2.0
FEWEST_SEEDS = 3

_NAMES = {"lr": "η", "decay": "λ"}


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One finding: what it speaks for, and a sentence with the number and the tolerance.

    `check` names what was looked at: horizon, divergence, coordinates, base, regret, drift or evidence. `is_final`
    says that runs not made yet cannot change the verdict.
    """

    check: str
    outcome: Outcome
    text: str
    is_final: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check says, and why; the reasons that decide come first.

    `better` is a sentence on the rule that fits better; empty where none is known to.
    """

    outcome: Outcome
    reasons: tuple[Reason, ...]
    better: str = ""

    @property
    def sentence(self) -> str:
        """The verdict and its first reason, and the rule that fits better."""
        said = f"{self.outcome}: {self.reasons[0].text}"
        return f"{said}; {self.better}" if self.better else said

    def beside(self, better: str) -> "Verdict":
        """Return the verdict with the rule that fits better, which a transfer that holds does not need."""
        return self if self.outcome == "holds" else replace(self, better=better)


def judge(measured: Measured) -> Verdict:
    """Return the verdict on a transfer whose horizon suffices.

    Args:
        measured: what was measured; a line of settings not run yet counts as not determined.

    The order matters. A broken parametrisation fails whatever else was found. A recipe that is not at its own
    optimum cannot be judged by what it loses elsewhere. Then the regret at each width, and the drift over all.
    """
    findings = [
        *_divergence(measured),
        *_coordinates(measured),
        *_seeds(measured),
        *_base(measured),
        *_drifts(measured),
        *_regrets(measured),
    ]
    final = [one for one in findings if one.is_final]
    if final:
        # What was not run for their sake is not open, it is not asked.
        findings = [one for one in findings if one.is_final or one.outcome == "fails"]
    base_is_tuned = not any(one.check == "base" for one in findings)
    # What is lost elsewhere may be lost by the recipe, not by the rule.
    decisive = [one for one in findings if base_is_tuned or one.check != "regret"]
    for outcome in ("fails", "inconclusive"):
        first = [one for one in decisive if one.outcome == outcome]
        if first:
            first.sort(key=lambda one: not one.is_final)
            rest = [one for one in findings if one not in first]
            return Verdict(outcome=outcome, reasons=(*first, *rest))
    return Verdict(outcome="holds", reasons=(_holds(measured),))


def gate(horizons: Mapping[int, float], tokens: int) -> Verdict | None:
    """Return the verdict where the horizon is too short at some width, which no training can mend, else None.

    Args:
        horizons: width → Σ_t η_t·λ·r_t of the matrices.
        tokens: that each run lasts.
    """
    width, reach = min(horizons.items(), key=lambda item: item[1])
    if reach >= ENOUGH_DECAY:
        return None
    if reach == 0:
        advice = "the recipe has no weight decay to transfer"
    else:
        advice = f"tune the recipe over {_up(tokens * ENOUGH_DECAY / reach):,} tokens instead of {tokens:,}"
    text = (
        f"Σηλ is {reach:.2g} at width {width} and must be >= {ENOUGH_DECAY}: weight decay has no time to act; "
        f"{advice}"
    )
    return Verdict(
        outcome="inconclusive", reasons=(Reason(check="horizon", outcome="inconclusive", text=text),)
    )


def _up(tokens: float) -> int:
    """Round up to two significant digits."""
    unit = 10 ** max(0, len(str(int(tokens))) - 2)
    return int(-(-tokens // unit) * unit)


def _divergence(measured: Measured) -> Iterator[Reason]:
    base = measured.base
    if base.diverged:
        text = f"{_runs(base.diverged)} of the recipe diverged at its own width {base.width}: tune it again"
        yield Reason(check="base", outcome="inconclusive", text=text, is_final=True)
        return
    for at in measured.widths:
        if at.diverged:
            text = f"{_runs(at.diverged)} diverged at width {at.width} with the transferred setting"
            yield Reason(check="divergence", outcome="fails", text=text, is_final=True)


def _runs(count: int) -> str:
    return f"{count} run" + ("s" if count > 1 else "")


def _coordinates(measured: Measured) -> Iterator[Reason]:
    """Find layers whose change depends on the width: the parametrisation is not what it says it is."""
    slopes = measured.coordinate_slopes
    if not slopes:
        yield Reason(
            check="coordinates", outcome="inconclusive", text="no layer's change was measured at three widths"
        )
        return
    layer, worst = max(slopes.items(), key=lambda item: _clearly(item[1]))
    said = f"the change of {layer} in the first steps follows width^{_interval(worst)}"
    rule = f"tolerance ±{COORDINATE_TOLERANCE:g}"
    if worst.beyond(COORDINATE_TOLERANCE):
        text = f"{said}, {rule}: the parametrisation is broken"
        yield Reason(check="coordinates", outcome="fails", text=text, is_final=True)
        return
    # That every layer is within is claimed of all at once, for which each one's own interval serves: at the edge of any
    # layer's tolerance, that layer alone keeps the claim from being made (an intersection-union test).
    alone = measured.coordinate_slopes_alone or slopes
    layer, worst = max(alone.items(), key=lambda item: max(-item[1].low, item[1].high))
    if not worst.within(COORDINATE_TOLERANCE):
        said = f"the change of {layer} in the first steps follows width^{_interval(worst)}"
        yield Reason(
            check="coordinates", outcome="inconclusive", text=f"{said}, {rule}: not clear; {_MORE_SEEDS}"
        )


def _clearly(slope: Estimate) -> float:
    """Return how far the whole interval lies from zero."""
    return max(slope.low, -slope.high)


_MORE_SEEDS = "add seeds, or a wider width"


def _seeds(measured: Measured) -> Iterator[Reason]:
    if measured.seeds < FEWEST_SEEDS:
        text = f"{measured.seeds} seed(s) at each width, at least {FEWEST_SEEDS} are needed: add seeds"
        yield Reason(check="evidence", outcome="inconclusive", text=text)


def _optima(at: AtWidth) -> list[tuple[str, Optimum | None]]:
    return [("lr", at.lr_optimum), ("decay", at.decay_optimum)]


def _base(measured: Measured) -> Iterator[Reason]:
    """Find a recipe that is not at its own optimum, or not known to be."""
    base = measured.base
    for axis, optimum in _optima(base):
        symbol = _NAMES[axis]
        where = f"at the recipe's own width {base.width}"
        if optimum is None or optimum.regret is None or measured.deviation is None:
            yield Reason(
                check="base", outcome="inconclusive", text=f"{symbol} was not varied {where} with every seed"
            )
            continue
        bound = REGRET_TOLERANCE * measured.deviation
        if optimum.regret.low > bound:
            text = f"{symbol} {_loses(optimum, bound)} {where}: tune {symbol} there first"
            yield Reason(check="base", outcome="inconclusive", text=text, is_final=True)
        elif not optimum.regret.high <= bound:
            text = f"whether {symbol} is at its optimum {where} is open: {_open(optimum, bound)}"
            yield Reason(check="base", outcome="inconclusive", text=text)


def _drifts(measured: Measured) -> Iterator[Reason]:
    """Find an optimum that moves with the width, off the rule's."""
    drifts = (("lr", measured.lr_drift), ("decay", measured.decay_drift))
    for axis, drift in drifts:
        said = f"the optimal {_NAMES[axis]} moves"
        rule = f"tolerance ±{DRIFT_TOLERANCE:g}"
        if drift is None:
            missing = [at for at in measured.widths if _unknown(dict(_optima(at))[axis])]
            text = f"how {said} is open: {_why(missing[0], axis)}" if missing else f"how {said} is open"
            yield Reason(check="drift", outcome="inconclusive", text=text)
        elif drift.beyond(DRIFT_TOLERANCE):
            text = f"{said} by {_interval(drift)} octaves per doubling of the width, {rule}"
            yield Reason(check="drift", outcome="fails", text=text)
        elif not drift.within(DRIFT_TOLERANCE):
            text = f"{said} by {_interval(drift)} octaves per doubling, {rule}: not clear; {_MORE_SEEDS}"
            yield Reason(check="drift", outcome="inconclusive", text=text)


def _unknown(optimum: Optimum | None) -> bool:
    return optimum is None or optimum.octaves is None


def _why(at: AtWidth, axis: str) -> str:
    optimum = dict(_optima(at))[axis]
    if optimum is None:
        return f"{_NAMES[axis]} was not varied at width {at.width}"
    return f"at width {at.width}, {optimum.why}"


def _regrets(measured: Measured) -> Iterator[Reason]:
    """Find widths, other than the recipe's own, at which the transferred setting loses to the optimum."""
    for at in reversed(measured.widths):
        if at.width == measured.base_width:
            continue
        for axis, optimum in _optima(at):
            if optimum is None or optimum.regret is None or measured.deviation is None:
                continue  # `_drifts` and `_divergence` have said so.
            bound = REGRET_TOLERANCE * measured.deviation
            if optimum.regret.low > bound:
                text = f"at width {at.width} the transferred {_NAMES[axis]} {_loses(optimum, bound)}"
                yield Reason(check="regret", outcome="fails", text=text)
            elif not optimum.regret.high <= bound:
                text = f"what the transferred {_NAMES[axis]} loses at width {at.width} is open: {_open(optimum, bound)}"
                yield Reason(check="regret", outcome="inconclusive", text=text)


def _loses(optimum: Optimum, bound: float) -> str:
    assert optimum.regret is not None
    return (
        f"loses {_nats(optimum.regret)} nats per token to {_place(optimum)}, tolerance {bound:.4f} "
        f"({REGRET_TOLERANCE:g} seed deviations)"
    )


def _place(optimum: Optimum) -> str:
    """Return where the best value lies, in words."""
    octaves = optimum.best if optimum.octaves is None else optimum.octaves.value
    assert octaves is not None
    return f"2^{octaves:+.1f} times it" if octaves else "its optimum"


def _open(optimum: Optimum, bound: float) -> str:
    assert optimum.regret is not None
    if optimum.octaves is None:
        return f"{optimum.why}; add points, or seeds"
    between = f"between {optimum.regret.low:.4f} and {optimum.regret.high:.4f} nats per token"
    return f"{between}, tolerance {bound:.4f}; add seeds"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _nats(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} (at least {estimate.low:.4f})"


def _holds(measured: Measured) -> Reason:
    drift = measured.lr_drift
    assert drift is not None
    assert measured.deviation is not None
    worst = max(
        optimum.regret.high
        for at in measured.widths
        for _, optimum in _optima(at)
        if optimum is not None and optimum.regret is not None
    )
    widths = f"{measured.widths[0].width} to {measured.largest.width}"
    text = (
        f"from width {widths} the optimal η moves by {_interval(drift)} octaves per doubling (tolerance "
        f"±{DRIFT_TOLERANCE:g}), and the transferred setting loses at most {worst:.4f} nats per token "
        f"(tolerance {REGRET_TOLERANCE * measured.deviation:.4f}, {REGRET_TOLERANCE:g} seed deviations)"
    )
    return Reason(check="evidence", outcome="holds", text=text)
