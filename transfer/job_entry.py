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
    try:
        out = _place(job["out"])
        kept, begun = out / KEPT, (out / "plan.json").exists()
        if job["files"] is None:
            with zipfile.ZipFile(io.BytesIO(kept.read_bytes())) as archive:
                archive.extractall()
            importlib.invalidate_caches()
        elif not begun or ("--resume" in job["argv"] and not kept.exists()):
            out.mkdir(parents=True, exist_ok=True)
            _write(kept, _packed(job["files"]))
    except (OSError, ValueError) as error:
        done = "has no files to go on with" if job["files"] is None else "cannot be written"
        print(f"widthwise: error: out: {job['out']} {done} ({error})", file=sys.stderr)
        return 2
    return 0


def _write(path: Any, content: bytes) -> None:
    """Write a file whole or not at all."""
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)


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
