"""Runs a widthwise command as a Ray job: copied beside `JOB` into the job's working directory.

The files that came with the command, a recipe and the user's own modules, are kept in the run's folder, because Ray
forgets those of a job that has ended: a job that goes on with the run finds them there.

Its last line of output says how the command ended, because Ray's status does not: a head that dies and comes
back may call a job succeeded that was cut short.
"""

import importlib
import io
import json
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MARK = "widthwise-job: "
JOB = "widthwise_job.json"
KEPT = "job.zip"


def main() -> None:
    """Run the command in `JOB`, if the cluster has the version that it was submitted with."""
    job = json.loads(Path(JOB).read_text(encoding="utf-8"))
    refused = _refusal(job["version"]) or _with_files(job)
    status = refused or _run(job["argv"])
    ended = None if refused else _result(job["out"])
    sys.stderr.flush()
    print(MARK + json.dumps({"exit": status, "result": ended}), flush=True)
    sys.exit(status)


def _refusal(wanted: str) -> int:
    try:
        found = version("widthwise")
    except PackageNotFoundError:
        found = "none"
    if found == wanted:
        return 0
    advice = "install it on every node, or submit with --wheel"
    print(
        f"widthwise: error: the cluster must have widthwise {wanted}, got {found}; {advice}", file=sys.stderr
    )
    return 2


def _with_files(job: dict[str, Any]) -> int:
    """Keep the command's files in the run's folder, or take them from there where none came along."""
    out = _place(job["out"])
    kept = out / KEPT
    if job["files"] is None and not kept.exists():
        print(f"widthwise: error: out: {out} has no {KEPT} of the job to go on with", file=sys.stderr)
        return 2
    if job["files"] is None:
        with zipfile.ZipFile(io.BytesIO(kept.read_bytes())) as archive:
            archive.extractall()
        importlib.invalidate_caches()
    elif not (out / "plan.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(_packed(job["files"]))
    return 0


def _place(out: str) -> Any:
    if "://" not in out:
        return Path(out)
    from widthwise.proxies.storage import place

    return place(out)


def _packed(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            for path in (Path(name), *Path(name).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path)
    return buffer.getvalue()


def _result(out: str) -> Any:
    path = _place(out) / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _run(argv: list[str]) -> int:
    from widthwise.transfer.cli import main as run

    try:
        run(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


if __name__ == "__main__":
    main()
