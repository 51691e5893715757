"""What a Ray job of ours consists of: a command, and the files that its working directory holds."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from widthwise.transfer import job_entry
from widthwise.transfer.job_entry import JOB

# No name that a user's own module has, which lies beside it.
ENTRY = "widthwise_job.py"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a job needs.

    Attributes:
        argv: the command and its options, `files` by their names.
        out: the folder that the run writes to, as the cluster's nodes see it.
        files: put into the job's working directory by these names; folders with all they hold. None takes those
            that the job which the run was begun with has left in `out`.
        wheel: the package, for a cluster that has not installed it; unpacked into the working directory, because
            Ray would install its dependencies anew, over the cluster's own.
    """

    argv: Sequence[str]
    out: str
    files: Mapping[str, Path] | None
    wheel: Path | None = None


@contextmanager
def working_directory(submission: Submission) -> Iterator[Path]:
    """Fill a folder with what a job needs; it is Ray's once it is sent."""
    with tempfile.TemporaryDirectory(prefix="ww-job-") as name:
        folder = Path(name)
        for target, source in (submission.files or {}).items():
            if source.is_dir():
                shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / target)
        if submission.wheel is not None:
            with zipfile.ZipFile(submission.wheel) as wheel:
                wheel.extractall(folder)
        shutil.copy2(job_entry.__file__, folder / ENTRY)
        files = None if submission.files is None else list(submission.files)
        job = {
            "version": version("widthwise"),
            "argv": list(submission.argv),
            "out": submission.out,
            "files": files,
        }
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        yield folder
