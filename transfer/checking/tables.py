"""A check on the terminal: the sentence, a row per width, and the exponents measured beside the rule's."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from widthwise.transfer.checking.fitting import Estimate, Optimum
from widthwise.transfer.checking.measuring import AtWidth, Measured

if TYPE_CHECKING:
    from widthwise.transfer.checking.running import CheckResult

_OPTIMA = ("best η\noctaves", "best λ\noctaves", "η's\nregret", "λ's\nregret")
HEADS = ("width", "loss", *_OPTIMA, "σ₁", "κ̂", "RMS\n÷ law")


def show(result: "CheckResult", console: Console) -> None:
    """Print what a check found, the verdict last."""
    measured = result.measured
    if measured is not None:
        console.print(widths_table(result.rule, measured))
        for line in notes(result, measured):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    first, *others = result.verdict.reasons
    for reason in others:
        console.print(f"also: {reason.text}", highlight=False, markup=False, soft_wrap=True)
    colour = {"holds": "green", "fails": "red", "inconclusive": "yellow"}[result.verdict.outcome]
    console.print(f"[bold {colour}]{result.verdict.outcome}[/]: ", end="")
    console.print(first.text, highlight=False, markup=False, soft_wrap=True)


def widths_table(rule: str, measured: Measured) -> Table:
    """Return a row per width; octaves are log₂ of the optimum over the rule's value."""
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
    return "–" if optimum is None or optimum.regret is None else f"{optimum.regret.value:.4f}"


def interval(estimate: Estimate, form: str = ".2f") -> str:
    """Return ``+0.31 [-0.10, +0.72]``."""
    value, low, high = (format(one, f"+{form}") for one in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


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
    if measured.quality is not None:
        fit, robustness, penalty = measured.quality.fit, measured.quality.robustness, measured.quality.penalty
        yield (
            f"quality: fit ± {fit:.2f} octaves, an octave's error costs {robustness:.4f} nats per token, "
            f"penalty {penalty:.4f}"
        )
    for name, other in result.alternatives.items():
        if other.change is not None:
            change = interval(other.change, ".4f")
            at = f"at width {measured.largest.width}"
            yield f"rule {name}: λ {2**other.octaves:.3g} times as large {at}, loss {change}"


def _exponents(measured: Measured) -> Iterator[str]:
    """Yield the exponents of λ: the rule's, the loss's and σ₁'s; they need not agree."""
    if measured.rule_decay_exponent is None:
        return
    said = [f"the rule's {measured.rule_decay_exponent:.2f}"]
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
