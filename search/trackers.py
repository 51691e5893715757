"""Experiment trackers: TensorBoard, Weights & Biases and MLflow, each told a trial's settings and its loss by tokens.

A run can be begun again, under the same name and with everything that is known of it: each tracker then holds every
point once, whatever was lost or written twice when a sweep was killed. Ray's own callbacks are not used: they name
runs by Tune's trials, which a resumed sweep has anew, count iterations instead of tokens, and write what Ray measures
of itself (docs/results/search/trackers.md).
"""

import os
import shutil
import time
import weakref
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from widthwise.proxies.validation import ConfigError

Tracker = Literal["tensorboard", "wandb", "mlflow"]
Settings = Mapping[str, str | int | float]

PROJECT = "widthwise"
TAG = "widthwise.run"


class Run(Protocol):
    """A trial's run in a tracker."""

    def point(self, tokens: int, loss: float) -> None:
        """Add a validation loss, in nats per token, after so many tokens."""

    def end(self, status: str | None) -> None:
        """Put the run away; None where the trial has not ended."""


Begin = Callable[[str, Settings], Run]
"""Begins a run of a name with a trial's settings, or begins it again; all its points follow."""


class TensorBoardRun:
    """An event file in a folder of the run's name, with the settings for TensorBoard's table (HParams)."""

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        shutil.rmtree(folder, ignore_errors=True)
        # And none above: a sweep or a run that was moved away is not begun anew.
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir()
        # The writer below SummaryWriter: that one has a thread and a queue, which a kill empties.
        self.events = EventsWriter(str(folder / "events"))
        self.close = weakref.finalize(self, self.events.close)
        self.ending: Any = None
        if settings is not None:
            self._begin(settings)

    def point(self, tokens: int, loss: float) -> None:
        self.scalars(tokens, {"loss": loss})

    def scalars(self, tokens: int, values: Mapping[str, float]) -> None:
        """Add values by their names, after so many tokens."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(scalar(name, value), tokens)

    def end(self, status: str | None) -> None:
        if status is not None and self.ending is not None:
            self._write(self.ending)
        self.close()

    def _begin(self, settings: Settings) -> None:
        from tensorboardX.summary import hparams

        head, start, self.ending = hparams(dict(settings), {"loss": None})
        self._write(head)
        self._write(start)

    def _write(self, summary: Any, step: int = 0) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self.events.flush()


class WandbRun:
    """A run of Weights & Biases, online or as ``WANDB_MODE`` says; project ``WANDB_PROJECT``, or widthwise."""

    def __init__(self, out: Path, sweep: str, name: str, settings: Settings) -> None:
        import wandb

        identity = f"{sweep}-{name}"
        # Offline, what a killed process left would be a second history of the same run.
        for left in (out / "wandb").glob(f"offline-run-*-{identity}"):
            shutil.rmtree(left)
        quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=out.resolve().name,
            id=identity,
            name=name,
            config=dict(settings),
            dir=out,
            reinit="create_new",
            resume="allow",
            settings=quiet,
        )
        self.run.define_metric("loss", step_metric="tokens")
        self.behind = self.run.step if self.run.resumed else 0

    def point(self, tokens: int, loss: float) -> None:
        # The server keeps what it has, and takes steps in their order alone.
        if tokens >= self.behind:
            self.run.log({"tokens": tokens, "loss": loss}, step=tokens)

    def end(self, status: str | None) -> None:
        if status is not None:
            self.run.summary["status"] = status
        self.run.finish(exit_code=int(status in (None, "failed")))


class MlflowRun:
    """A run in MLflow's store, ``MLFLOW_TRACKING_URI`` or the sweep's own ``mlflow.db``."""

    def __init__(self, client: Any, experiment: str, identity: str, name: str, settings: Settings) -> None:
        from mlflow.entities import Param

        self.client = client
        known = client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{identity}'", max_results=1)
        run = known[0] if known else client.create_run(experiment, run_name=name, tags={TAG: identity})
        self.id = run.info.run_id
        self.told = {metric.step for metric in client.get_metric_history(self.id, "loss")} if known else set()
        client.log_batch(self.id, params=[Param(name, str(value)) for name, value in settings.items()])

    def point(self, tokens: int, loss: float) -> None:
        if tokens not in self.told:
            self.client.log_metric(self.id, "loss", loss, step=tokens)

    def end(self, status: str | None) -> None:
        if status is not None:
            self.client.set_tag(self.id, "status", status)
            self.client.set_terminated(self.id, "FAILED" if status == "failed" else "FINISHED")


def require_trackers(trackers: tuple[Tracker, ...]) -> None:
    """Raise a ConfigError where a tracker's package is not installed, or it would ask who we are."""
    packages = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
    for tracker in trackers:
        if find_spec(packages[tracker]) is None:
            raise ConfigError(f"log: {tracker} needs its package: pip install {packages[tracker]}")
    if "wandb" in trackers:
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ConfigError("log: wandb needs a key: run `wandb login`, or set WANDB_MODE=offline")


def begin_with(tracker: Tracker, out: Path, sweep: str) -> Begin:
    """Return what begins runs in a tracker.

    Args:
        tracker: which one.
        out: the sweep's folder; TensorBoard's files go to its folder ``tensorboard``.
        sweep: distinguishes the sweep from others that a server knows.
    """
    if tracker == "tensorboard":
        return lambda name, settings: TensorBoardRun(out / "tensorboard" / name, settings)
    if tracker == "wandb":
        return lambda name, settings: WandbRun(out, sweep, name, settings)
    client, experiment = _mlflow(out)
    return lambda name, settings: MlflowRun(client, experiment, f"{sweep}/{name}", name, settings)


def _mlflow(out: Path) -> tuple[Any, str]:
    """Return MLflow's client and its experiment ``MLFLOW_EXPERIMENT_NAME``, or widthwise."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{out.resolve() / 'mlflow.db'}"))
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    return client, known.experiment_id if known else client.create_experiment(name)
