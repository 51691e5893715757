"""What ends a target run at once, and what is started again.

An error of the user's model, of the data or of the disk comes again however often the run is restarted: its
worker tells it as a `RunError` of one line, and `Restarts` ends the run with it. A worker
that dies without a word, that has lost another, or whose device or disk fails, is Ray Train's to start again.
"""

import errno
import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from platform import node

from widthwise.proxies.files import full_folder, is_full, temporary_folders
from widthwise.proxies.storage import Place
from widthwise.proxies.validation import ConfigError, DiskFull, RunError, first_line
from widthwise.transfer.run_folder import gone


class LostPeer(RuntimeError):
    """A worker waited for another one that has died."""


class HardwareFault(RuntimeError):
    """A device, a disk or a network failed, through nobody's mistake: another attempt may find it well, or another."""


# Of network file systems too, whose server is away for a while. By name: macOS has no EREMOTEIO.
_FAULTS = {
    *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ENODEV"),
    *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ECONNRESET"),
}
# CUDA's words for errors 46, 214, 220, 714, 721 and 999; those of a kernel that reads where it must not are others.
_CUDA_FAULTS = re.compile(
    r"(CUDA|HIP) error: .*(ECC error|NVLink error|nvlink or a hardware error|hardware stack error|"
    r"busy or unavailable|unknown error)"
)


def last_checkpoint(out: Place) -> int | None:
    """Return the step of the latest whole checkpoint in a run's folder, or None."""
    from widthwise.proxies.checkpoint_store import last_step

    return last_step(out / "checkpoints")


@contextmanager
def explained(out: Place) -> Iterator[None]:
    """Turn whatever ends a worker of the run in `out` into a RunError, a LostPeer or a HardwareFault.

    A user's exception is told by its type, its message and where it was raised. None of them keeps the
    original, which need not survive the way to the driver.
    """
    from widthwise.proxies.parallel import lost_peer

    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # some of torch's are no Exceptions
        if isinstance(error, DiskFull) or is_full(error):
            raise RunError(disk_is_full(out)) from None
        absent = any(isinstance(one, FileNotFoundError) for one in _behind(error))
        if absent and gone(out) is not None:
            # Where it was moved, the driver says so; a node of which it is no folder can only say this.
            rule = f"out: must be a folder that all nodes share, got {out}, which is not there on {node()}"
            raise RunError(f"{rule}; go on with --resume") from None
        fault = next(filter(_is_fault, _behind(error)), None)
        if fault is not None:
            raise HardwareFault(f"{type(fault).__name__}: {first_line(fault)}") from None
        if isinstance(error, ConfigError | RunError):
            raise RunError(f"{error}; go on with --resume") from None
        if lost_peer(error):
            raise LostPeer(first_line(error)) from None
        told = f"{type(error).__name__}: {first_line(error)} ({_place(error)})"
        raise RunError(f"{told}; mend it and add --resume") from None


@contextmanager
def room_for(out: Place) -> Iterator[None]:
    """Turn the error of a full disk into one line."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise RunError(disk_is_full(out)) from None
        raise


def disk_is_full(out: Place) -> str:
    """Return what is said of a full disk, which may be that of this machine's temporary files."""
    full = full_folder([str(out), *temporary_folders()]) or out
    step = last_checkpoint(out)
    kept = "there is no checkpoint yet" if step is None else f"the last good checkpoint is step {step}"
    then = "make room and add --resume" if (out / "plan.json").exists() else "make room"
    return f"the disk of {full} is full; {kept}; {then}"


def _behind(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, also on other workers while a checkpoint was written."""
    known: set[int] = set()
    found = [error]
    while found:
        one = found.pop()
        if id(one) not in known:
            known.add(id(one))
            yield one
            found += [failure for failure, _ in getattr(one, "failures", {}).values()]
            found += [led for led in [_led(one)] if led is not None]


def _led(error: BaseException) -> BaseException | None:
    """Return what led to an error, by its own account."""
    if error.__cause__ is not None:
        return error.__cause__
    # Our errors of one line hide what led to them from their readers, not from us.
    is_unrelated = error.__suppress_context__ and not isinstance(error, ConfigError | RunError)
    return None if is_unrelated else error.__context__


def _is_fault(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0) in _FAULTS
    return isinstance(error, RuntimeError) and _CUDA_FAULTS.search(str(error)) is not None


def _place(error: BaseException) -> str:
    """Return file and line of the innermost call in code that is neither ours nor of a library below us."""
    calls = traceback.extract_tb(error.__traceback__)
    theirs = [call for call in calls if not _is_libraries(call.filename)]
    innermost = (theirs or calls)[-1]
    return f"{innermost.filename}:{innermost.lineno}"


def _is_libraries(filename: str) -> bool:
    import ray
    import torch

    packages = [Path(str(module.__file__)).parent for module in (ray, torch)]
    ours = [Path(__file__).parents[1] / name for name in ("kernels", "proxies", "search", "transfer")]
    path = Path(filename)
    if any(path.is_relative_to(folder) for folder in (*packages, *ours)):
        return True
    standard = path.is_relative_to(sysconfig.get_path("stdlib")) and "site-packages" not in path.parts
    return standard or filename.startswith("<")
