"""Checkpoints that are written while training goes on: waiting for them, and why they were not written."""

import errno
import os
import shutil
from pathlib import Path
from threading import Event
from typing import Any

from widthwise.proxies.storage import Place
from widthwise.proxies.validation import last_line

FULL = 2**20  # bytes; a file system with fewer left takes no shard


class Pending:
    """Something that is being written, and what follows it on the same thread."""

    def __init__(self, written: Any, then: Any) -> None:
        self._written, self._then, self._ended = written, then, Event()
        self._error: Exception | None = None
        written.add_done_callback(self._end)

    def wait(self) -> None:
        self._written.result()
        self._ended.wait()
        if self._error is not None:
            raise self._error

    def _end(self, written: Any) -> None:
        try:
            if written.exception() is None:
                self._then()
        except Exception as error:
            self._error = error
        finally:
            self._ended.set()


def write_failure(error: BaseException, folder: Place) -> BaseException:
    """Return the first failure of a write, on whichever worker."""
    failures = [failure for failure, _ in getattr(error, "failures", {}).values()]
    cause: BaseException = failures[0] if failures else error
    # torch writes through a stream, and hides what the disk said behind a complaint of its own.
    if isinstance(cause, OSError) or not isinstance(folder, Path):
        return cause
    if shutil.disk_usage(folder).free < FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return cause


def reason(cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return last_line(cause)
