"""One trial of a sweep inside Ray Tune: a proxy trained in a folder of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune

from widthwise.proxies.checkpoint import DamagedCheckpoint
from widthwise.proxies.outcome import Metrics, RunOptions
from widthwise.proxies.runs import RunSpec, device_options, run


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
            result = run(spec, options, _report)
        except DamagedCheckpoint:
            checkpoint.unlink()
            result = run(spec, options, _report)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        tune.report({"status": "failed", "error": reason})
        return
    outcome = {"status": result.status, "loss": result.loss, "step": result.steps}
    tune.report({**outcome, "tokens": result.tokens, "seconds": result.seconds})


def _report(metrics: Metrics) -> None:
    names = ("loss", "step", "tokens", "seconds")
    tune.report({"status": "running", **{name: getattr(metrics, name) for name in names}})
