"""One trial inside Ray Tune: a proxy trained in a folder of its own."""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from ray import tune

from widthwise.proxies.checkpoint import DamagedCheckpoint
from widthwise.proxies.files import full_folder, is_full, is_unwritable, temporary_folders
from widthwise.proxies.outcome import Metrics, RunOptions, TrainResult, course
from widthwise.proxies.runs import RunSpec, coordinate_deltas, device_options, run
from widthwise.proxies.validation import one_line

UNKEPT = "unkept"
"""Status of a trial whose checkpoint could not be written, through no fault of the trial: it can be gone on with."""

# At least, between two reports of a trial. Each costs the driver about 8 ms of a core, whatever it tells of.
SECONDS_BETWEEN_REPORTS = 1.0


def trainable(config: Mapping[str, Any]) -> None:
    """Run one trial: `config` holds ``spec`` (JSON), ``options`` of the run, ``folder`` and ``number``.

    Whatever goes wrong in the trial itself is reported as its outcome, so that an error that Tune sees
    is one of the infrastructure.
    """
    # Seconds that Tune waits for a trial that it has stopped before it takes the worker for broken; steps may be long.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "600"
    torch.set_num_threads(1)
    reports, outcome = Reports(), None
    with suppress(SystemExit):
        outcome = outcome_of(config, reports)
    # The worker goes on to another trial; meanwhile its neighbours may want the memory. What the trial held is gone by
    # now, stopped or not.
    torch.cuda.empty_cache()
    if outcome is None:
        sys.exit(0)
    reports.end(outcome)


class Reports:
    """Tells Tune of a trial that trains on meanwhile: the driver takes its time for every report.

    A report has all ``evaluations`` since the one before it, in order, and the last one has the outcome besides. A
    trial that Tune has ended leaves by a SystemExit, as it does from ``tune.report``.
    """

    def __init__(self) -> None:
        self._heard = Event()
        self._heard.set()
        self._next = time.monotonic()
        self._untold: list[dict[str, Any]] = []
        self._ended: SystemExit | Exception | None = None

    def tell(self, evaluation: Mapping[str, Any]) -> None:
        """Report an evaluation; with the next one where the last report is young, or has not been heard."""
        self.look()
        self._untold.append(dict(evaluation))
        if self._heard.is_set() and time.monotonic() >= self._next:
            self._send({"status": "running"})

    def end(self, outcome: Mapping[str, Any]) -> None:
        """Report the outcome, and wait until it has been heard."""
        self._wait()
        self._send(outcome)
        self._wait()

    def look(self) -> None:
        """Leave if Tune has ended the trial."""
        if isinstance(self._ended, SystemExit):
            # A new one: its traceback would keep the trial's model as long as this.
            sys.exit(0)
        if self._ended is not None:
            raise self._ended

    def _wait(self) -> None:
        self._heard.wait()
        self.look()

    def _send(self, report: Mapping[str, Any]) -> None:
        self._heard.clear()
        self._next = time.monotonic() + SECONDS_BETWEEN_REPORTS
        told = {**report, "evaluations": self._untold}
        self._untold = []
        # A daemon: a worker that is told to leave does not wait for the driver's answer.
        Thread(target=self._report, args=(told,), name="report", daemon=True).start()

    def _report(self, report: dict[str, Any]) -> None:
        try:
            tune.report(report)
        except (SystemExit, Exception) as error:
            self._ended = error
        finally:
            self._heard.set()


def outcome_of(config: Mapping[str, Any], reports: Reports) -> dict[str, Any]:
    """Train, telling of every evaluation, and return what is to be told of the end."""
    checkpoint = Path(config["folder"]) / "checkpoint.pt"
    chosen = dict(config["options"])
    follows = chosen.pop("coordinates", False)
    options = RunOptions(checkpoint=checkpoint, **chosen, **device_options())
    spec = RunSpec.model_validate_json(config["spec"])

    noted: dict[str, str] = {}

    def tell(metrics: Metrics) -> None:
        names = ("loss", "step", "tokens", "seconds")
        values = {name: getattr(metrics, name) for name in names}
        progress = metrics.step / spec.horizon.steps
        reports.tell({"progress": progress, **values, **noted})

    def trained() -> TrainResult:
        # Evaluations before the checkpoint may not have been heard of when the worker was killed.
        return run(spec, options, tell, on_resumed=tell, on_step=reports.look)

    try:
        try:
            result = trained()
        except DamagedCheckpoint as error:
            noted["error"] = f"{str(error).partition('; ')[0]}; begun anew"
            checkpoint.unlink()
            result = trained()
        deltas = coordinate_deltas(spec, options) if follows else None
    except Exception as error:
        told = {"status": "failed", "error": one_line(f"{type(error).__name__}: {error}")}
        out = str(checkpoint.parents[2])
        full = (full_folder([out, *temporary_folders()]) or out) if is_full(error) else None
        gone = isinstance(error, OSError) and not checkpoint.parents[1].exists()
        unkept = full or gone or is_unwritable(error)
        return told | {"status": UNKEPT, "full": full} if unkept else told
    return {
        **noted,
        "status": result.status,
        "loss": result.loss,
        "step": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        # Text, because Tune keeps statistics of every number in a report.
        "measured": json.dumps(_measured(result, deltas)),
    }


def _measured(result: TrainResult, deltas: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a run measured besides its loss: of the whole run, and of its last evaluation."""
    whole = {name: value for name, value in asdict(result).items() if name not in _TOLD}
    last = asdict(result.history[-1]) if result.history else {}
    measured = {name: value for name, value in (last | whole).items() if name not in _TOLD}
    besides = {"course": course(result.history), "coordinate_deltas": deltas}
    return measured | {name: value for name, value in besides.items() if value}


# What stands in a trial's outcome already, or is its learning curve.
_TOLD = {"status", "loss", "steps", "step", "tokens", "seconds", "history", "tokens_per_second", "lr_factor"}
