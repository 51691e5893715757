"""How a command ends: an exit status, and one line on standard error that says what went wrong."""

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from io import UnsupportedOperation

from widthwise.proxies.files import full_folder, temporary_folders
from widthwise.proxies.validation import ConfigError, RunError, one_line
from widthwise.search.standard_error import standard_error

# As a shell sees other tools end.
_READER_GONE = 128 + signal.SIGPIPE


def status_of(run: Callable[[], int]) -> int:
    """Run, and turn every exception into one line on standard error and an exit status."""
    try:
        return run()
    except ConfigError as error:
        _say("error", str(error))
        return 2
    except KeyboardInterrupt:
        _say("error", "interrupted")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone.
        return _READER_GONE
    except SystemExit as stop:
        # What rich makes of it.
        if isinstance(stop.__context__, BrokenPipeError):
            return _READER_GONE
        raise
    except RunError as error:
        _say("failed", str(error))
        return 1
    except Exception as error:
        if _is_of_closed_terminal(error):
            return _READER_GONE
        _say("failed", f"{type(error).__name__}: {error} ({_kept_traceback()})")
        return 1


def _is_of_closed_terminal(error: Exception) -> bool:
    """Return whether an error is of standard output, on a terminal that is there no more."""
    if not (isinstance(error, OSError) and error.errno == errno.EIO):
        return False
    try:
        # Such a terminal refuses even no bytes at all; a file takes them.
        os.write(sys.stdout.fileno(), b"")
    except UnsupportedOperation:
        return False
    except OSError:
        return True
    return False


def flush() -> None:
    """Flush standard output, so that what is wrong with it is noticed here and not at the interpreter's end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        has_no_reader = _is_of_closed_terminal(error)
        # That at the interpreter's end must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if has_no_reader:
            raise BrokenPipeError from error
        raise


def full_disk(command: object) -> str:
    """Return which disk is full, as far as that can be told, and what to do: the error itself seldom names a file.

    Args:
        command: with the folder ``out`` or ``folder`` that it writes, and ``resume`` where it can go on.
    """
    written = [str(getattr(command, name)) for name in ("out", "folder") if getattr(command, name, None)]
    written += temporary_folders()
    full = full_folder(written)
    if full is not None:
        said = f"the disk of {full} is full"
    else:
        said = f"a disk is full, or a quota used up ({', '.join(written)} or standard output)"
    return f"{said}; make room" + (", and go on with --resume" if hasattr(command, "resume") else "")


def _say(what: str, message: str) -> None:
    print(f"widthwise: {what}: {one_line(message)}", file=standard_error())


def _kept_traceback() -> str:
    """Write the traceback to a file; return where it is, or why it is not."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="widthwise-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(traceback.format_exc())
    except OSError as error:
        return f"its traceback could not be kept: {error.strerror}"
    return f"traceback in {file.name}"
