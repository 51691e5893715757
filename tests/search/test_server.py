"""Studies on a real PostgreSQL server: written by one process at a time, whatever becomes of server and network."""

import json
import math
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from itertools import chain, count
from pathlib import Path
from select import select
from threading import Barrier, Thread
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon
from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search import Storage, SweepConfig, server
from widthwise.search.ledger import Ledger
from widthwise.search.status import study_status
from widthwise.search.stored import stored_config

from ..postgres import PASSWORD, Server

STEPS = 10


CONFIG = SweepConfig(
    model=GPTConfig(width=32, context=64),
    horizon=Horizon(batch_tokens=1024, tokens=1024 * STEPS),
    trials=2,
    finalists=1,
    seeds=2,
    seed=5,
    prune=False,
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Return a function that opens a ledger in a folder of `tmp_path`; all are closed at the end."""
    with ExitStack() as stack:

        def open_ledger(name: str = "sweep", *, storage: Storage | None, resume: bool = False) -> Ledger:
            ledger = Ledger(CONFIG, tmp_path / name, resume=resume, storage=storage)
            stack.callback(ledger.close)
            return ledger

        yield open_ledger


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the records of a sweep whose study is a file."""
    with closing(Ledger(CONFIG, tmp_path_factory.mktemp("file"), resume=False)) as ledger:
        return play(ledger)


def begin(ledger: Ledger) -> Trial:
    trial = ledger.next()
    assert isinstance(trial, Trial)
    ledger.run(trial)
    return trial


def complete(ledger: Ledger, trial: Trial) -> None:
    tried = ledger.hyperparameters(trial)
    loss = 2 + math.log(tried.lr / 0.03) ** 2
    assert not ledger.report(trial.number, STEPS // 2, loss + 1)
    ledger.finish(trial.number, "completed", {"loss": loss, "tokens": 10240, "seconds": 1.5})


def play(ledger: Ledger, between: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
    """Run a sweep to its end, with something between its steps; return its records."""
    while not ledger.is_finished():
        trial = begin(ledger)
        between()
        complete(ledger, trial)
        between()
    return ledger.records()


def test_a_study_on_a_server_is_as_one_in_a_file_and_optunas(
    opened: Callable[..., Ledger],
    postgres: Server,
    database: str,
    undisturbed: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    ledger = opened(storage=Storage.parse(postgres.url(database)))
    records = play(ledger)
    assert records == undisturbed
    assert [record["status"] for record in records] == ["completed"] * 3
    assert not (tmp_path / "sweep" / "study.db").exists()
    said = json.loads((tmp_path / "sweep" / "study.json").read_text())
    assert said == {
        "schema": "widthwise/study/1",
        "storage": postgres.url(database, password=None),
        "study": ledger.study.study_name,
    }
    assert said["study"].startswith("sweep-")
    backend = optuna.storages.RDBStorage(postgres.url(database).replace("{", "{{"))
    study = optuna.load_study(storage=backend, study_name=said["study"])
    assert study.best_value == min(record["loss"] for record in records)
    backend.remove_session()
    backend.engine.dispose()


def test_a_folder_finds_its_study_with_a_password_from_anywhere(
    opened: Callable[..., Ledger],
    postgres: Server,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = Storage.parse(postgres.url(database), study_name="mine")
    first = opened(storage=given)
    trial = begin(first)
    # The server knows who works at it, whatever the folder's own lock says.
    running = study_status(tmp_path / "sweep", given)
    assert running is not None
    assert (running["state"], running["counts"]) == ("running", {"running": 1})
    first.close()
    with pytest.raises(ConfigError, match="no password supplied"):
        stored_config(tmp_path / "sweep")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    stopped = study_status(tmp_path / "sweep")
    assert stopped is not None
    assert (stopped["state"], stopped["running"]) == (
        "interrupted",
        [{"trial": str(trial.number), "step": None, "loss": None}],
    )
    assert stored_config(tmp_path / "sweep") == first.config
    again = opened(storage=None, resume=True)
    assert begin(again).number == trial.number


def test_a_study_is_gone_on_with_from_a_new_folder(
    opened: Callable[..., Ledger], postgres: Server, database: str
) -> None:
    storage = Storage.parse(postgres.url(database), study_name="lost and found")
    first = opened(storage=storage)
    complete(first, begin(first))
    interrupted = begin(first)
    first.close()
    second = opened("elsewhere", storage=storage, resume=True)
    assert begin(second).number == interrupted.number
    assert [record["number"] for record in second.records()] == [0]
    second.close()
    opened("elsewhere", storage=Storage.parse(postgres.url(database)), resume=True)


def test_both_ends_notice_within_a_minute_that_the_other_is_gone(postgres: Server, database: str) -> None:
    looks = {
        "keepalives_idle": socket.TCP_KEEPIDLE,
        "keepalives_interval": socket.TCP_KEEPINTVL,
        "keepalives_count": socket.TCP_KEEPCNT,
        "user_timeout": socket.TCP_USER_TIMEOUT,
    }
    storage = Storage.parse(postgres.url(database), study_name="watchful")
    with closing(server._Holder(storage).connect()) as connection:
        there = [int(connection.execute(f"SHOW tcp_{name}").fetchone()[0]) for name in looks]
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            here = [end.getsockopt(socket.IPPROTO_TCP, option) for option in looks.values()]
    assert there == here == [30, 10, 3, 60_000]


def test_a_study_that_is_in_use_is_refused_and_others_beside_it_are_not(
    opened: Callable[..., Ledger], postgres: Server, database: str
) -> None:
    storage = Storage.parse(postgres.url(database), study_name="one")
    first = opened(storage=storage)
    with pytest.raises(ConfigError) as caught:
        opened("elsewhere", storage=storage, resume=True)
    where = postgres.url(database, password=None)
    assert str(caught.value) == (
        f"storage: study 'one' in {where} is in use by another process that is still running"
    )
    second = opened("beside", storage=Storage.parse(postgres.url(database), study_name="two"))
    first_trial, second_trial = begin(first), begin(second)
    complete(second, second_trial)
    complete(first, first_trial)
    assert first.records() == second.records()


def test_two_sweeps_that_start_at_once_in_an_empty_database_both_do(postgres: Server, database: str) -> None:
    together = Barrier(2)

    def start(name: str) -> int:
        together.wait()
        storage = Storage.parse(postgres.url(database), study_name=name)
        with server.writing(storage, resume=False) as study:
            together.wait()
            return study.ask().number

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(start, ["one", "two"])) == [0, 0]


def test_restarts_of_the_server_change_nothing(
    opened: Callable[..., Ledger], postgres: Server, database: str, undisturbed: list[dict[str, Any]]
) -> None:
    ledger = opened(storage=Storage.parse(postgres.url(database)))
    assert play(ledger, between=postgres.restart) == undisturbed
    assert [trial.number for trial in ledger.study.get_trials()] == [0, 1, 2]


class Cutter:
    """A way to a port on which, once it is armed, the connection is cut at every n-th of some statements.

    A COMMIT counts where there is something to commit. By turns before the server has it, and once the server has
    answered, which nobody hears.
    """

    def __init__(self, port: int, statement: bytes, every: int) -> None:
        self.upstream, self.statement, self.every = port, statement, every
        self.seen, self.armed = 0, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = Thread(target=self.accept)
        self.thread.start()

    @property
    def cuts(self) -> int:
        return self.seen // self.every

    def accept(self) -> None:
        """Carry every connection, until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                Thread(target=self.carry, args=[client], daemon=True).start()

    def carry(self, client: socket.socket) -> None:
        """Carry a connection's data, until an end closes it or it is cut."""
        with client, socket.create_connection(("127.0.0.1", self.upstream)) as server:
            ends, wrote = {client: server, server: client}, False
            for source in chain.from_iterable(select(ends, [], [])[0] for _ in count()):
                data = source.recv(1 << 16)
                wrote |= b"INSERT" in data or b"UPDATE" in data or self.statement != b"COMMIT"
                counts = source is client and self.armed and wrote and self.statement in data
                self.seen += counts
                wrote &= not counts
                cut = counts and self.seen % self.every == 0
                if not data or (cut and self.cuts % 2):
                    return
                ends[source].sendall(data)
                if cut:
                    server.recv(1 << 16)
                    return

    def close(self) -> None:
        """Accept no more."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()


@pytest.mark.parametrize(("statement", "every"), [(b"COMMIT", 3), (b" IN (", 8)])
def test_what_is_cut_off_before_or_after_it_was_carried_out_happens_once(
    opened: Callable[..., Ledger],
    postgres: Server,
    database: str,
    undisturbed: list[dict[str, Any]],
    statement: bytes,
    every: int,
) -> None:
    with closing(Cutter(postgres.port, statement, every)) as way:
        url = postgres.url(database).replace(str(postgres.port), str(way.port))
        ledger = opened(storage=Storage.parse(url, study_name="cut"))
        # What has not begun is refused at once.
        way.armed = True
        records = play(ledger)
        trials = ledger.study.get_trials()
        ledger.close()
    assert way.cuts > 2
    assert records == undisturbed
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    with server.reading(Storage.parse(postgres.url(database), study_name="cut")) as study:
        assert [trial.number for trial in study.get_trials()] == [0, 1, 2]


def test_a_connection_that_ends_within_every_read_is_told_as_such(
    opened: Callable[..., Ledger], postgres: Server, database: str
) -> None:
    # Optuna reads trials by five such statements, which no connection outlives: trying again cannot help.
    with closing(Cutter(postgres.port, b" IN (", 5)) as way:
        url = postgres.url(database).replace(str(postgres.port), str(way.port))
        ledger = opened(storage=Storage.parse(url, study_name="cut", patience=0.5))
        way.armed = True
        with pytest.raises(RunError) as caught:
            play(ledger)
        assert way.cuts > 2
        way.armed = False
        ledger.close()
    where = postgres.url(database, password=None).replace(str(postgres.port), str(way.port))
    assert re.fullmatch(
        rf"storage: {re.escape(where)} fails \([^()]*server closed the connection unexpectedly[^()]*\); "
        "tried for 0.5 s; what has ended is kept: go on with --resume",
        str(caught.value),
    ), caught.value


def test_a_server_that_stays_away_ends_the_sweep_which_can_be_resumed(
    opened: Callable[..., Ledger], postgres: Server, database: str, undisturbed: list[dict[str, Any]]
) -> None:
    ledger = opened(storage=Storage.parse(postgres.url(database), patience=0.5))
    complete(ledger, begin(ledger))
    trial = begin(ledger)
    where = postgres.url(database, password=None)
    postgres.stop()
    try:
        with pytest.raises(RunError) as caught:
            complete(ledger, trial)
        message = str(caught.value)
        assert message.startswith(f"storage: {where} fails (connection failed: ")
        assert message.endswith("; tried for 0.5 s; what has ended is kept: go on with --resume")
        assert "\n" not in message
        ledger.close()
    finally:
        postgres.start()
    again = opened(storage=Storage.parse(postgres.url(database)), resume=True)
    assert play(again) == undisturbed


def test_who_was_away_does_not_write_after_another_process(
    opened: Callable[..., Ledger], postgres: Server, database: str
) -> None:
    storage = Storage.parse(postgres.url(database), study_name="left")
    first = opened(storage=storage)
    trial = begin(first)
    postgres.restart()
    second = opened("elsewhere", storage=storage, resume=True)
    assert begin(second).number == trial.number
    second.close()
    with pytest.raises(RunError) as caught:
        complete(first, trial)
    where = postgres.url(database, password=None)
    assert str(caught.value) == f"storage: another process has gone on with study 'left' in {where}"


URL = "postgresql+psycopg://USER@HOST/DATABASE"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", f"must be a URL such as {URL}, and cannot be read as one"),
        ("postgresql://u:s3cr%40t@h:x/d", f"must be a URL such as {URL}, and cannot be read as one"),
        ("mysql://u:s3cr%40t@h/d", f"must be a PostgreSQL URL, {URL}, got 'mysql'"),
        (
            "sqlite:///study.db",
            f"must be a PostgreSQL URL, {URL}, got 'sqlite'; without storage, the study is an SQLite file in "
            "the folder",
        ),
        ("postgresql+psycopg2://u@h/d", f"must be a PostgreSQL URL, {URL}, got 'postgresql+psycopg2'"),
        ("postgresql://u:s3cr@t@h/d", "'@' in a password must be written as '%40'"),
        ("postgresql://u:s3cr%40t@h", f"must name a database, {URL}"),
        (
            "postgresql://u@h/d?sslpassword=s3cr%40t",
            "must not hold 'sslpassword'; a password stands before the host, or in ~/.pgpass",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_one_line_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Storage.parse(url)
    assert str(caught.value) == f"storage: {message}"


def test_a_storage_does_not_show_its_password() -> None:
    storage = Storage.parse("postgresql://u:s3cr%40t@h/d?sslmode=require", study_name="x")
    assert storage.password == "s3cr@t"
    assert str(storage) == "postgresql+psycopg://u@h/d?sslmode=require"
    assert repr(storage) == f"Storage(url={storage}, study_name='x', patience=120.0)"


@pytest.mark.parametrize("name", ["", "x" * 513, "a\nb"])
def test_a_studys_name_is_printable(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Storage.parse("postgresql://u@h/d", study_name=name)
    assert str(caught.value) == f"study_name: must be 1 to 512 printable characters, got {name!r}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "s3cr%t"}, 'FATAL: password authentication failed for user "tuner"'),
        ({"password": None}, "fe_sendauth: no password supplied"),
        ({"database": "nowhere"}, 'FATAL: database "nowhere" does not exist'),
        ({"host": "nowhere.invalid"}, "failed to resolve host 'nowhere.invalid': "),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_and_nothing_is_left(
    opened: Callable[..., Ledger],
    postgres: Server,
    database: str,
    tmp_path: Path,
    change: dict[str, Any],
    reason: str,
) -> None:
    url = postgres.url(**{"database": database, **change})
    bare = postgres.url(**{"database": database, **change, "password": None})
    with pytest.raises(ConfigError) as caught:
        opened(storage=Storage.parse(url))
    message = str(caught.value)
    assert message.startswith(f"storage: {bare} cannot be opened (")
    assert reason in message
    assert "\n" not in message
    assert not (tmp_path / "sweep" / "study.json").exists()


def test_studies_that_are_not_there_or_another_are_one_line(
    opened: Callable[..., Ledger], postgres: Server, database: str, tmp_path: Path
) -> None:
    def refused(**options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            opened(**options)
        return str(caught.value)

    where = postgres.url(database, password=None)
    named = Storage.parse(postgres.url(database), study_name="named")
    assert refused(storage=named, resume=True) == f"storage: {where} holds no study 'named'"
    opened(storage=named).close()
    taken = "must be new, or be gone on with in its folder by --resume"
    assert refused(name="other", storage=named) == f"study_name: {taken}, but {where} holds a study 'named'"
    another = Storage.parse(postgres.url(database), study_name="another")
    path = tmp_path / "sweep" / "study.json"
    said = refused(storage=another, resume=True)
    assert said == f"study_name: must be 'named' as in {path}, got 'another'"
    with server.writing(another, resume=False):
        pass
    said = refused(name="other", storage=another, resume=True)
    assert said == f"study_name: must be a sweep's study, but 'another' in {where} is not"
    opened("file", storage=None).close()
    file = tmp_path / "file"
    said = refused(name="file", storage=named, resume=True)
    assert said == f"storage: must not be given, as {file} holds its study in study.db"
    path.write_text("{}")
    assert refused(storage=named, resume=True) == f"{path}: schema: is required, must be 'widthwise/study/1'"


@pytest.mark.parametrize("name", ["a b%20c?d=e&f#{g}", "ä:@+"])
def test_a_file_is_found_whatever_its_path_has(
    opened: Callable[..., Ledger], tmp_path: Path, name: str
) -> None:
    opened(name, storage=None).close()
    assert (tmp_path / name / "study.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    status = study_status(tmp_path / name)
    assert status is not None
    assert status["kind"] == "sweep"
    assert stored_config(tmp_path / name) == opened(name, storage=None, resume=True).config


def test_a_missing_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError) as caught:
        Storage.parse("postgresql://u@h/d")
    advice = "install it with: pip install 'widthwise[postgres]'"
    assert str(caught.value) == f"storage: psycopg is not installed; {advice}"
