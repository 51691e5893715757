"""Shared fixtures, and a guard against testing the folders instead of the installed package."""

import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

from .postgres import Server, serving

Found = TypeVar("Found")

ROOT = Path(__file__).parent.parent

if importlib.util.find_spec("kernels") is not None:
    raise pytest.UsageError(
        "the repository's root is on sys.path, so that `import kernels` finds a folder: "
        "run `make test`, or set PYTHONSAFEPATH=1"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a CUDA device where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Return the folder with real text (tinyshakespeare.txt, wikitext2_valid_gpt2.bin), if this machine has it."""
    folder = Path(os.environ.get("WIDTHWISE_DATA", ROOT.parent / "shared" / "data"))
    return folder


@pytest.fixture(scope="session")
def real_text(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text file of about 1 MB: Shakespeare, or Python's source where `corpora` has none."""
    path = corpora / "tinyshakespeare.txt"
    if not path.exists():
        sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        path = tmp_path_factory.mktemp("text") / "python.txt"
        path.write_bytes(b"".join(source.read_bytes() for source in sources)[:1_000_000])
    return path


@pytest.fixture(scope="session")
def real_shard(corpora: Path, real_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GPT-2 shard of WikiText, or the text's pairs of bytes where `corpora` has none."""
    path = corpora / "wikitext2_valid_gpt2.bin"
    if not path.exists():
        text = bytes(byte & 127 for byte in real_text.read_bytes()[:500_000])
        path = tmp_path_factory.mktemp("shard") / "pairs.bin"
        path.write_bytes(struct.pack("<256i", 20240520, 1, len(text) // 2, *[0] * 253) + text)
    return path


def unused_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], str]]:
    """Start an S3 server, and return a function that makes a bucket and returns its URI.

    This process and those that it starts find the server and its credentials in the environment.
    """
    port = unused_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url, made = f"http://127.0.0.1:{port}", count()

    def bucket() -> str:
        name = f"bucket-{next(made)}"
        urlopen(Request(f"{url}/{name}", method="PUT"), timeout=20).close()
        return f"s3://{name}"

    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "something")
        _wait_for(port, server)
        yield bucket
        server.kill()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def free_port() -> int:
    """Return a port that nobody listens on."""
    return unused_port()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Return a PostgreSQL server."""
    with serving(unused_port()) as server:
        yield server


@pytest.fixture
def database(postgres: Server) -> str:
    """Return the name of an empty database."""
    name = f"d{uuid4().hex[:8]}"
    with postgres.connect() as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return name


@dataclass(frozen=True)
class Running:
    """A command in a session of its own, to which every process that comes of it belongs."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def until(self, look: Callable[[], Found], *, seconds: float = 90) -> Found:
        """Wait until `look` finds something, and return it; the command must go on meanwhile."""
        deadline, began = time.monotonic() + seconds, time.monotonic()
        while not (found := look()):
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode}: {self.err.read_text()}"
            )
            assert time.monotonic() < deadline, f"waited {seconds} s in vain: {self.err.read_text()}"
            # Reading a study takes longer than that, and the cores are the command's.
            time.sleep(max(0.01, 3 * (time.monotonic() - began)))
            began = time.monotonic()
        return found

    def finish(self, *, seconds: float = 120) -> tuple[int, str, str]:
        """Wait for the end; return the exit status, standard output and standard error."""
        status = self.process.wait(seconds)
        return status, self.out.read_text(), self.err.read_text()

    def interrupt(self) -> None:
        """Press Ctrl-C: a terminal signals the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """Kill the command itself, and wait until its workers have noticed."""
        self.process.kill()
        self.process.wait()
        # Two idle helpers of Ray's look for their killed cluster for a minute before they leave.
        self.require_gone(but="Agent")

    def kill_all(self) -> None:
        """Kill every process of the session, as the loss of a machine does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> dict[int, str]:
        """Return the session's living processes: the command lines by process id."""
        alive = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # After the name, which may hold blanks: state, parent, group, session.
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    alive[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
        return alive

    def require_clean_folders(self) -> None:
        """Nothing but our logs lies in the working folder, nothing but the kernel's cache in the home folder."""
        folder = self.out.parent
        assert {path.stem for path in folder.iterdir()} <= {"out", "err", "home"}
        assert [path.relative_to(folder / "home") for path in (folder / "home").glob("*/*")] == [
            Path(".cache/widthwise")
        ]

    def require_gone(self, *, but: str | None = None, seconds: float = 30) -> None:
        """Wait until no process of the session is left, but those with `but` in their names."""
        deadline = time.monotonic() + seconds
        while alive := [name for name in self.processes().values() if not but or but not in name]:
            assert time.monotonic() < deadline, f"left behind: {alive}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Return a function that starts ``widthwise ARGUMENT…``, or Python with ``script=``, in the background.

    The home folder does not exist; the working folder is an empty one of the module's.
    """
    started: list[Running] = []
    folder = tmp_path_factory.mktemp("started")

    def begin(*arguments: object, script: str | None = None) -> Running:
        command = [sys.executable, "-c", script or "from widthwise.transfer.cli import main; main()"]
        paths = [folder / f"{name}.{len(started)}" for name in ("out", "err")]
        with paths[0].open("wb") as out, paths[1].open("wb") as err:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                cwd=folder,
                env={**os.environ, "HOME": str(folder / "home")},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        started.append(Running(process, *paths))
        return started[-1]

    yield begin
    for running in started:
        for pid in running.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.process.wait()


RAY = """
import os
os.environ.update(PYTHONPATH={path!r}, RAY_worker_niceness="0")
from ray.scripts.scripts import main
main()
"""
QUIET = "--disable-usage-stats --block"


@pytest.fixture
def cluster(start: Callable[..., Any], free_port: int) -> Iterator[Callable[..., Any]]:
    """Return a function that starts a worker node; ``cluster.address`` is the head's, ``cluster.head`` what runs it."""
    address = f"127.0.0.1:{free_port}"
    # A short name: the paths of Ray's sockets may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="w", ignore_cleanup_errors=True) as folder:
        head = f"start --head --include-dashboard false --port {free_port} --node-ip-address 127.0.0.1 --num-cpus 0"
        arguments = [*head.split(), *QUIET.split(), "--temp-dir", folder]
        running = start(*arguments, script=RAY.format(path=""))
        running.until(lambda: "Ray runtime started" in running.out.read_text())

        def begin_node(path: str = "") -> Any:
            worker = ["start", "--address", address, "--node-ip-address", "127.0.0.1", "--num-cpus", 1]
            node = start(*worker, *QUIET.split(), script=RAY.format(path=path))
            node.until(lambda: "Ray runtime started" in node.out.read_text())
            return node

        begin_node.address, begin_node.head = address, running  # type: ignore[attr-defined]
        yield begin_node
        running.process.terminate()
        running.require_gone(but="Agent", seconds=90)
