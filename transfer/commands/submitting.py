"""``widthwise launch --submit``: the same command as a Ray job on the cluster itself."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from widthwise.proxies.references import local_source
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.commands.options import overrides, worker_range

if TYPE_CHECKING:
    from widthwise.transfer.commands.launch import Launch
    from widthwise.transfer.plan import Plan


def as_argv(command: Any, *, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Return the options of a command that are not its defaults.

    Args:
        command: the dataclass; flags are the fields that are True or False, a tuple's option is repeated.
        leave_out: fields that are not repeated.
    """
    argv: list[str] = []
    for field in fields(command):
        value = getattr(command, field.name)
        if field.name in leave_out or (field.default is not MISSING and value == field.default):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        several = value if isinstance(value, tuple) else (value,)
        argv += [flag] if value is True else [f"{flag}={one}" for one in several]
    return argv


def _on_the_spot(command: "Launch", recipe: str) -> list[str]:
    """Return the command line that does on the cluster what `command` asks for."""
    return ["launch", recipe, *as_argv(command, leave_out=_HERE), "--address=auto"]


def _require_clusters_paths(command: "Launch") -> None:
    """Raise a ConfigError unless folder and data are where every node finds them."""
    data = None if command.data == "python" else command.data
    out = str(command.out) if isinstance(command.out, Path) else None
    if command.print != "none" and out is None:
        raise ConfigError(f"out: must be a path with --print, got {str(command.out)!r}")
    for name, path in (("out", out), ("data", data)):
        if path is not None and not Path(path).is_absolute():
            where = "--submit" if command.print == "none" else "--print"
            raise ConfigError(
                f"{name}: must be an absolute path with {where}, as the cluster's nodes see it, got {path!r}"
            )


# What says where the job goes and how this end of it speaks: not the job's own.
_HERE = ("recipe", "submit", "insecure", "wheel", "json", "address", "print", "image", "claim", "nodes")


def submit(command: "Launch", plan: "Plan", dashboard: str) -> dict[str, str]:
    """Send a launch to a cluster, having looked here at all that can be looked at here.

    Returns:
        ``job``, its id; ``address``, the dashboard's URL; ``out``, the run's folder.

    Raises:
        ConfigError: a path that the cluster's nodes would not find, a model that cannot be built, a
            missing wheel, or a cluster that is not there, is open to anyone or asks for a token.
    """
    from widthwise.transfer.jobs import Cluster
    from widthwise.transfer.submission import Submission

    if command.address is not None:
        raise ConfigError("address: must not be given together with submit")
    _require_clusters_paths(command)
    require_wheel(command.wheel)
    files = {"recipe.json": command.recipe} | {path.name: path for path in _own_files(command, plan)}
    cluster = Cluster(dashboard, insecure=command.insecure)
    argv = _on_the_spot(command, "recipe.json")
    submission = Submission(argv=argv, out=str(command.out), files=files, wheel=command.wheel)
    return {"job": cluster.submit(submission), "address": cluster.address, "out": str(command.out)}


def require_wheel(wheel: Path | None) -> None:
    """Raise a ConfigError where a wheel is named that is none."""
    if wheel is not None and not is_zipfile(wheel):
        raise ConfigError(f"wheel: must be a .whl file, got {str(wheel)!r}")


def _own_files(command: "Launch", plan: "Plan") -> list[Path]:
    """Return what holds the user's own rule and model."""
    found = local_source(plan.rule, Path.cwd()) if ":" in plan.rule else []
    if command.model is not None:
        from widthwise.transfer.own_model import own_model

        own = own_model(plan, command.model, overrides(command.override), command.transposed)
        found += [Path(source) for source in own.sources()]
    return found


def _contents(sources: list[Path]) -> dict[str, str]:
    """Return the Python files of modules, by their paths beside each other."""
    found = [one for source in sources for one in ([source] if source.is_file() else source.rglob("*.py"))]
    return {str(one.relative_to(Path.cwd())): one.read_text(encoding="utf-8") for one in sorted(found)}


def manifest(command: "Launch", plan: "Plan") -> str:
    """Return what ``--print`` prints.

    Raises:
        ConfigError: a path that the nodes would not find, or an option that is missing.
    """
    from widthwise.transfer.manifests import MOUNTED_RECIPE, Job, ray_job, slurm_script

    _require_clusters_paths(command)
    fewest, most = worker_range(command.workers)
    slurm = command.print == "slurm"
    job = Job(
        argv=_on_the_spot(command, str(command.recipe) if slurm else MOUNTED_RECIPE),
        recipe=command.recipe.read_text(encoding="utf-8"),
        files={} if slurm else _contents(_own_files(command, plan)),
        out=str(command.out),
        workers=most,
        fewest=most if fewest is None else fewest,
        nodes=command.nodes,
    )
    if slurm:
        for name in ("image", "claim"):
            if getattr(command, name) is not None:
                raise ConfigError(f"{name}: needs --print kuberay, got slurm")
        return slurm_script(job)
    for name in ("image", "claim"):
        if getattr(command, name) is None:
            raise ConfigError(f"{name}: is required with --print kuberay")
    return ray_job(job, image=str(command.image), claim=str(command.claim))
