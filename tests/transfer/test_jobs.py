"""Target runs as Ray jobs: a real cluster behind a token, and every address that is refused."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Recipe, cli, job_entry
from widthwise.transfer.commands.job_options import going_on
from widthwise.transfer.commands.jobs import jobs_table
from widthwise.transfer.commands.options import whole_lines
from widthwise.transfer.dashboard import DASHBOARD, dashboard, require_guarded
from widthwise.transfer.jobs import Job, resumed, visible
from widthwise.transfer.submission import ENTRY, Submission, working_directory

PROXY = GPTConfig(width=32, context=64)
STEPS = 240
MODEL = """
from torch import nn

def build(width):
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 256))
"""


def save_recipe(path: Path, lr: float, steps: int) -> None:
    tuned = Hyperparameters(lr=lr, weight_decay=1.0, huber_c=2.0, clip_norm=1.0)
    horizon = Horizon(batch_tokens=1024, tokens=1024 * steps)
    Recipe(hyperparameters=tuned, proxy=PROXY, horizon=horizon).save(path)


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all at once so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


HEAD = """
import os, sys
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
from ray.scripts.scripts import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def rays_folder() -> Iterator[str]:
    """Make a folder for Ray, with a short path because sockets need one; it goes when Ray's processes have gone."""
    folder = tempfile.mkdtemp(prefix="ww-", dir="/tmp")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def head(rays_folder: str, start: Callable[..., Any]) -> Iterator[str]:
    """Start a cluster of this machine's, behind a token, and return its dashboard's address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the loopback interface alone
        ports = free_ports(3)
        names = ("dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
        options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        options += ["--port=0", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2"]
        options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={rays_folder}"]
        running = start("start", "--head", "--block", *options, script=HEAD)
        running.until(lambda: _answers(ports[0]))
        yield f"127.0.0.1:{ports[0]}"


def _answers(port: int) -> bool:
    try:
        require_guarded(f"http://127.0.0.1:{port}")
    except ConfigError:
        return False
    return True


@pytest.mark.ray
@pytest.mark.slow
def test_target_runs_as_jobs(head: str, start: Callable[..., Any], tmp_path: Path, real_text: Path) -> None:
    (tmp_path / "jobs_network.py").write_text(MODEL)
    save_recipe(tmp_path / "good.json", 0.03, STEPS)
    save_recipe(tmp_path / "bad.json", 1e3, STEPS)
    program = f"import os; os.chdir({str(tmp_path)!r}); from widthwise.transfer.cli import main; main()"

    def begin(name: str, *arguments: object) -> Any:
        return start(name, *arguments, "--address", head, script=program)

    def submit(recipe: str, out: str, *more: object) -> Any:
        run = ("--width", 64, "--data", real_text, "--evaluations", 30, "--out", tmp_path / out, "--json")
        return start("launch", f"{recipe}.json", *run, "--submit", head, *more, script=program)

    model = ("--model", "jobs_network:build", "--checkpoint-every", 2)
    sent = [submit("good", "target", *model), submit("bad", "diverged")]
    good, bad = (json.loads(_done(one)[0]) for one in sent)
    assert good == {"job": good["job"], "address": f"http://{head}", "out": str(tmp_path / "target")}

    # Stopped in the middle, and submitted again to go on.
    metrics = tmp_path / "target" / "metrics.jsonl"
    following = begin("logs", good["job"], "--follow")
    following.until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 1)
    going_on = f"; go on with: widthwise resume {good['job']} --address http://{head}"
    assert _done(begin("stop", good["job"]))[0] == f"{good['job']}: stopped{going_on}\n"
    printed, said = _done(following, status=1)
    assert "step 8: loss " in printed
    assert "widthwise-job:" not in printed
    assert said.splitlines()[-1] == f"widthwise: {good['job']}: stopped (Ray says stopped){going_on}"
    elsewhere = start("resume", good["job"], "--address", head, "--json")  # not from the model's folder
    again = json.loads(_done(elsewhere)[0])
    resumed = again["job"]
    assert again == {**good, "job": resumed}
    printed, said = _done(begin("logs", resumed, "-f"))
    assert said.splitlines()[-1] == f"widthwise: {resumed}: completed (Ray says succeeded)"
    result = json.loads((tmp_path / "target" / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("completed", STEPS)
    assert result["parameters"] == 256 * 64 + 64 * 65 + 65 * 256

    said = _done(begin("logs", bad["job"], "-f"), status=1)[1]
    assert said.splitlines()[-1] == f"widthwise: {bad['job']}: diverged (Ray says failed)"
    jobs = json.loads(_done(begin("jobs", "--json"))[0])["jobs"]
    assert (jobs[0]["job"], jobs[0]["verdict"]) == (resumed, "completed")
    assert {job["job"]: job["verdict"] for job in jobs} == {
        resumed: "completed",
        good["job"]: "stopped",
        bad["job"]: "diverged",
    }
    assert jobs[0]["result"] == result
    said = _done(begin("resume", resumed), status=2)[1]
    ended = "must have ended before its run was completed"
    assert said == f"widthwise: error: job: {ended}, got completed {resumed}\n"
    said = _done(begin("stop", "absent"), status=2)[1]
    assert said == f"widthwise: error: job: http://{head} has no job 'absent'\n"


def _done(running: Any, *, status: int = 0) -> tuple[str, str]:
    found, printed, said = running.finish()
    assert found == status, said
    return printed, said


@pytest.mark.ray
def test_without_the_clusters_token_there_is_one_line(
    head: str, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    assert _done(start("jobs", "--address", head), status=2)[1] == (
        "widthwise: error: address: the cluster asks for a token, and the one given is missing or wrong; "
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as for Ray's own commands\n"
    )


class Open(BaseHTTPRequestHandler):
    """Answers everyone: a dashboard without authentication, as far as anyone can tell."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Other(Open):
    """Not a dashboard."""

    status = 404


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[int]:
    """Serve with the handler that the test names; yields the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class Forgetful(Open):
    """A dashboard that has two jobs of ours, whose node with the one's log has gone."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/jobs/")
        mark = job_entry.MARK + json.dumps({"exit": 0, "result": COMPLETED})
        answers: dict[str, Any] = {
            "/api/version": {"version": "4", "ray_version": version("ray"), "ray_commit": ""},
            "": [details("there"), details("gone"), {**details("other"), "metadata": {}}],
            "there": details("there"),
            "gone": details("gone"),
            "there/logs": {"logs": f"{mark}\n"},
        }
        self.send_response(200 if name in answers else 500)
        self.end_headers()
        self.wfile.write(json.dumps(answers.get(name, "no such node")).encode())


def details(name: str) -> dict[str, Any]:
    """Return what Ray says of a job that has ended."""
    metadata = {"widthwise": "0", "out": f"/shared/{name}"}
    return {
        "type": "SUBMISSION",
        "submission_id": name,
        "status": "SUCCEEDED",
        "entrypoint": "",
        "metadata": metadata,
    }


@pytest.mark.parametrize("served", [Forgetful], indirect=True)
def test_a_job_without_its_log_hides_no_other(served: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["jobs", "--json", "--address", f"127.0.0.1:{served}"])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.err) == (0, "")
    jobs = json.loads(captured.out)["jobs"]
    assert [(job["job"], job["verdict"]) for job in jobs] == [("there", "completed"), ("gone", "unknown")]
    assert exit_code("resume", "there", f"127.0.0.1:{served}") == 2
    ended = "must have ended before its run was completed"
    assert capsys.readouterr().err == f"widthwise: error: job: {ended}, got completed there\n"
    assert exit_code("resume", "gone", f"127.0.0.1:{served}") == 2
    told = "widthwise: error: job: gone was not sent by a widthwise that keeps its command\n"
    assert capsys.readouterr().err == told


def exit_code(command: str, job: str, address: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, job, "--address", address])
    return stop.value.code


@pytest.mark.parametrize("served", [Open], indirect=True)
def test_a_dashboard_open_to_a_network_is_refused(
    served: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_recipe(tmp_path / "recipe.json", 0.03, 10)
    # The kernel takes 0.0.0.0 for this machine; it is no loopback address.
    address = f"http://0.0.0.0:{served}"
    for command in (
        ["launch", str(tmp_path / "recipe.json"), "--width", "64", "--out", "/o", "--submit", address],
        ["jobs", "--address", address],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        assert (stop.value.code, capsys.readouterr()) == (
            2,
            (
                "",
                f"widthwise: error: address: '{address}' runs programs for anyone who reaches it (ShadowRay, "
                "CVE-2023-48022); start the cluster with RAY_AUTH_MODE=token, reach it through a tunnel, or "
                "add --insecure\n",
            ),
        )
    require_guarded(address, insecure=True)
    for host in ("127.0.0.1", "localhost"):
        require_guarded(f"http://{host}:{served}")


@pytest.mark.parametrize("served", [Other], indirect=True)
def test_what_is_no_dashboard_is_refused(served: int) -> None:
    address = f"http://127.0.0.1:{served}"
    with pytest.raises(ConfigError) as refused:
        require_guarded(address)
    assert str(refused.value) == f"address: no Ray dashboard at '{address}' (HTTP status 404)"


def test_where_nothing_answers_is_refused() -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ConfigError) as refused:
        require_guarded(address)
    told = f"address: no Ray dashboard answers at '{address}' ([Errno 111] Connection refused)"
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:8265", DASHBOARD),
        ("http://127.0.0.1:8265/", DASHBOARD),
        ("https://ray.example:443", "https://ray.example:443"),
    ],
)
def test_a_dashboards_address(address: str, url: str) -> None:
    assert dashboard(address) == url


@pytest.mark.parametrize(
    "address", ["nowhere", "ray://host:10001", "http://host", "host:x", "host:70000", "http://h:1/path", ":1"]
)
def test_no_dashboards_address(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dashboard(address)
    rule = "must be host:port or http(s)://host:port of a dashboard"
    assert str(refused.value) == f"address: {rule}, got {address!r}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "out: must be an absolute path with --submit, as the cluster's nodes see it, got 'target'"),
        (
            "--out /o --data a/b.txt",
            "data: must be an absolute path with --submit, as the cluster's nodes see it, got 'a/b.txt'",
        ),
        ("--out /o --address auto", "address: must not be given together with submit"),
        ("--out /o --wheel recipe.json", "wheel: must be a .whl file, got 'recipe.json'"),
        ("--out /o --workers 3", "workers: must divide the 16 sequences of a batch, got 3"),
        ("--out /o --width 40", "width: must be a multiple of head_dim = 16, got 40"),
        ("--out /o --model absent:build", "build: no module 'absent' for 'absent:build'"),
    ],
)
def test_a_job_that_could_not_run_is_refused_before_it_is_sent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    save_recipe(tmp_path / "recipe.json", 0.03, 10)
    command = f"launch recipe.json --width 64 --out target --submit 127.0.0.1:1 {options}"
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    assert (stop.value.code, capsys.readouterr()) == (2, ("", f"widthwise: error: {message}\n"))


@pytest.mark.parametrize("option", ["insecure", "wheel recipe.json"])
def test_options_of_a_submission_need_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    save_recipe(tmp_path / "recipe.json", 0.03, 10)
    with pytest.raises(SystemExit) as stop:
        cli.main(["launch", str(tmp_path / "recipe.json"), "--width", "64", *f"--{option}".split()])
    name = option.partition(" ")[0]
    told = f"widthwise: error: {name}: needs --submit\n"
    assert (stop.value.code, capsys.readouterr()) == (2, ("", told))


COMPLETED, DIVERGED = {"status": "completed"}, {"status": "diverged"}


@pytest.mark.parametrize(
    ("status", "exit_status", "result", "verdict"),
    [
        ("SUCCEEDED", 0, COMPLETED, "completed"),
        ("SUCCEEDED", None, None, "failed"),  # cut short, whatever Ray says
        ("SUCCEEDED", 0, None, "failed"),
        ("FAILED", 1, DIVERGED, "diverged"),
        ("FAILED", 1, None, "failed"),
        ("FAILED", 2, COMPLETED, "failed"),  # refused, in the folder of another run
        ("STOPPED", None, None, "stopped"),
        ("STOPPED", 130, None, "stopped"),
        ("RUNNING", None, None, "running"),
        ("PENDING", None, None, "pending"),
    ],
)
def test_a_jobs_verdict_is_its_runs_own(
    status: str, exit_status: int | None, result: dict[str, Any] | None, verdict: str
) -> None:
    job = Job(id="x", status=status, out="/o", started=None, exit=exit_status, result=result)
    assert job.verdict == verdict


def ended(status: str, result: dict[str, Any] | None, *, exit_status: int | None = 1) -> Job:
    return Job(id="x", status=status, out="/o", started=None, exit=exit_status, result=result)


@pytest.mark.parametrize(
    ("status", "exit_status", "goes_on"),
    [("FAILED", 1, True), ("STOPPED", 130, True), ("FAILED", 2, False), ("RUNNING", None, False)],
)
def test_who_reads_of_a_job_that_can_go_on_is_told_how(
    status: str, exit_status: int | None, goes_on: bool
) -> None:
    told = "; go on with: widthwise resume x --address http://h:1" if goes_on else ""
    assert going_on(ended(status, None, exit_status=exit_status), "http://h:1") == told


STOPPED = {"status": "stopped", "steps": 40}


@pytest.mark.parametrize(
    ("job", "argv", "abort_on", "again"),
    [
        (ended("FAILED", None), ["launch", "--resume", "--keep=3"], None, ["launch", "--keep=3", "--resume"]),
        (ended("FAILED", STOPPED), ["--abort-on=alarm"], "nan", ["--abort-on=nan", "--resume"]),
        (ended("STOPPED", None), ["--abort-on=alarm"], None, ["--abort-on=alarm", "--resume"]),
        (ended("STOPPED", None), ["--seed=1"], "alarm", ["--seed=1", "--abort-on=alarm", "--resume"]),
    ],
)
def test_a_job_is_resumed_by_its_own_command(
    job: Job, argv: list[str], abort_on: str | None, again: list[str]
) -> None:
    assert resumed(job, argv, abort_on) == again


@pytest.mark.parametrize(
    ("job", "abort_on", "told"),
    [
        (ended("RUNNING", None), None, "must have ended before its run was completed, got running x"),
        (
            ended("SUCCEEDED", COMPLETED, exit_status=0),
            None,
            "must have ended before its run was completed, got completed x",
        ),
        *[
            (
                ended("FAILED", STOPPED),
                abort_on,
                "an alarm stopped the run of x at step 40, and would end it at once; "
                "go on with --abort-on divergence",
            )
            for abort_on in (None, "alarm")
        ],
        (ended("FAILED", {**DIVERGED, "steps": 7}), "nan", "the run of x diverged at step 7; launch another"),
    ],
)
def test_a_run_that_would_end_at_once_is_not_resumed(job: Job, abort_on: str | None, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resumed(job, ["--abort-on=alarm"], abort_on)
    assert str(raised.value) == f"job: {told}"


def test_jobs_are_listed_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [
        Job(id="widthwise-1", status="RUNNING", out="/a", started=1e9, exit=None, result=None),
        Job(id="widthwise-2", status="SUCCEEDED", out="/shared/b" * 12, started=None, exit=None, result=None),
    ]
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    whole_lines().print(jobs_table(jobs))
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if "widthwise" in line
    ]
    assert rows == [
        ["widthwise-1", "2001-09-09 01:46:40", "running", "running", "/a"],
        ["widthwise-2", "", "failed", "succeeded", "/shared/b" * 12],
    ]


def test_a_wheel_goes_before_what_the_cluster_has(tmp_path: Path) -> None:
    wheel = tmp_path / "widthwise-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        metadata = "Metadata-Version: 2.1\nName: widthwise\nVersion: 9.9.9\n"
        file.writestr("widthwise-9.9.9.dist-info/METADATA", metadata)
        file.writestr(
            "widthwise/transfer/cli.py", "def main(argv):\n    print('the wheel was given', argv)\n"
        )
    submission = Submission(argv=["launch"], out=str(tmp_path), files={}, wheel=wheel)
    with working_directory(submission) as folder:
        job = json.loads((folder / job_entry.JOB).read_text())
        (folder / job_entry.JOB).write_text(json.dumps(job | {"version": "9.9.9"}))
        done = subprocess.run(
            [sys.executable, ENTRY],
            cwd=folder,
            # As a cluster starts it, whose own package is installed and not on a path of an editor's.
            env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout.splitlines()[0] == "the wheel was given ['launch']", done.stderr


def test_a_job_goes_on_with_the_files_of_the_first(tmp_path: Path) -> None:
    out, model = tmp_path / "out", tmp_path / "package"
    model.mkdir()
    (model / "inner.py").write_text("here = 1\n")
    (tmp_path / "r.json").write_text("{}")
    for files, argv in (
        ({"recipe.json": tmp_path / "r.json", "package": model}, ["launch", "recipe.json"]),
        (None, ["launch", "recipe.json", "--resume"]),
    ):
        with working_directory(Submission(argv=argv, out=str(out), files=files)) as folder:
            done = subprocess.run(
                [sys.executable, ENTRY], cwd=folder, capture_output=True, text=True, check=False
            )
            assert (folder / "package" / "inner.py").read_text() == "here = 1\n"
        # The recipe was found, and is none.
        assert (done.returncode, done.stderr) == (2, "widthwise: error: width: is required\n")
        assert [path.name for path in out.iterdir()] == ["job.zip"]
    submission = Submission(argv=argv, out=str(tmp_path / "none"), files=None)
    with working_directory(submission) as folder:
        done = subprocess.run(
            [sys.executable, ENTRY], cwd=folder, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    told = f"widthwise: error: out: {tmp_path / 'none'} has no files to go on with ("
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


def test_a_cluster_with_another_version_is_told_and_trains_nothing(tmp_path: Path) -> None:
    shutil.copy2(job_entry.__file__, tmp_path / ENTRY)
    job = {"version": "0.0.0", "argv": ["launch"], "out": str(tmp_path)}
    (tmp_path / job_entry.JOB).write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, ENTRY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    found = job_entry.version("widthwise")
    told = f"the cluster must have widthwise 0.0.0, got {found}; install it on every node, or submit with --wheel"
    assert (done.returncode, done.stderr) == (2, f"widthwise: error: {told}\n")
    assert done.stdout == 'widthwise-job: {"exit": 2, "result": null}\n'
    assert visible(f"a\n{done.stdout}b\n") == "a\nb\n"
