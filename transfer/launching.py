"""The target run: a plan trained zero-shot through Ray Train, restartable from its last checkpoint.

The folder is the truth: the workers write ``checkpoints/`` while they train, and rank 0 ``metrics.jsonl`` and,
at the end, ``result.json``, each whole or not at all. A worker that dies is started again by Ray Train and
resumes from the last checkpoint; where the driver dies, the same command with ``--resume`` goes on, with any
number of workers.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from widthwise.proxies.data import absolute_source, open_tokens
from widthwise.proxies.files import locked, read_json, write_json
from widthwise.proxies.pulse import PULSE
from widthwise.proxies.storage import Place, place
from widthwise.proxies.validation import ConfigError, RunError, first_line
from widthwise.search.cluster import ray_session, require_ray
from widthwise.transfer.failures import last_checkpoint, room_for
from widthwise.transfer.following import following
from widthwise.transfer.launch_options import LaunchOptions, require_possible
from widthwise.transfer.losing import ended_where_lost, lost
from widthwise.transfer.plan import Plan
from widthwise.transfer.plan_notes import cautions
from widthwise.transfer.run_folder import require_folder
from widthwise.transfer.waiting import living_nodes, waiting_told
from widthwise.transfer.watching.beginning import left_out, watch_for
from widthwise.transfer.watching.records import Watch

if TYPE_CHECKING:
    from widthwise.proxies.building import OwnModel
    from widthwise.proxies.runs import RunSpec

SECONDS_BETWEEN_RESIZES = 10.0
"""Between Ray Train's looks whether a run that is short of workers can have more."""


def launch(
    plan: Plan,
    out: str | Place,
    options: LaunchOptions | None = None,
    *,
    resume: bool = False,
    address: str | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Train a plan's target.

    Args:
        plan: what to train; `Recipe.at` makes it.
        out: folder for the run's files that all nodes share: a path, or a URI that pyarrow or fsspec knows, such as
            ``s3://bucket/run``.
        options: how to run.
        resume: go on from the checkpoint in `out`.
        address: a Ray cluster's ``host:port`` or ``auto``; None starts a local Ray.
        show_progress: draw a progress bar on standard error.

    Returns:
        What ``result.json`` holds: ``status`` (``completed``, ``diverged``, or ``stopped`` by an alarm), ``loss``
        (validation, nats per token, None where it diverged), ``steps``, ``tokens``, ``seconds``, ``parameters``,
        ``flops`` (of the training steps), ``rule``, ``width``; and ``alarms`` where the run was watched, the first
        of each quantity and kind.

    Raises:
        ConfigError: for a user's mistake, before anything is written.
        RunError: a worker's own code failed, the disk is full, or workers kept dying; the last checkpoint remains.
    """
    options = options or LaunchOptions()
    out = place(out)
    out = out.resolve() if isinstance(out, Path) else out
    fingerprint = _require_data(plan, options, require_possible(plan, options))
    if address is not None:
        require_ray(address)
    own = _own(plan, options)
    watch = watch_for(plan, options, fingerprint)
    options = options.model_copy(update={"data": absolute_source(options.data)})
    document = {**plan.document(), **options.model_dump(mode="json", include=_DECIDING)}
    document["data_fingerprint"] = fingerprint
    if own is not None:
        document["own_model"] = own.identity()
    require_folder(out, document, resume=resume)
    if _has_ended(out, options):
        return read_json(out / "result.json", "a result")
    if show_progress:
        for line in (*cautions(plan), *left_out(watch, options)):
            print(f"widthwise: {line}", file=sys.stderr)
    if own is not None and show_progress:
        from widthwise.transfer.own_model import asked

        print(f"widthwise: {own.build}: {asked(plan)}", file=sys.stderr)
    with (
        room_for(out),
        locked(out),
        following(
            out,
            plan.horizon.steps,
            begun=_begun(plan, out, options),
            done=last_checkpoint(out) or 0 if resume else None,
            enabled=show_progress,
        ) as say,
        ray_session(
            address,
            cpus=max(_cores(), options.workers),
            modules=own.sources() if own and address is not None else (),
        ) as ray,
        _interruptible(),
    ):
        nodes = None if address is None else partial(living_nodes, ray)
        resources = _resources(ray.cluster_resources(), options, local=address is None)
        write_json(out / "plan.json", document)
        plan.recipe.save(out / "recipe.json")
        (out / "result.json").unlink(missing_ok=True)
        if watch is None:
            # Of a run that was watched until now: what is still to come is compared with nothing.
            (out / "bands.json").unlink(missing_ok=True)
        else:
            write_json(out / "bands.json", watch.model_dump(mode="json", by_alias=True))
        with (
            ended_where_lost(partial(lost, out)),
            waiting_told(out, resources, options.fewest, nodes, say),
        ):
            _train(_spec(plan, options, own), plan.rule, out, options, resources, watch)
        (out / PULSE).unlink(missing_ok=True)
    return read_json(out / "result.json", "a result")


# What a resumed run must share with the one that it goes on with, besides the plan.
_DECIDING = {"data", "seed", "module_decay"}


def _own(plan: Plan, options: LaunchOptions) -> "OwnModel | None":
    if options.model is None:
        return None
    from widthwise.transfer.own_model import own_model

    return own_model(plan, options.model, options.overrides, options.transposed)


def _require_data(plan: Plan, options: LaunchOptions, sequences: int) -> str:
    """Raise what the workers would say of the data here, where it costs nothing; return their fingerprint."""
    tokens = open_tokens(options.data, vocab_size=plan.model.vocab_size)
    tokens.require(plan.model.context, sequences)
    return tokens.fingerprint


def _has_ended(out: Place, options: LaunchOptions) -> bool:
    """Return whether there is nothing to go on with; where an alarm ended a run, another `abort_on` goes on."""
    path = out / "result.json"
    if not path.exists():
        return False
    return options.abort_on == "alarm" or read_json(path, "a result").get("status") != "stopped"


def _begun(plan: Plan, out: Place, options: LaunchOptions) -> str:
    """Return what is said when a run begins."""
    fewest, most, steps = options.fewest, options.workers, plan.horizon.steps
    workers = f"{most} worker{'s' if most > 1 else ''}" if fewest == most else f"{fewest} to {most} workers"
    run = f"{steps:,} steps of {plan.horizon.batch_tokens:,} tokens on {workers}, in {out}"
    return f"target of width {plan.model.width}, rule {plan.rule}: {run}"


def _resources(cluster: Mapping[str, float], options: LaunchOptions, *, local: bool) -> dict[str, int]:
    """Return what each worker gets: a GPU where there are any, and the cores of a local machine.

    Raises:
        ConfigError: there is not enough; Ray would wait for more nodes, without a word and without an end.
    """
    for name in ("GPU", "CPU"):
        there = cluster.get(name, 0)
        if options.fewest > there and (there or name == "CPU"):
            raise ConfigError(f"workers: must be <= the {there:g} {name}s that Ray has, got {options.fewest}")
    return {"CPU": max(1, _cores() // options.workers) if local else 1, "GPU": int("GPU" in cluster)}


def _scaling(options: LaunchOptions, resources: dict[str, int]) -> Any:
    """Return what Ray Train is to start: a number of workers, or between the fewest and the most."""
    from ray import train

    elastic = options.fewest < options.workers
    config: Any = train.ScalingConfig  # whose types are those of another version of Ray Train
    return config(
        num_workers=(options.fewest, options.workers) if elastic else options.workers,
        elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
        use_gpu=bool(resources["GPU"]),
        resources_per_worker=resources,
    )


def _cores() -> int:
    return os.cpu_count() or 1


def _train(
    spec: "RunSpec",
    rule: str,
    out: Place,
    options: LaunchOptions,
    resources: dict[str, int],
    watch: Watch | None,
) -> None:
    """Run Ray Train until the run has ended, well or badly."""
    from ray import train
    from ray.train.torch import TorchTrainer

    from widthwise.transfer.restarts import Restarts
    from widthwise.transfer.worker import train_worker

    # Of this machine where there is no file system: what Ray Train keeps there is for this run alone.
    scratch = out / ".ray" if isinstance(out, Path) else Path(tempfile.mkdtemp(prefix="ww-"))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "spec": spec.model_dump_json(),
            "out": str(out),
            "options": _run_options(options, watch, out),
            "watch": None if watch is None else watch.model_dump_json(by_alias=True),
            "abort_on_alarm": options.abort_on == "alarm",
            "peak_tflops": options.peak_tflops,
            "workers": options.workers,
            "threads": resources["CPU"],
            "outcome": {"rule": rule, "width": spec.model.width},
        },
        scaling_config=_scaling(options, resources),
        run_config=train.RunConfig(
            storage_path=str(scratch),
            failure_config=train.FailureConfig(max_failures=-1),
            callbacks=[cast(Any, Restarts(out))],
        ),
    )
    try:
        trainer.fit()
    except train.TrainingFailedError as error:
        cause = getattr(error, "controller_failure", error)
        if isinstance(cause, RunError):
            raise cause from None
        raise RunError(f"{type(cause).__name__}: {first_line(cause)}; go on with --resume") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_RUN_OPTIONS = {
    "seed",
    "compile",
    "diagnostics",
    "evaluations",
    "validation_batches",
    "checkpoint_every",
    "parallel",
    "accumulate",
    "recompute",
    "keep",
    "abort_on",
}


def _run_options(options: LaunchOptions, watch: Watch | None, out: Place) -> dict[str, Any]:
    """Return what each worker is told; a watched run measures what it is watched by."""
    chosen = options.model_dump(include=_RUN_OPTIONS)
    measures = watch is not None and bool(watch.bands)
    return {
        **chosen,
        "pulse": str(out / PULSE),
        "diagnostics": options.diagnostics or measures,
        # A run that diverges is ended by an alarm's options too.
        "abort_on": "divergence" if options.abort_on == "alarm" else options.abort_on,
    }


def _spec(plan: Plan, options: LaunchOptions, own: "OwnModel | None" = None) -> "RunSpec":
    from widthwise.proxies.runs import RunSpec

    return RunSpec(
        model=plan.model,
        base_width=plan.recipe.proxy.width,
        horizon=plan.horizon,
        hyperparameters=plan.hyperparameters,
        settings={kind: plan.settings(kind) for kind in plan.kinds},
        data=options.data,
        module_decay=options.module_decay,
        own=own,
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ray Train's own end on Ctrl-C, an exit with status 0, into a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
