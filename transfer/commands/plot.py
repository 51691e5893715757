"""``widthwise plot``: a sweep, a check, or the diagnostics of target runs, as a figure."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from widthwise.transfer.commands.options import Flag, Option
from widthwise.transfer.commands.report import say_left_out


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw a sweep, a check, or the diagnostics of target runs, as a PNG, SVG or PDF file."""

    folder: Positional[Path]
    """Folder of a sweep, of a check or of a target run, or one whose subfolders are such."""
    out: Path
    """File to write: .png, .svg or .pdf."""
    what: Option[str] = None
    """lr, decay, singular-values, coordinates, front, bands or diagnostics; all that the folder has if not given."""
    json: Flag = False
    """Print one JSON document with the figure's path instead of the path alone."""

    def run(self) -> int:
        """Draw the figure and print where it is."""
        from widthwise.transfer.reporting.figures import plot

        written = str(plot(self.folder, self.out, self.what, on_left_out=say_left_out))
        if self.json:
            from json import dumps

            print(dumps({"figure": written}))
        else:
            print(written)
        return 0
