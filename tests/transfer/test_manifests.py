"""Slurm scripts and RayJobs: what a schedulers' parser and the CRD's field names say of them, and what they run."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from widthwise.proxies import GPTConfig
from widthwise.proxies.building import find_build
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.transfer import Recipe, cli
from widthwise.transfer.cli import _command
from widthwise.transfer.commands.launch import Launch

OPTIONS = (
    "--width 64 --tokens 20480 --decay-kinds matrix,readout --out /shared/my\\ run --workers 8 --nodes 2"
)


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tuned = Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0)
    horizon = Horizon(batch_tokens=1024, tokens=10240)
    Recipe(hyperparameters=tuned, proxy=GPTConfig(width=32, context=64), horizon=horizon).save("recipe.json")


def launch(capsys: pytest.CaptureFixture[str], options: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["launch", "recipe.json", *shlex.split(options)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def asked_for(command: str, recipe: str) -> None:
    """The command line, read by our own parser, asks for what `OPTIONS` do, on a cluster on the spot."""
    name, *argv = shlex.split(command)
    assert name == "widthwise"
    expected = {"width": 64, "tokens": 20480, "decay_kinds": "matrix,readout", "workers": "8"}
    found = _command(argv)
    given = Launch(recipe=Path(recipe), out=Path("/shared/my run"), address="auto", **expected)
    assert found == given


# As bash calls them: each program says what it was called with.
STUBS = """
scontrol() { printf 'node1\\nnode2\\n'; }
srun() { if [[ "$*" == *hostname* ]]; then echo "10.0.0.7 fd00::7"; else printf '%s\\n' "$@" > "$calls"; fi; }
"""


@pytest.mark.parametrize("status", ["completed", "diverged"])
def test_a_slurm_script_runs_and_goes_by_the_runs_own_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, status: str
) -> None:
    code, script, said = launch(capsys, f"{OPTIONS} --print slurm")
    assert (code, said) == (0, "")
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))
    assert directives == {
        "job-name": "widthwise",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "32",
        "exclusive": "",
        "requeue": "",
        "open-mode": "append",
    }
    command = re.search(r"^launch=\((.*)\)$", script, re.MULTILINE)
    assert command is not None
    asked_for(command[1], "recipe.json")

    out, calls = tmp_path / "my run", tmp_path / "calls"
    out.mkdir()
    (out / "result.json").write_text(f'{{\n  "status": "{status}"\n}}\n')
    script = script.replace("'/shared/my run'", shlex.quote(str(out)), 1).replace(
        "set -euo", f"{STUBS}set -euo"
    )
    for resumed in (False, True):
        if resumed:
            (out / "plan.json").touch()
        done = subprocess.run(
            ["bash", "-c", script],
            env={"PATH": "/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[1-2]", "calls": str(calls)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0, done.stderr) == (status == "completed", "")
        called = calls.read_text().splitlines()
        assert called[:3] == ["--nodes=2", "--ntasks=2", "ray"]
        ray = ["symmetric-run", "--address", "10.0.0.7:6379", "--min-nodes", "2", "--num-gpus=4", "--"]
        assert called[3:10] == ray
        assert called[10:12] == ["widthwise", "launch"]
        assert ("--resume" in called) == resumed


def test_a_rayjob_has_the_fields_of_its_definition(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, said = launch(capsys, f"{OPTIONS} --print kuberay --image registry/widthwise:1 --claim disk")
    assert (code, said) == (0, "")
    recipe, job = yaml.safe_load_all(text)
    assert "&" not in text
    assert recipe["kind"] == "ConfigMap"
    assert recipe["data"] == {"recipe.json": Path("recipe.json").read_text()}
    assert {name: job[name] for name in ("apiVersion", "kind")} == {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
    }
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec.keys() == {"entrypoint", "shutdownAfterJobFinishes", "backoffLimit", "rayClusterSpec"}
    assert cluster.keys() == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert (cluster["rayVersion"], cluster["authOptions"]) == (version("ray"), {"mode": "token"})
    asked_for(spec["entrypoint"], "/etc/widthwise/recipe.json")
    [workers] = cluster["workerGroupSpecs"]
    assert [workers[f"{name}eplicas"] for name in ("r", "minR", "maxR")] == [2, 2, 2]
    [container] = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "32", "nvidia.com/gpu": "4"}
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    pod = cluster["headGroupSpec"]["template"]["spec"]
    assert pod["volumes"] == [
        {"name": "shared", "persistentVolumeClaim": {"claimName": "disk"}},
        {"name": "recipe", "configMap": {"name": recipe["metadata"]["name"]}},
    ]
    assert pod["containers"][0]["volumeMounts"][1]["mountPath"] == "/etc/widthwise"
    assert pod["containers"][0]["image"] == "registry/widthwise:1"


MODEL = """
from torch import nn

def build(width):
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 256))
"""


@pytest.mark.parametrize("reference", ["printed_model:build", "printed_package.inner:build"])
def test_a_rayjob_carries_ones_own_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: str
) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    module = Path(*reference.partition(":")[0].split(".")).with_suffix(".py")
    module.parent.mkdir(exist_ok=True)
    module.write_text(MODEL)
    options = f"{OPTIONS} --print kuberay --image i --claim disk --model {reference}"
    code, text, said = launch(capsys, options)
    assert (code, said) == (0, "")
    recipe, job = yaml.safe_load_all(text)
    # As the kubelet mounts it, and as Ray's agent runs the entry point.
    volume = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"][1]["configMap"]
    items = volume.get("items", [{"key": key, "path": key} for key in recipe["data"]])
    mounted = tmp_path / "mounted"
    for item in items:
        assert re.fullmatch(r"[-._a-zA-Z0-9]+", item["key"])
        (mounted / item["path"]).parent.mkdir(parents=True, exist_ok=True)
        (mounted / item["path"]).write_text(recipe["data"][item["key"]])
    there, _, command = job["spec"]["entrypoint"].partition(" && ")
    assert there == "cd /etc/widthwise"
    monkeypatch.chdir(mounted)
    found = _command(shlex.split(command)[1:])
    assert isinstance(found, Launch)
    assert (found.model, found.recipe) == (reference, Path("/etc/widthwise/recipe.json"))
    assert find_build(reference, mounted)(32)[0].weight.shape == (256, 32)
    assert Path(module).read_text() == MODEL


def test_an_elastic_run_outlives_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    elastic = OPTIONS.replace("--workers 8", "--workers 3-8")
    code, text, _ = launch(capsys, f"{elastic} --print kuberay --image registry/widthwise:1 --claim disk")
    [workers] = list(yaml.safe_load_all(text))[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (code, [workers[f"{name}eplicas"] for name in ("r", "minR", "maxR")]) == (0, [2, 1, 2])
    code, script, _ = launch(capsys, f"{elastic} --print slurm")
    assert (code, script.count("--workers=3-8"), script.count("#SBATCH --no-kill\n")) == (0, 1, 1)
    assert "srun --no-kill --nodes=2 --ntasks=2 " in script
    assert "no-kill" not in launch(capsys, f"{OPTIONS} --print slurm")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--print slurm",
            "out: must be an absolute path with --print, as the cluster's nodes see it, got 'widthwise-target'",
        ),
        (
            "--print slurm --out /o --workers 4 --nodes 3",
            "nodes: must be >= 1 and divide the 4 workers, got 3",
        ),
        ("--print slurm --out /o --workers 3", "workers: must divide the 16 sequences of a batch, got 3"),
        ("--print kuberay --out /o/t", "image: is required with --print kuberay"),
        ("--print kuberay --out /o/t --image i", "claim: is required with --print kuberay"),
        (
            "--print kuberay --out /o --image i --claim c",
            "out: must lie in a folder below /, where the volume is mounted, got '/o'",
        ),
        ("--image i", "image: needs --print"),
        ("--print slurm --out /o/t --image i", "image: needs --print kuberay, got slurm"),
        ("--print slurm --out /o/t --claim c", "claim: needs --print kuberay, got slurm"),
        ("--print pbs", "print: must be one of none, slurm, kuberay, got 'pbs'"),
    ],
)
def test_what_cannot_be_scheduled_is_one_line(
    capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert launch(capsys, f"--width 64 {options}") == (2, "", f"widthwise: error: {message}\n")
