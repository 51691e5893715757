"""A check in the report: the verdict, a row per width, what was measured over all widths, and its panels."""

from collections.abc import Iterator

from widthwise.transfer.checking.tables import HEADS, legend, notes, row
from widthwise.transfer.recipe import Recipe
from widthwise.transfer.reporting.charts import chart, panel_chart
from widthwise.transfer.reporting.check_panels import check_panels
from widthwise.transfer.reporting.markup import Html, section, table, tag
from widthwise.transfer.reporting.reading import CheckFolder

_TEXTS = {
    "lr": "Means over the seeds with their standard deviations, and the parabolas fitted near the best points. "
    "Where a transfer holds, the minima lie above one another, near 0.",
    "decay": "The same along λ, with η as the rule has it. Other rules' λ are those of the largest width.",
    "singular-values": "What σ₁ ∝ √(η/λ)·width^p (arXiv 2510.15262) leaves for the width. With the dotted slope, "
    "the rule's η and λ keep σ₁ as it is.",
    "spectra": "A rule that keeps the matrices' singular values has the lines of all widths on top of one another.",
    "coordinates": "How far each layer's output moves in the first steps. Under µP it does not depend on the width.",
}


def checked(check: CheckFolder, index: int) -> Html:
    """Return a check's section."""
    result = check.result
    anchor = f"check-{index + 1}" if index else "check"
    content = [tag("p", f"{reason.outcome}: {reason.text}.") for reason in result.verdict.reasons]
    if result.measured is not None:
        measured = result.measured
        content += [tag("p", f"From width {measured.base_width}, {measured.seeds} seeds.")]
        content += [table(HEADS, map(row, measured.widths))]
        content += [tag("p", f"{line[0].upper()}{line[1:]}.") for line in legend(measured)]
        content += [tag("ul", *(tag("li", note) for note in notes(result, measured)))]
    return section(anchor, f"Check: {check.name}, rule {result.rule}", *content, *_charts(check, index))


def _charts(check: CheckFolder, index: int) -> Iterator[Html]:
    for panel in check_panels(check.result):
        yield tag("h3", f"{panel.title[0].upper()}{panel.title[1:]}")
        yield tag("p", _TEXTS[panel.name])
        yield chart(panel_chart(panel), f"{panel.name}-{index + 1}")


def same_settings(one: Recipe, other: Recipe) -> bool:
    """Return whether two recipes say the same, whatever their evidence."""
    parts = {"hyperparameters", "proxy", "horizon"}
    return one.model_dump(include=parts) == other.model_dump(include=parts)
