"""``widthwise doctor``: what this machine has, and what to do about what is missing."""

import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from widthwise.transfer.commands.options import Flag

_PACKAGES = ("torch", "mup", "ray", "optuna", "pydantic", "tyro", "rich", "plotly")
# assumed: below this, checkpoints and studies of an ordinary sweep may not fit.
_FREE_GB = 2


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at; `advice` says what to do and is None where all is well."""

    what: str
    found: str
    advice: str | None = None


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show what this machine has: versions, devices, kernel back end, disk; and what is missing."""

    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Print the findings; status 1 where a package is missing."""
        findings = [_machine(), *map(_package, _PACKAGES), *_devices(), _disk()]
        if self.json:
            print(json.dumps({"findings": [asdict(finding) for finding in findings]}))
        else:
            _print(findings)
        return int(any(finding.found == "missing" for finding in findings))


def _machine() -> Finding:
    found = f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores"
    return Finding(what="machine", found=found)


def _package(name: str) -> Finding:
    try:
        return Finding(what=name, found=version(name))
    except PackageNotFoundError:
        wanted = next((line for line in requires("widthwise") or [] if line.startswith(name)), name)
        return Finding(what=name, found="missing", advice=f"pip install '{wanted}'")


def _devices() -> list[Finding]:
    try:
        import torch

        from widthwise.kernels import backends
    except ImportError as error:
        return [Finding(what="device", found=f"unknown ({error})", advice="install torch")]
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        device = Finding(what="device", found=names)
    else:
        built = "this torch has no CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        device = Finding(what="device", found=f"cpu ({built})")
    back_ends = [_back_end("kernel back end", "install a C++ compiler such as g++", *backends.describe())]
    if torch.cuda.is_available():
        remedy = 'see "The CUDA back end" in docs/kernels.md'
        back_ends += [_back_end("kernel back end on CUDA", remedy, *backends.describe("cuda"))]
    return [device, *back_ends]


def _back_end(what: str, remedy: str, active: str, reason: str | None) -> Finding:
    advice = None if reason is None else f"{remedy} for the fast one ({reason})"
    return Finding(what=what, found=active, advice=advice)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    advice = "free some space before a sweep" if free < _FREE_GB else None
    return Finding(what="disk", found=f"{free:.1f} GB free in {Path.cwd()}", advice=advice)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "found", "to do")
    for finding in findings:
        table.add_row(finding.what, finding.found, finding.advice or "")
    Console().print(table)
