"""The training loop of proxies and targets: one function, exact resume, and a status instead of an exception.

A run depends only on the model's weights, the data, the horizon and the seed; a resumed run continues the
same batches, bit for bit on one device.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from widthwise.proxies.checkpoint import FileCheckpoint
from widthwise.proxies.config import Horizon
from widthwise.proxies.data import Tokens
from widthwise.proxies.losses import Losses
from widthwise.proxies.observing import Observers, observed_tokens
from widthwise.proxies.outcome import SAMPLED_STEPS, Metrics, RunOptions, Status, TrainResult
from widthwise.proxies.parallel import holding_back, unwrapped
from widthwise.proxies.pulse import Pulse
from widthwise.proxies.schedule import schedule
from widthwise.proxies.sharded_checkpoint import ShardedCheckpoint
from widthwise.proxies.validation import ConfigError

BeforeStep = Callable[[int, nn.Module, torch.optim.Optimizer], object]

# assumed: a run whose loss rises this far above its start does not come back
DIVERGED_AT = 1.5
# A look at the loss waits for the device, so it is taken only this often.
STEPS_BETWEEN_LOOKS = 10


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tokens,
    horizon: Horizon,
    *,
    context: int,
    options: RunOptions | None = None,
    on_metrics: Callable[[Metrics], object] | None = None,
    on_resumed: Callable[[Metrics], object] | None = None,
    before_step: BeforeStep | None = None,
) -> TrainResult:
    """Train `model` over `horizon`, resuming from ``options.checkpoint`` where it exists.

    Args:
        model: maps tokens (batch, time) int64 to logits (batch, time, vocabulary); on its device.
        optimizer: over the model's parameters; every group's ``lr`` at the call is its peak.
        tokens: the data; every worker holds the same.
        horizon: length, batch and schedule.
        context: tokens per sequence.
        options: how to run.
        on_metrics: called at every evaluation, on every worker; a true value stops the run.
        on_resumed: called with every evaluation of a run that is resumed, in order, on every worker: what heard of
            them may have died with the run.
        before_step: called as ``before_step(step, model, optimizer)`` between the backward pass and each
            optimizer step, on every worker; `step` counts from 0 and goes on after a resumption. What it
            keeps for later steps belongs into the optimizer's state, or a resumed run will differ.

    Raises:
        ConfigError: where the batch, the data or the checkpoint does not fit, or diagnostics are asked of
            another optimizer than AdamHC over groups that `parameter_groups` made.
    """
    run = _Run(model, optimizer, tokens, horizon, context, options or RunOptions())
    run.resume()
    run.pulse.beat(run.step)
    if on_resumed is not None:
        for metrics in run.history:
            on_resumed(metrics)
    try:
        status = _loop(run, on_metrics, before_step)
        run.finish()
        return run.result(status)
    finally:
        run.restore_peaks()


def _loop(
    run: "_Run", on_metrics: Callable[[Metrics], object] | None, before_step: BeforeStep | None
) -> Status:
    """Train to the end, and say how it ended."""
    while run.step < run.horizon.steps:
        run.advance(before_step)
        if run.has_diverged():
            return "diverged"
        if run.evaluation_is_due():
            metrics = run.evaluate()
            if not math.isfinite(metrics.loss):
                return "diverged"
            # Told before it is saved: a death in between repeats the evaluation, and loses none.
            stop = on_metrics is not None and on_metrics(metrics)
            run.save()
            if stop and run.step < run.horizon.steps:
                return "stopped"
        elif run.checkpoint_is_due():
            run.save()
    return "completed"


class _Run:
    """A run's state, and what can be done with it; `train` says in which order."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        tokens: Tokens,
        horizon: Horizon,
        context: int,
        options: RunOptions,
    ) -> None:
        self.batch_size = horizon.sequences(context)
        tokens.require(context=context, batch_size=self.batch_size)
        self.model, self.bare_model = model, unwrapped(model)
        self.losses = Losses(model, options)
        self.optimizer, self.tokens, self.horizon = optimizer, tokens, horizon
        self.context, self.options = context, options
        self.device = torch.device(options.device)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.rows = _share(self.batch_size, options)
        self.checkpoint = _checkpoint(options)
        self.step, self.seconds, self.first_loss = 0, 0.0, math.nan
        self.history: list[Metrics] = []
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0.0
        # No method of ours: the run and its observers would hold each other, and the model, beyond the run's end.
        inputs = partial(
            observed_tokens, tokens, batch_size=self.batch_size, context=context, device=options.device
        )
        self.observers = Observers(self.bare_model, optimizer, inputs, options)
        self.pulse = Pulse(
            options.pulse if options.rank == 0 else None,
            workers=options.world_size,
            batch_tokens=horizon.batch_tokens,
        )
        self.started = time.perf_counter()

    def advance(self, before_step: BeforeStep | None = None) -> None:
        """Take one optimizer step."""
        factor = schedule(self.horizon, self.step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        x, y = self.tokens.batch(
            self.step,
            seed=self.options.seed,
            batch_size=self.batch_size,
            context=self.context,
            rows=self.rows,
        )
        self.last_loss = self._backward(x, y)
        if before_step is not None:
            before_step(self.step, self.bare_model, self.optimizer)
        self.optimizer.step()
        self.observers.after_step(sample=self._evaluation_is_near(self.step + 1, SAMPLED_STEPS))
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_sum += self.last_loss
        self.loss_count += 1
        self.step += 1
        self.pulse.beat(self.step)

    def has_diverged(self) -> bool:
        """Look at the loss now and then: not finite, or far above its start."""
        if (
            math.isfinite(self.first_loss)
            and self.step % STEPS_BETWEEN_LOOKS
            and not self.evaluation_is_due()
            and not self.checkpoint_is_due()  # a checkpoint must be a good one
        ):
            return False
        # The mean too, which does not forget what happened between two looks.
        losses = self.losses.mean(self.last_loss, 1), self.losses.mean(self.loss_sum, self.loss_count)
        if math.isnan(self.first_loss):
            self.first_loss = losses[0]
        highest = (
            DIVERGED_AT * self.first_loss if self.options.abort_on == "divergence" else sys.float_info.max
        )
        return not all(loss <= highest for loss in losses)

    def evaluation_is_due(self) -> bool:
        return self._evaluation_is_near(self.step, 1)

    def _evaluation_is_near(self, step: int, steps: int) -> bool:
        """Tell whether there is an evaluation after `step` or one of the following ``steps - 1``."""
        count, last = self.options.evaluations, self.horizon.steps
        return min(step + steps - 1, last) * count // last > (step - 1) * count // last

    def checkpoint_is_due(self) -> bool:
        every = self.options.checkpoint_every
        return every is not None and self.step % every == 0

    def restore_peaks(self) -> None:
        """Leave the learning rates as they were, so that another call takes the same peaks."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak

    def finish(self) -> None:
        """Wait for the last checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.finish()

    def evaluate(self) -> Metrics:
        """Measure the validation loss and record the metrics."""
        loss = self.losses.validation(self.tokens, batch_size=self.batch_size, context=self.context)
        train_loss = self.losses.mean(self.loss_sum, self.loss_count)
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0
        grad_norm = getattr(self.optimizer, "grad_norm", None)
        done = self.step * self.horizon.batch_tokens
        metrics = Metrics(
            step=self.step,
            tokens=done,
            loss=loss,
            train_loss=train_loss,
            grad_norm=None if grad_norm is None else float(grad_norm),
            lr_factor=schedule(self.horizon, self.step - 1),
            seconds=self._clock(),
            tokens_per_second=done / self._clock(),
            flops=self._flops(),
            diagnostics=self.observers.diagnostics(),
        )
        self.history.append(metrics)
        return metrics

    def result(self, status: Status) -> TrainResult:
        last = self.history[-1].loss if self.history else math.nan
        if not math.isfinite(last):
            status = "diverged"
        return TrainResult(
            status=status,
            loss=math.inf if status == "diverged" else last,
            steps=self.step,
            tokens=self.step * self.horizon.batch_tokens,
            seconds=self._clock(),
            parameters=sum(parameter.numel() for parameter in self.bare_model.parameters()),
            flops=self._flops(),
            history=self.history,
        )

    def save(self) -> None:
        if self.checkpoint is None:
            return
        loss_sum, loss_count = self.losses.sums(self.loss_sum, self.loss_count)
        progress = {
            "identity": self._identity(),
            "step": self.step,
            "seconds": self._clock(),
            "first_loss": self.first_loss,
            "loss_sum": loss_sum,
            "loss_count": loss_count,
            "history": [asdict(metrics) for metrics in self.history],
            "observers": self.observers.state_dict(),
        }
        self.checkpoint.save(self.bare_model, self.optimizer, progress)

    def resume(self) -> None:
        """Load the checkpoint, if there is one; learning rates and decays stay the caller's, never the file's."""
        if self.checkpoint is None:
            return
        state = self.checkpoint.load(self.bare_model, self.optimizer, self._identity())
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.first_loss = state["first_loss"]
        if self.options.rank == 0:
            # The sum is over all workers: one of them goes on with it.
            self.loss_sum += state["loss_sum"]
            self.loss_count = state["loss_count"]
        self.history = TypeAdapter(list[Metrics]).validate_python(state["history"])
        self.observers.load_state_dict(state.get("observers", {}))

    def _identity(self) -> dict[str, Any]:
        """Return what a checkpoint must share with the run that resumes from it."""
        return {
            "horizon": self.horizon.model_dump(),
            "context": self.context,
            "seed": self.options.seed,
            "data": self.tokens.fingerprint,
        }

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Leave the gradients of the mean loss over x and y, taken in parts; return that loss."""
        parts = self.options.accumulate
        loss = torch.zeros((), device=self.device)
        split = zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)
        for part, (x_part, y_part) in enumerate(split):
            with holding_back(self.model, hold=part < parts - 1):
                if len(x_part):
                    part_loss = self._weighted_loss(x_part, y_part)
                else:  # the others' collectives need this worker too
                    part_loss = 0.0 * self._weighted_loss(x[:1], y[:1])
                part_loss.backward()
            loss += part_loss.detach()
        return loss

    def _weighted_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss over x and y, weighted so that its mean over the workers is the batch's."""
        share = self.batch_size / self.options.world_size
        return self.losses.training(x, y) / (share / len(x))

    def _flops(self) -> float | None:
        per_token = getattr(self.bare_model, "flops_per_token", None)
        return None if per_token is None else per_token() * self.step * self.horizon.batch_tokens

    def _clock(self) -> float:
        return self.seconds + time.perf_counter() - self.started


def _share(batch_size: int, options: RunOptions) -> slice:
    """Return the rows of the global batch that a worker takes; where they do not come out even, some take one more."""
    rank, workers, parts = options.rank, options.world_size, options.accumulate
    if workers > batch_size:
        raise ConfigError(f"workers: must be <= the {batch_size} sequences of a batch, got {workers}")
    share = math.ceil(batch_size / workers)
    if parts > share:
        rule = f"must be <= the {share} sequences of a worker's share of a batch"
        raise ConfigError(f"accumulate: {rule}, got {parts}")
    return slice(rank * batch_size // workers, (rank + 1) * batch_size // workers)


def _checkpoint(options: RunOptions) -> FileCheckpoint | ShardedCheckpoint | None:
    path, device = options.checkpoint, torch.device(options.device)
    if path is None:
        return None
    if options.keep is None:
        if not isinstance(path, Path):
            raise ConfigError(
                f"checkpoint: must be a file on this machine unless `keep` is given, got {path}"
            )
        return FileCheckpoint(path, rank=options.rank, device=device)
    return ShardedCheckpoint(path, keep=options.keep, rank=options.rank, workers=options.world_size)
