"""The report's section on a sweep that searched its horizon."""

from widthwise.transfer.reporting import charts
from widthwise.transfer.reporting.front_panels import HEAD, front_panels, front_rows
from widthwise.transfer.reporting.markup import Html, table, tag
from widthwise.transfer.reporting.reading import SweepFolder


def against_tokens(sweep: SweepFolder) -> list[Html]:
    """Return the least loss against tokens as a table and charts; nothing where the horizon was not searched."""
    if not sweep.front:
        return []
    text = (
        "The best trial of each length that no shorter one beats, all with the same seed: how much longer trials "
        "gain, and where the best settings go with them. The other plots but the curves are of the longest alone."
    )
    drawn = [
        charts.chart(charts.panel_chart(panel), f"front-{panel.name}") for panel in front_panels([sweep])
    ]
    return [tag("h3", "Loss against tokens"), tag("p", text), table(HEAD, front_rows(sweep.front)), *drawn]
