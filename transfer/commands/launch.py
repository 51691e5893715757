"""``widthwise launch``: train a recipe's target, zero-shot, through Ray Train."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import UseAppendAction

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.commands.options import Flag, Folder, Option, overrides, whole_lines, worker_range
from widthwise.transfer.commands.sources import recipe_file, source_for
from widthwise.transfer.commands.stopping import resumable, same_command
from widthwise.transfer.commands.target import Target

if TYPE_CHECKING:
    from widthwise.transfer.launch_options import LaunchOptions
    from widthwise.transfer.plan import Plan

# Options that say nothing without another.
_NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("override", "transposed"), ("model",)),
    **dict.fromkeys(("verbose", "tflops_per_worker", "tokens_per_second"), ("dry_run",)),
    **dict.fromkeys(("insecure", "wheel"), ("submit",)),
    **dict.fromkeys(("image", "claim"), ("print",)),
    "nodes": ("dry_run", "print"),
}


@dataclass(frozen=True, kw_only=True)
class Launch(Target):
    """Train the wide model with a recipe's hyperparameters, scaled by a rule."""

    model: Option[str] = None
    """Your own model in place of the recipe's GPT: MODULE:FUNCTION that returns, for a width, an nn.Module from
    tokens to logits; the module may lie in the current folder."""
    override: UseAppendAction[tuple[str, ...]] = ()
    """With --model: PATTERN=KIND for parameters whose shapes do not tell their kind: matrix, embedding, readout, gain,
    bias."""
    transposed: UseAppendAction[tuple[str, ...]] = ()
    """With --model: PATTERN of matrices that are kept (in, out)."""
    data: Option[str] = None
    """'python', a text file, a .bin shard or a folder of them; if not given, what the recipe was tuned on, or
    'python' where that is unknown or gone."""
    out: Folder = Path("widthwise-target")
    """Folder for result.json, metrics.jsonl, plan.json and the checkpoints, shared by all nodes: a path, or a URI such
    as s3://bucket/run."""
    workers: str = "1"
    """Workers, which share every batch; a range like 2-4 goes on without those that leave, and takes them back."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """Keep the whole model on every worker (ddp), a part of it (fsdp), or parts on the workers of each node and
    replicas across nodes (hsdp)."""
    accumulate: int = 1
    """Passes forward and backward for each worker's share of a batch; the result is the same."""
    recompute: Flag = False
    """Compute activations again in the backward pass, to save their memory."""
    checkpoint_every: Option[int] = None
    """Steps between checkpoints, besides one at every evaluation."""
    keep: int = 2
    """Checkpoints to keep."""
    abort_on: Literal["divergence", "nan", "alarm"] = "divergence"
    """What ends a run: a loss far above its start, only one that is not finite, or also an alarm of the watch."""
    evaluations: int = 10
    """Validation passes, evenly spaced, the last at the end."""
    seed: int = 0
    """Seed of initialisation and batches."""
    compile: Flag = False
    """Compile the model with torch.compile."""
    diagnostics: Flag = False
    """Measure norms against the laws of weight decay, spectra and gains at every evaluation; on where watched."""
    unwatched: Flag = False
    """Do not compare the run with what its recipe's proxies showed."""
    peak_tflops: Option[float] = None
    """TFLOP/s that a worker's device could do at most, for the utilisation (MFU); known GPUs' if not given."""
    module_decay: Literal["none", "alpha", "awd", "adadecay"] = "none"
    """Share λ out among modules by their spectra (AlphaDecay), or as AWD or AdaDecay do."""
    assign: Option[Literal["linear", "sqrt", "log2", "sigmoid"]] = None
    """AlphaDecay's assignment. (default: linear)"""
    interval: Option[int] = None
    """Steps between AlphaDecay's looks at the spectra. (default: 500)"""
    lag: Option[int] = None
    """Steps from a look to the use of what it found, during which a thread computes it. (default: 0, on a CUDA device a
    tenth of the interval)"""
    mean_preserving: Flag = False
    """Keep the mean of AlphaDecay's multipliers at 1."""
    fixed_aspect: Flag = False
    """Take AlphaDecay's spectra from square sub-matrices (FARMS)."""
    address: Option[str] = None
    """Ray cluster, host:port or auto. (default: a local Ray)"""
    resume: Flag = False
    """Go on from the checkpoint in the folder."""
    dry_run: Flag = False
    """Print what the run would be and cost (values, memory, FLOPs, time), and stop."""
    verbose: Flag = False
    """With --dry-run: every parameter's row too."""
    nodes: int = 1
    """With --dry-run and --print: machines that the workers are spread over."""
    tflops_per_worker: Option[float] = None
    """With --dry-run: model TFLOP/s of a worker, a GPU's peak times the utilisation expected."""
    tokens_per_second: Option[float] = None
    """With --dry-run: tokens/s of all workers together."""
    submit: Option[str] = None
    """Send the run to a cluster as a Ray job, by its dashboard: host:port or URL."""
    insecure: Flag = False
    """With --submit: to a dashboard that takes jobs from anyone who reaches it."""
    wheel: Option[Path] = None
    """With --submit: this package as a wheel, where the cluster has not installed it."""
    print: Literal["none", "slurm", "kuberay"] = "none"
    """Print a Slurm batch script or a KubeRay RayJob that does the run, a GPU for each worker, and stop."""
    image: Option[str] = None
    """With --print kuberay: a container image with widthwise and ray."""
    claim: Option[str] = None
    """With --print kuberay: the PersistentVolumeClaim that holds the folder, mounted at its first part."""
    json: Flag = False
    """Print result.json's document, or the dry run's."""

    def run(self) -> int:
        """Train and print the outcome; status 1 where the run diverged."""
        from widthwise.transfer.recipe import Recipe

        if self.recipe.is_dir():
            return replace(self, recipe=recipe_file(self.recipe)).run()
        recipe = Recipe.load(self.recipe)
        plan = self.plan(recipe)
        self._require_no_idle_option()
        if self.dry_run:
            return self._on_paper(plan)
        if self.print != "none":
            return self._schedule(plan)
        if self.submit is not None:
            return self._send(plan, self.submit)
        return self._train(plan, source_for(recipe, self.data))

    def _options(self, **given: Any) -> "LaunchOptions":
        from widthwise.transfer.launch_options import LaunchOptions

        names = ["seed", "parallel", "accumulate", "recompute", "checkpoint_every", "keep"]
        names += ["abort_on", "evaluations", "compile", "diagnostics", "model", "transposed"]
        names += ["unwatched", "peak_tflops"]
        settings = {name: getattr(self, name) for name in names}
        settings["min_workers"], settings["workers"] = worker_range(self.workers)
        settings |= {"overrides": overrides(self.override), "module_decay": self._module_decay()}
        return LaunchOptions.parse({**settings, **given})

    def _require_no_idle_option(self) -> None:
        """Refuse the options of what was not asked for."""
        for name, needed in _NEEDS.items():
            if self._has(name) and not any(map(self._has, needed)):
                options = " or ".join(f"--{one.replace('_', '-')}" for one in needed)
                raise ConfigError(f"{name}: needs {options}")

    def _has(self, name: str) -> bool:
        return bool(getattr(self, name) != getattr(Launch, name))

    def _schedule(self, plan: "Plan") -> int:
        from widthwise.transfer.commands.submitting import manifest
        from widthwise.transfer.launch_options import require_possible

        require_possible(plan, self._options())
        print(manifest(self, plan), end="")
        return 0

    def _send(self, plan: "Plan", dashboard: str) -> int:
        from widthwise.transfer.commands.submitting import submit
        from widthwise.transfer.launch_options import require_possible

        require_possible(plan, self._options())
        sent = submit(self, plan, dashboard)
        if self.json:
            print(json.dumps(sent))
        else:
            where = f"{sent['job']} --address {sent['address']}"
            print(f"job {sent['job']}; follow it with: widthwise logs {where} --follow")
        return 0

    def _on_paper(self, plan: "Plan") -> int:
        from rich.console import Console

        from widthwise.transfer.dry_run import Throughput, dry_run

        speed = Throughput(tflops_per_worker=self.tflops_per_worker, tokens_per_second=self.tokens_per_second)
        found = dry_run(plan, self._options(), nodes=self.nodes, throughput=speed)
        if self.json:
            print(json.dumps(found.as_json(), indent=2))
            return 0
        console = Console()
        console.print(plan.table())
        if self.verbose:
            whole_lines().print(found.parameters())
        console.print(found.costs())
        for note in [*plan.notes(), *found.notes()]:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        return 0

    def _train(self, plan: "Plan", data: str) -> int:
        with resumable([self.out / "plan.json"], lambda: same_command(self.out)):
            from widthwise.transfer.launching import launch

            options = self._options(data=data)
            result = launch(plan, self.out, options, resume=self.resume, address=self.address)
        if self.json:
            print(json.dumps(result))
        elif result["status"] == "completed":
            outcome = f"validation loss {result['loss']:.4f} nats per token after {result['tokens']:,} tokens"
            print(f"width {result['width']}, rule {result['rule']}: {outcome}, {result['seconds']:.1f} s")
            if "alarms" in result:
                count = len(result["alarms"])
                print(f"alarms: {count}, in {self.out / 'alarms.jsonl'}" if count else "alarms: none")
            print(f"files: {self.out / 'result.json'}, {self.out / 'metrics.jsonl'}")
        if result["status"] != "completed":
            print(f"widthwise: failed: {self._failure(result)}", file=sys.stderr)
            return 1
        return 0

    def _failure(self, result: dict[str, Any]) -> str:
        from widthwise.transfer.failures import last_checkpoint
        from widthwise.transfer.run_files import StepLines
        from widthwise.transfer.watching.telling import told_in_short

        step = last_checkpoint(self.out)
        kept = "there is no checkpoint" if step is None else f"the checkpoint of step {step} is kept"
        if result["status"] != "stopped":
            return f"the run {result['status']} at step {result['steps']}; {kept}"
        # Not the result's, which has the first of each kind: one may have sounded, and been passed over, before.
        lines = StepLines(self.out / "alarms.jsonl").lines
        alarms = [alarm for alarm in lines if alarm["step"] == result["steps"]]
        stopped = f"{len(alarms)} alarms" if len(alarms) > 1 else "an alarm"
        why = f" ({told_in_short(alarms)})" if alarms else ""
        then = "go on with --resume --abort-on divergence"
        return f"{stopped} stopped the run at step {result['steps']}{why}; {kept}; {then}"

    def _module_decay(self) -> dict[str, Any] | None:
        """Return the settings of `AlphaDecay` and the like; AlphaDecay's options are refused without it."""
        names = ("assign", "interval", "lag", "mean_preserving", "fixed_aspect")
        values = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in values.items() if value is not None and value is not False}
        if given and self.module_decay != "alpha":
            raise ConfigError(f"{next(iter(given))}: needs --module-decay alpha, got {self.module_decay}")
        return None if self.module_decay == "none" else {"method": self.module_decay, **given}
