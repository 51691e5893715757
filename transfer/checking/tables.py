"""A check on the terminal: the sentence, a row per width, and the exponents measured beside the rule's."""

from collections.abc import Iterator
from math import isclose, isinf
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.findings import AtWidth, Measured
from widthwise.transfer.checking.fitting import Optimum

if TYPE_CHECKING:
    from widthwise.transfer.checking.running import CheckResult

_OPTIMA = ("best η\noctaves", "best λ\noctaves", "η's\nregret", "λ's\nregret")
HEADS = ("width", "loss", *_OPTIMA, "σ₁", "κ̂", "RMS\n÷ law")


def show(result: "CheckResult", console: Console) -> None:
    """Print what a check found, the verdict last."""
    measured = result.measured
    if measured is not None:
        console.print(widths_table(result.rule, measured))
        for line in (*legend(measured), *notes(result, measured)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    first, *others = result.verdict.reasons
    for reason in others:
        console.print(f"also: {reason.text}", highlight=False, markup=False, soft_wrap=True)
    colour = {"holds": "green", "fails": "red", "inconclusive": "yellow"}[result.verdict.outcome]
    console.print(f"[bold {colour}]{result.verdict.outcome}[/]: ", end="")
    console.print(first.text, highlight=False, markup=False, soft_wrap=True)


def legend(measured: Measured) -> Iterator[str]:
    """Yield what the columns of `HEADS` mean, a line each for those of the losses and of the weights."""
    if any(at.lr_optimum or at.decay_optimum for at in measured.widths):
        yield (
            "best η, λ: log₂ of the best value over the rule's, with its 95 % interval; near +1?: the best of those "
            "tried, where no minimum is bracketed; regret: nats per token that the rule's value loses to the best"
        )
    yield (
        "σ₁: geometric mean of the matrices' largest singular values; κ̂: share of the decay that Huber's clipping "
        "leaves; RMS ÷ law: the weights' size over what pure noise would give"
    )


def widths_table(rule: str, measured: Measured) -> Table:
    """Return a row per width, below `HEADS`; `legend` says what they mean."""
    title = f"rule {rule}, from width {measured.base_width}, {measured.seeds} seeds"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    for head in HEADS:
        table.add_column(head, no_wrap=True)
    for at in measured.widths:
        table.add_row(*row(at))
    return table


def row(at: AtWidth) -> list[str]:
    """Return a width's cells below `HEADS`."""
    return [
        str(at.width),
        f"{at.diverged} diverged" if at.loss is None else f"{at.loss:.4f}",
        _octaves(at.lr_optimum),
        _octaves(at.decay_optimum),
        _regret(at.lr_optimum),
        _regret(at.decay_optimum),
        *(
            "–" if value is None else f"{value:.3g}"
            for value in (at.top_singular_value, at.kappa, at.rms_ratio)
        ),
    ]


def _octaves(optimum: Optimum | None) -> str:
    if optimum is None or optimum.best is None:
        return "–"
    if optimum.octaves is None:
        return f"near {optimum.best:+g}?"
    return interval(optimum.octaves, ".1f")


def _regret(optimum: Optimum | None) -> str:
    if optimum is None or optimum.regret is None:
        return "–"
    value, low, high = map(_loss, (optimum.regret.value, optimum.regret.low, optimum.regret.high))
    return f"{value} [{low}, {high}]"


def _loss(nats: float) -> str:
    return _number(nats, ".4f")


def interval(estimate: Estimate, form: str = ".2f") -> str:
    """Return ``+0.31 [-0.10, +0.72]``."""
    value, low, high = (_number(one, form, "+") for one in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _number(value: float, form: str, sign: str = "") -> str:
    """Return a number that is never a negative zero, nor ``inf``."""
    if isinf(value):
        return f"{sign}∞" if value > 0 else "-∞"
    return format(value, f"{sign}z{form}")


def notes(result: "CheckResult", measured: Measured) -> Iterator[str]:
    """Yield what was measured over all widths, a line each."""
    if measured.deviation is not None:
        yield f"seed deviation of the loss: {measured.deviation:.4f} nats per token"
    for symbol, drift in (("η", measured.lr_drift), ("λ", measured.decay_drift)):
        if drift is not None:
            yield f"the optimal {symbol} drifts by {interval(drift)} octaves per doubling of the width"
    yield from _exponents(measured)
    if measured.coordinate_slopes:
        worst = max(measured.coordinate_slopes.items(), key=lambda item: abs(item[1].value))
        yield f"coordinate check: largest exponent {interval(worst[1])}, of {worst[0]}"
    yield from _quality(measured)
    for name, other in result.alternatives.items():
        if other.change is not None and not isclose(other.octaves, 0, abs_tol=1e-9):
            change = interval(other.change, ".4f")
            at = f"at width {measured.largest.width}"
            yield f"rule {name}: λ {2**other.octaves:.3g} times as large {at}, loss {change}"


def _quality(measured: Measured) -> Iterator[str]:
    """Yield the three numbers; the scatter about a line says little where each point itself may be far off."""
    if measured.quality is None:
        return
    known = [at.lr_optimum.octaves for at in measured.widths if at.lr_optimum and at.lr_optimum.octaves]
    off = max(max(one.high - one.value, one.value - one.low) for one in known)
    yield (
        f"quality: the best η of {len(known)} widths within {measured.quality.fit:.2f} octaves of a power law, each "
        f"known to ± {off:.2f}; an octave's error costs {_loss(measured.quality.robustness)} nats per token, penalty "
        f"{_loss(measured.quality.penalty)}"
    )


def _exponents(measured: Measured) -> Iterator[str]:
    """Yield the exponents of λ: the rule's, the loss's and σ₁'s; they need not agree."""
    if measured.rule_decay_exponent is None:
        return
    said = [f"the rule's {_number(measured.rule_decay_exponent, '.2f')}"]
    if measured.loss_decay_exponent is not None:
        said.append(f"the optimal λ's {interval(measured.loss_decay_exponent)}")
    if measured.singular_decay_exponent is not None and measured.singular_exponent is not None:
        kept = interval(measured.singular_decay_exponent)
        said.append(f"the one that keeps σ₁ {kept} (2p - 1, p = {measured.singular_exponent.value:.2f})")
    yield f"λ ∝ width to the power of: {'; '.join(said)}"
    corrected = measured.largest.corrected_decay
    if corrected is not None and measured.largest.kappa != measured.base.kappa:
        kept = f"κ-corrected λ at width {measured.largest.width}: {corrected:.4g}"
        yield f"{kept}, the rule's {measured.largest.weight_decay:.4g}"
