"""A Ray to run on: an existing cluster, or a quiet local one that is gone afterwards."""

import logging
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from widthwise.proxies.files import LOCK, is_locked, locked
from widthwise.proxies.validation import ConfigError
from widthwise.search.nodes import require_same_version

# Seconds for an address to answer; the command line promises an error within 20.
ANSWER_SECONDS = 8
TOKEN_REFUSED = (
    "the cluster asks for a token, and the one given is missing or wrong; "
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as for Ray's own commands"
)
# Age from which a session's folder that nobody has locked is nobody's.
SECONDS_UNLOCKED = 60
# In which a SIGTERM that follows another is the same one.
SECONDS_OF_REPEATS = 2.0
# After which a signal that Python dropped is sent again.
SECONDS_UNTIL_SENT_AGAIN = 0.05


@contextmanager
def ray_session(
    address: str | None = None,
    *,
    cpus: int | None = None,
    modules: Sequence[str] = (),
    prepare: Callable[[], object] = lambda: None,
) -> Iterator[Any]:
    """Connect to the cluster at `address`, or start a local Ray on the loopback interface; yields ``ray``.

    The local Ray is protected by a token of its own, writes nothing under the home directory, prints
    nothing, lets idle OpenMP threads sleep, and is shut down on leaving. A process that has imported Ray
    before keeps what Ray read then: it listens on all interfaces, behind the token.

    Args:
        address: ``host:port`` or ``auto``, where `require_ray` found one; None starts a local Ray.
        cpus: logical cores of a local Ray; None takes the machine's.
        modules: packages and Python files here that the workers shall be able to import.
        prepare: imports what needs Ray; an interruption that is lost on the way is looked for afterwards.
    """
    local: dict[str, Any] = {} if address is not None else {"num_cpus": cpus, "include_dashboard": False}
    with (
        _terminated_as_interrupted() as take_signals,
        _environment(_QUIET if address is not None else _QUIET | _LOCAL | _token()),
        scratch_folder() as folder,
    ):
        import ray

        if address is None:
            local["_temp_dir"] = folder
        if modules:
            local["runtime_env"] = {"py_modules": list(modules)}

        for name in ("ray", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # A trial whose worker or node died: 30 lines each, and we say it in one.
        for name in ("ray.tune", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            _start(ray, address or "local", local)
            prepare()
            take_signals()
            if address is not None:
                require_same_version(ray)
            yield ray
        finally:
            ray.shutdown()


def _start(ray: Any, address: str, options: Mapping[str, Any]) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except SystemExit:
        # What Ray makes of SIGTERM while it starts.
        raise KeyboardInterrupt from None


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder for what Ray writes; those of processes that were killed are removed on the way."""
    for left in Path(_SOCKETS).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            # A new one is locked a moment after it is made.
            old = time.time() - left.stat().st_mtime > SECONDS_UNLOCKED
            if old and _is_ours(left) and not is_locked(left):
                shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=_SOCKETS, ignore_cleanup_errors=True) as folder,
        locked(Path(folder)),
    ):
        yield folder


def _is_ours(folder: Path) -> bool:
    """Return whether a session made a folder; Ray, as it ends, may make that again, without our lock."""
    names = {path.name for path in folder.iterdir()}
    return LOCK in names or (bool(names) and all(name.startswith(_MADE_AGAIN) for name in names))


@contextmanager
def _terminated_as_interrupted() -> Iterator[Callable[[], None]]:
    """Take SIGTERM, with which schedulers end a job, and a closed terminal's SIGHUP as Ctrl-C, not as Ray does.

    Schedulers send it to all processes of a job, so that those of a local Ray end too. Therefore it is raised here, and
    not left to Tune's or Train's own handling of Ctrl-C, which would wait for them.

    Yields a function that takes them again, because Ray's start takes SIGTERM for itself, and raises what was lost on
    the way. On leaving, they and SIGINT, which Tune keeps, are the caller's again.

    Python drops, and prints, what is raised while it happens to be in a destructor or a callback, of which Ray's start
    has many: that one is neither printed nor lost, but comes again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    raised, latest, is_dropped = -math.inf, signal.SIGINT, False

    def interrupt(number: int, _: object) -> None:
        # Some send SIGTERM twice: to the process, and to its group. A later one counts, because what runs then may have
        # swallowed the first. Who presses Ctrl-C again means it.
        nonlocal raised, latest, is_dropped
        is_repeat = not is_dropped and time.monotonic() - raised <= SECONDS_OF_REPEATS
        if number == signal.SIGINT or not is_repeat:
            raised, latest, is_dropped = time.monotonic(), signal.Signals(number), False
            raise KeyboardInterrupt

    def dropped() -> signal.Signals:
        nonlocal is_dropped
        is_dropped = True
        return latest

    def take() -> None:
        signal.signal(signal.SIGTERM, interrupt)
        # As nohup wants it.
        if before[signal.SIGHUP] is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, interrupt)
        if before[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
        if raised > -math.inf:
            # It was dropped, or nobody would call this.
            raise KeyboardInterrupt

    take()
    try:
        with _sent_again(dropped):
            yield take
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _sent_again(dropped: Callable[[], signal.Signals]) -> Iterator[None]:
    """Send a signal again, which `dropped` returns, where Python would print that it dropped a KeyboardInterrupt."""
    main, hook, timers = threading.main_thread().ident, sys.unraisablehook, list[threading.Timer]()

    def look(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)
            return
        # A moment later: what is raised in here would be dropped too.
        timers.append(threading.Timer(SECONDS_UNTIL_SENT_AGAIN, signal.pthread_kill, [main, dropped()]))
        timers[-1].daemon = True
        timers[-1].start()

    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set what is not set, and leave the environment as it was."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in defaults.items() if name not in before})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@cache
def _token() -> dict[str, str]:
    # Ray switches token authentication on for a local cluster; given a token, it writes no file.
    # One for all sessions of a process, because Ray keeps the first that it read.
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def require_ray(address: str) -> None:
    """Raise a ConfigError unless a Ray answers at `address`, within a few seconds, and takes our token."""
    if address != "auto":
        _require_listener(address)
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"address: no Ray answered within {ANSWER_SECONDS} s at {address!r}") from None
    if answer.returncode and b"uthentication token" in answer.stderr:
        raise ConfigError(f"address: {TOKEN_REFUSED}")
    if answer.returncode:
        raise ConfigError(f"address: no Ray answers at {address!r}; start one with `ray start --head`")


def _require_listener(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"address: must be host:port or 'auto', got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"address: no Ray answers at {address!r} ({error})") from None


# Where Ray's session folder goes: sockets' paths must be short.
_SOCKETS, _PREFIX = "/tmp", "ww-"
_MADE_AGAIN = ("session_", "ray_train_run-")

# Ray reads most of these when it is imported.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray prints the death of a worker on standard output; who retries, and reports, is us.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Seconds between Ray Train's looks at its workers, in place of 2: a dead one is noticed at once.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Seconds to wait for the workers' resources before counting them again: nodes that died are counted for 20 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Seconds between Tune's snapshots of all trials: the study is the truth, and nothing is restored from them.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
}
_LOCAL = {
    # Ray's own switch for the loopback interface, on Linux too, whatever its name.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Several single-threaded workers share the cores: a spinning OpenMP thread costs its neighbour.
    "OMP_WAIT_POLICY": "passive",
    # Bytes, of glibc: a step's tensors are as large in the next one, and memory that goes back to the kernel in between
    # is faulted in anew, 300 pages a step. Measured on proxies of width 32: a tenth of the training's time. One arena,
    # because every trial and every report is a thread, and each of eight arenas a core would keep as much.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    # Of the workers, which train: Ray's own 15 gives them a thirtieth of a core that somebody else wants too.
    "RAY_worker_niceness": "0",
    # Seconds to look for Ray's other processes when they are gone, as after SIGTERM to all of them; 60 else.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    # A worker per core, at once, that nobody takes: Tune's and Train's actors have runtime environments of their own.
    "RAY_prestart_worker_first_driver": "0",
    # A process that looks out for a node to be taken away: this one is not.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
