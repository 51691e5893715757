"""``widthwise report``: one HTML page on a sweep, its checks and its target runs."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.commands.options import Flag, Folder, Option


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained HTML page on a sweep, a check, a target run, or a folder of these."""

    folder: Positional[Folder]
    """Folder of a sweep, a check or a target run, or one whose subfolders are such: a path, or a URI of target runs."""
    out: Option[Path] = None
    """File to write; FOLDER/report.html if not given, which a URI asks for."""
    json: Flag = False
    """Print one JSON document with the page's path instead of the path alone."""

    def run(self) -> int:
        """Write the page and print where it is."""
        from widthwise.transfer.at_hand import at_hand
        from widthwise.transfer.reporting import report

        if self.out is None and not isinstance(self.folder, Path):
            raise ConfigError("out: is required for the report of a URI")
        with at_hand(self.folder) as folder:
            written = str(report(folder, self.out, on_left_out=say_left_out))
        if self.json:
            from json import dumps

            print(dumps({"report": written}))
        else:
            print(written)
        return 0


def say_left_out(reason: str) -> None:
    """Say on standard error why a subfolder was left out."""
    print(f"widthwise: left out: {reason}", file=sys.stderr)
