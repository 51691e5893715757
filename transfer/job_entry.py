"""Runs a widthwise command as a Ray job: copied beside `JOB` into the job's working directory.

Its last line of output says how the command ended, because Ray's status does not: a head that dies and comes
back may call a job succeeded that was cut short.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MARK = "widthwise-job: "
JOB = "widthwise_job.json"


def main() -> None:
    """Run the command in `JOB`, if the cluster has the version that it was submitted with."""
    job = json.loads(Path(JOB).read_text(encoding="utf-8"))
    status = _refusal(job["version"]) or _run(job["argv"])
    result = Path(job["out"], "result.json")
    ended = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
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


def _run(argv: list[str]) -> int:
    from widthwise.transfer.cli import main as run

    try:
        run(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


if __name__ == "__main__":
    main()
