"""``widthwise report``: one HTML page on a sweep and its target runs."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from widthwise.transfer.commands.options import Option


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained HTML page on a sweep, a target run, or a folder of both."""

    folder: Positional[Path]
    """Folder of a sweep or of a target run, or one whose subfolders are such."""
    out: Option[Path] = None
    """File to write; FOLDER/report.html if not given."""
    json: bool = False
    """Print one JSON document with the page's path instead of the path alone."""

    def run(self) -> int:
        """Write the page and print where it is."""
        from widthwise.transfer.reporting import report

        def say(reason: str) -> None:
            print(f"widthwise: left out: {reason}", file=sys.stderr)

        written = str(report(self.folder, self.out, on_left_out=say))
        if self.json:
            from json import dumps

            print(dumps({"report": written}))
        else:
            print(written)
        return 0
