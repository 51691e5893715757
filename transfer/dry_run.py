"""What a target run will be and cost, worked out before it costs anything: ``widthwise launch --dry-run``.

Memory is that of mixed precision as `launch` trains on GPUs: weights, gradients and AdamHC's two moments in
fp32, the passes under bf16 autocast.
"""

import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from widthwise.proxies.footprint import Footprint
from widthwise.proxies.table import ParameterTable
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.launch_options import LaunchOptions, passes, require_possible
from widthwise.transfer.own_model import asked, build_of, table_of, trace
from widthwise.transfer.plan import Plan

if TYPE_CHECKING:
    from rich.table import Table

FP32, BF16 = 4, 2
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """How fast the run is taken to be; at most one of them is given.

    Attributes:
        tflops_per_worker: 10¹² floating-point operations that a worker does per second, as model FLOPs:
            a GPU's peak times the utilisation (MFU) that one expects.
        tokens_per_second: tokens that all workers together train on per second.
    """

    tflops_per_worker: float | None = None
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise ConfigError(f"{name}: must be > 0, got {value:g}")
        if None not in asdict(self).values():
            raise ConfigError("tokens_per_second: must not be given together with tflops_per_worker")

    def seconds(self, *, flops: float, tokens: int, workers: int) -> float | None:
        """Return how long the training steps take, or None where no speed was given."""
        if self.tokens_per_second is not None:
            return tokens / self.tokens_per_second
        if self.tflops_per_worker is not None:
            return flops / (workers * self.tflops_per_worker * 1e12)
        return None


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A target run on paper; `dry_run` works it out.

    Attributes:
        plan: what is trained.
        table: every parameter's kind.
        step: the cost of a training step.
        options: how it runs: workers, parallelism, passes, recomputation.
        nodes: machines that the workers are spread over.
        throughput: how fast they are taken to be.
    """

    plan: Plan
    table: ParameterTable
    step: Footprint
    options: LaunchOptions
    nodes: int
    throughput: Throughput

    @property
    def workers(self) -> int:
        """Workers that share every batch."""
        return self.options.workers

    @property
    def shards(self) -> int:
        """Workers that hold the states together; 1 where each has all of them."""
        return {"ddp": 1, "fsdp": self.workers, "hsdp": self.workers // self.nodes}[self.options.parallel]

    @property
    def sequences(self) -> int:
        """Sequences that a worker takes through a pass."""
        sequences = self.plan.horizon.sequences(self.plan.model.context)
        return ceil(ceil(sequences / self.workers) / self.options.accumulate)

    @property
    def tokens(self) -> int:
        """Tokens that the run trains on: whole steps."""
        return self.plan.horizon.steps * self.plan.horizon.batch_tokens

    @property
    def memory(self) -> dict[str, int]:
        """Bytes per worker, by what holds them."""
        step, whole = self.step, self.options.parallel == "ddp"
        # Shards are padded to one size.
        weights = FP32 * ceil(step.parameters / self.shards)
        copies = step.fixed_bytes if whole else 0
        return {
            "weights": weights,
            "gradients": weights,
            "moments": 2 * weights,
            # DDP copies gradients into the buckets that it sends; FSDP2 gathers weights in bf16.
            "buckets": weights if whole and self.workers > 1 else 0,
            "gathered": 0 if whole else BF16 * step.gathered,
            "activations": copies + self.sequences * step.sequence_bytes,
        }

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: weights and both moments."""
        return 3 * FP32 * self.step.parameters

    def as_json(self) -> dict[str, Any]:
        """Return the document that ``widthwise launch --dry-run --json`` prints."""
        flops, tokens = self.step.flops_per_token * self.tokens, self.tokens
        seconds = self.throughput.seconds(flops=flops, tokens=tokens, workers=self.workers)
        return {
            "plan": self.plan.document(),
            "mesh": {
                "parallel": self.options.parallel,
                "nodes": self.nodes,
                "workers": self.workers,
                "min_workers": self.options.fewest,
                "shards": self.shards,
                "replicas": self.workers // self.shards,
                "passes": self.options.accumulate,
                "sequences_per_pass": self.sequences,
                "recompute": self.options.recompute,
            },
            "parameters": self.step.parameters,
            "memory_per_worker": {**self.memory, "total": sum(self.memory.values())},
            "checkpoint_bytes": self.checkpoint_bytes,
            "flops_per_token": self.step.flops_per_token,
            "flops": flops,
            "tokens": tokens,
            "steps": self.plan.horizon.steps,
            "throughput": asdict(self.throughput),
            "hours": None if seconds is None else seconds / 3600,
            "table": {name: self._row(name) for name in self.table},
        }

    def _row(self, name: str) -> dict[str, Any]:
        entry = self.table[name]
        settings = self.plan.settings(entry.kind, entry.width_multiplier)
        return {**entry.model_dump(), "size": self.step.sizes[name], **settings.model_dump()}

    def costs(self) -> "Table":
        """Return what the run costs, as a table for a terminal."""
        from rich.table import Table

        table = Table("what", "how much", title="the run, before it is started")
        for row in self._costs():
            table.add_row(*row)
        return table

    def _costs(self) -> list[tuple[str, str]]:
        document, memory = self.as_json(), self.memory
        hours = document["hours"]
        return [
            ("workers", self._mesh()),
            ("parameters", f"{self.step.parameters:,}"),
            *((f"memory per worker: {name}", _bytes(size)) for name, size in memory.items() if size),
            ("memory per worker, in all", _bytes(sum(memory.values()))),
            ("checkpoint", _bytes(self.checkpoint_bytes)),
            ("steps, tokens", f"{document['steps']:,}, {self.tokens:,}"),
            ("FLOPs", f"{document['flops']:.4g} ({self.step.flops_per_token:.4g} per token)"),
            ("time", self._speed() if hours is None else f"{hours:,.1f} hours {self._speed()}"),
        ]

    def _mesh(self) -> str:
        options, context = self.options, self.plan.model.context
        mesh = f"{self.workers} on {self.nodes} node(s), {options.parallel}"
        if self.shards > 1:
            mesh += f": {self.workers // self.shards} replica(s) in {self.shards} shards"
        passes = f"{options.accumulate} pass(es) of {self.sequences} sequences of {context} tokens each"
        return f"{mesh}; {passes}{', recomputed' if options.recompute else ''}"

    def _speed(self) -> str:
        speed = self.throughput
        if speed.tokens_per_second is not None:
            return f"at {speed.tokens_per_second:,.0f} tokens/s"
        if speed.tflops_per_worker is not None:
            return f"at {speed.tflops_per_worker:g} TFLOP/s per worker"
        return "unknown: give --tflops-per-worker or --tokens-per-second"

    def _fewest(self) -> str:
        fewest, options = self.options.fewest, self.options
        parts = passes(options.accumulate, wanted=options.workers, there=fewest)
        updated = {"workers": fewest, "min_workers": None, "accumulate": parts}
        left = replace(self, options=options.model_copy(update=updated), nodes=1)
        held = _bytes(sum(left.memory.values()))
        each = f"{parts} pass(es) of {left.sequences} sequences, {held} per worker"
        return f"where only {fewest} worker{'s are' if fewest > 1 else ' is'} left: {each}"

    def parameters(self) -> "Table":
        """Return every parameter's kind, η and λ, as a table for a terminal."""
        from rich.table import Column, Table

        # Where there is no room, names go on in the next line: a name cut short names nothing.
        table = Table(Column("parameter", overflow="fold"), title="parameters")
        for heading in ("size", "kind", "width", "η", "λ"):
            table.add_column(heading, no_wrap=True)
        for name in self.table:
            row = self._row(name)
            values = (f"×{row['width_multiplier']:.4g}", f"{row['lr']:.4g}", f"{row['weight_decay']:.4g}")
            table.add_row(name, f"{row['size']:,}", row["kind"], *values)
        return table

    def notes(self) -> list[str]:
        """Return what the numbers leave out, a line each."""
        lines = [
            "activations: an estimate: what PyTorch's kernels, one by one, keep for the backward pass in bf16; "
            "compiled models keep less, what a kernel takes while it runs comes on top",
            "time: the training steps alone, without validation, checkpoints and restarts",
        ]
        if self.workers > 1 and self.shards == 1:
            states = 4 * self.memory["weights"]
            each = f"all {_bytes(states)} of weights, gradients and moments"
            shared = f"with --parallel fsdp, {_bytes(states / self.workers)}"
            lines.append(f"every worker holds {each}; {shared}")
        if self.options.fewest < self.workers:
            lines.append(self._fewest())
        if self.options.model is not None:
            lines.append(f"{self.options.model}: {asked(self.plan)}")
        return lines


def dry_run(plan: Plan, options: LaunchOptions, *, nodes: int = 1, throughput: Throughput) -> DryRun:
    """Work out a target run without a device, memory or data.

    Args:
        plan: what to train.
        options: how to run.
        nodes: machines that the workers are spread over.
        throughput: how fast they are taken to be.

    Raises:
        ConfigError: the workers do not divide the batch or spread evenly over the nodes.
    """
    require_possible(plan, options)
    if nodes < 1 or options.workers % nodes:
        raise ConfigError(f"nodes: must be >= 1 and divide the {options.workers} workers, got {nodes}")
    # Standard output is for the document alone, whatever the user's module prints.
    with redirect_stdout(sys.stderr):
        build = build_of(plan, options.model)
        table = table_of(plan, build, options.overrides, options.transposed)
        step = trace(plan, build, recompute=options.recompute)
    if step is None:
        raise ConfigError(
            f"model: {options.model!r} decides by numbers what it computes: a dry run has only shapes"
        )
    return DryRun(
        plan=plan,
        table=table,
        step=step,
        options=options,
        nodes=nodes,
        throughput=throughput,
    )


def _bytes(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / MIB:,.2f} MiB"
