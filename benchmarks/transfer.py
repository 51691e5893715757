"""Several checks side by side, one per rule, as the Markdown table of docs/results/transfer/README.md.

    widthwise check recipe.json --rule fan-sqrt --out fan-sqrt
    widthwise check recipe.json --rule mup-independent --out mup-independent
    python benchmarks/transfer.py fan-sqrt mup-independent

What every column is stands in `widthwise.transfer.checking.findings`.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.findings import Measured
from widthwise.transfer.checking.fitting import Optimum
from widthwise.transfer.checking.recorded import read_check
from widthwise.transfer.checking.running import CheckResult
from widthwise.transfer.checking.tables import interval

HEADS = (
    "rule",
    "verdict",
    "optimal η, octaves per doubling",
    "regret of η at the largest width",
    "regret of λ there",
    "exponent of λ: rule",
    "exponent of λ: loss",
    "p of σ₁",
    "κ̂ over the widths",
    "fit, octaves",
    "robustness",
    "penalty",
)


def row(result: CheckResult) -> list[str]:
    """Return a check's cells below `HEADS`; losses are in nats per token, a dash is what could not be measured."""
    start = [result.rule, result.verdict.outcome]
    return start + (["–"] * (len(HEADS) - 2) if result.measured is None else _numbers(result.measured))


def _numbers(measured: Measured) -> list[str]:
    at, quality = measured.largest, measured.quality
    kappas = [one.kappa for one in measured.widths]
    return [
        _estimate(measured.lr_drift),
        _regret(at.lr_optimum),
        _regret(at.decay_optimum),
        "–" if measured.rule_decay_exponent is None else f"{measured.rule_decay_exponent:.2f}",
        _estimate(measured.loss_decay_exponent),
        _estimate(measured.singular_exponent),
        ", ".join("–" if kappa is None else f"{kappa:.2f}" for kappa in kappas),
        *(["–"] * 3 if quality is None else _quality(quality.fit, quality.robustness, quality.penalty)),
    ]


def _estimate(estimate: Estimate | None) -> str:
    return "–" if estimate is None else interval(estimate)


def _regret(optimum: Optimum | None) -> str:
    if optimum is None or optimum.regret is None:
        return "–"
    return interval(optimum.regret, ".4f")


def _quality(fit: float, robustness: float, penalty: float) -> list[str]:
    return [f"{fit:.2f}", f"{robustness:.4f}", f"{penalty:.4f}"]


def markdown(results: Iterable[CheckResult]) -> str:
    """Return the table, a row per check."""
    lines = [HEADS, ["---"] * len(HEADS), *map(row, results)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="+", type=Path, help="folder of a check, with its check.json")
    try:
        print(markdown(read_check(folder / "check.json") for folder in parser.parse_args().folder), end="")
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
