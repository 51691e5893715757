"""One trial inside Ray Tune: a proxy trained in a folder of its own."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune

from widthwise.proxies.checkpoint import DamagedCheckpoint
from widthwise.proxies.outcome import Metrics, RunOptions, TrainResult, course
from widthwise.proxies.runs import RunSpec, device_options, run
from widthwise.proxies.validation import one_line


def trainable(config: Mapping[str, Any]) -> None:
    """Run one trial: `config` holds ``spec`` (JSON), ``options`` of the run, ``folder`` and ``number``.

    Whatever goes wrong in the trial itself is reported as its outcome, so that an error that Tune sees
    is one of the infrastructure.
    """
    torch.set_num_threads(1)
    checkpoint = Path(config["folder"]) / "checkpoint.pt"
    options = RunOptions(checkpoint=checkpoint, **config["options"], **device_options())
    spec = RunSpec.model_validate_json(config["spec"])
    try:
        try:
            result = run(spec, options, _reporting(spec))
        except DamagedCheckpoint:
            checkpoint.unlink()
            result = run(spec, options, _reporting(spec))
    except Exception as error:
        tune.report({"status": "failed", "error": one_line(f"{type(error).__name__}: {error}")})
        return
    finally:
        # The worker goes on to another trial; meanwhile its neighbours may want the memory.
        torch.cuda.empty_cache()
    outcome = {"status": result.status, "loss": result.loss, "step": result.steps}
    # Text, because Tune keeps statistics of every number in a report.
    measured = json.dumps(_measured(result))
    tune.report({**outcome, "tokens": result.tokens, "seconds": result.seconds, "measured": measured})


def _reporting(spec: RunSpec) -> Callable[[Metrics], None]:
    """Return what reports a run's evaluations to Tune."""

    def report(metrics: Metrics) -> None:
        names = ("loss", "step", "tokens", "seconds")
        values = {name: getattr(metrics, name) for name in names}
        tune.report({"status": "running", "progress": metrics.step / spec.horizon.steps, **values})

    return report


def _measured(result: TrainResult) -> dict[str, Any]:
    """Return what a run measured besides its loss: of the whole run, and of its last evaluation."""
    whole = {name: value for name, value in asdict(result).items() if name not in _TOLD}
    last = asdict(result.history[-1]) if result.history else {}
    over_time = {"course": found} if (found := course(result.history)) else {}
    return {name: value for name, value in (last | whole | over_time).items() if name not in _TOLD}


# What stands in a trial's outcome already, or is its learning curve.
_TOLD = {"status", "loss", "steps", "step", "tokens", "seconds", "history", "tokens_per_second", "lr_factor"}
