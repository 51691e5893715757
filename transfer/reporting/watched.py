"""What a report says in words of a run that was watched."""

from widthwise.transfer.reporting.markup import Html, tag
from widthwise.transfer.reporting.reading import RunFolder
from widthwise.transfer.reporting.summary import plural
from widthwise.transfer.watching.telling import told_all


def watched(run: RunFolder) -> list[Html]:
    """Return what the watch says of a run; nothing where there was none."""
    if run.watch is None:
        return []
    alarms = [tag("li", line) for line in told_all(run.first_alarms)]
    heading = tag("h3", f"{run.name}, watched against its proxies")
    left_out = [tag("p", f"{line[0].upper()}{line[1:]}.") for line in run.watch.left_out]
    if not alarms:
        where = "every evaluation so far lies" if run.watch.bands and run.metrics else "nothing to compare"
        said = f"{plural(len(run.watch.bands), 'band')}: {where}{' within them' if run.watch.bands else ''}."
        return [heading, tag("p", said), *left_out]
    return [heading, tag("p", "The first alarm of each quantity:"), tag("ul", *alarms), *left_out]
