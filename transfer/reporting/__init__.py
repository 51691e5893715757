"""The report: a sweep, its recipe, checks, plans and target runs as one HTML page that opens without a network."""

from collections.abc import Callable
from pathlib import Path

from plotly.offline import get_plotlyjs

from widthwise.proxies.files import write_atomic
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.reporting.markup import page
from widthwise.transfer.reporting.reading import Contents, read_contents
from widthwise.transfer.reporting.sections import sections
from widthwise.transfer.reporting.summary import caveat, headline

__all__ = ["report"]


def report(
    folder: Path, out: Path | None = None, *, on_left_out: Callable[[str], object] | None = None
) -> Path:
    """Write the page on what lies in `folder`: a sweep, a check, a target run, or folders of these.

    Args:
        folder: also one whose jobs are still running; the page says so.
        out: the page's file; None is ``report.html`` in `folder`.
        on_left_out: called with the reason for each subfolder of another program's, or of an unfinished check.

    Returns:
        Where the page was written.

    Raises:
        ConfigError: there is nothing to report, a file is damaged, or the page cannot be written.
    """
    contents = read_contents(folder, on_left_out)
    out = folder / "report.html" if out is None else out
    if out.is_dir():
        raise ConfigError(f"out: {out} is a folder, must be a file")
    try:
        write_atomic(out, _page(contents))
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error.strerror})") from None
    return out


def _page(contents: Contents) -> str:
    title = f"widthwise report: {contents.folder.resolve().name}"
    said = headline(contents)
    note = f"{caveat(contents)} Losses are cross-entropies on validation data, in nats per token.".strip()
    return page(title, said[0].upper() + said[1:], note, sections(contents), get_plotlyjs())
