"""The training loop: exact resume, also after SIGKILL, workers that share a batch, statuses, evaluations.

Started as a script, this file is one worker of a process group, or a run that is killed.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from widthwise.proxies import GPT, GPTConfig, Horizon, Hyperparameters, RunOptions, open_tokens, train
from widthwise.proxies.data import Tokens
from widthwise.proxies.outcome import Metrics, TrainResult
from widthwise.proxies.runs import RunSpec, base_settings, run
from widthwise.proxies.schedule import schedule
from widthwise.proxies.validation import ConfigError

CONTEXT, STEPS = 16, 40
MODEL = GPTConfig(width=16, head_dim=8, depth=1, context=CONTEXT)
DECAYS: dict[str, dict[str, Any]] = {
    "huber, mean": {"huber_c": 1.0},
    "huber, ema": {"huber_c": 1.0, "threshold": "ema"},
    "huber-prox": {"huber_c": 1.0, "decay": "huber-prox"},
    "l2, clipped": {"decay": "l2", "clip_norm": 0.5},
    "none": {"decay": "none"},
}


def horizon(steps: int = STEPS, sequences: int = 4) -> Horizon:
    return Horizon(batch_tokens=sequences * CONTEXT, tokens=steps * sequences * CONTEXT)


def spec(decay: str = "huber, mean", **changes: Any) -> RunSpec:
    tuned = Hyperparameters(lr=0.02, weight_decay=0.5, **DECAYS[decay])
    parts = {"model": MODEL, "base_width": 16, "horizon": horizon(), "data": "python"}
    return RunSpec(hyperparameters=tuned, settings=base_settings(tuned), **{**parts, **changes})


def script(*arguments: object) -> subprocess.Popen[str]:
    """Start this file with a mode and its arguments."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@cache
def python_tokens() -> Tokens:
    return open_tokens("python")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Resuming


def timeless(state: Any) -> Any:
    """Return a checkpoint or a history without its times."""
    if isinstance(state, dict):
        return {name: timeless(item) for name, item in state.items() if "second" not in str(name)}
    return [timeless(item) for item in state] if isinstance(state, list) else state


def assert_same_outcome(one: tuple[TrainResult, Path], other: tuple[TrainResult, Path]) -> None:
    """Compare two runs bit for bit: losses, parameters, optimizer state."""
    (first, saved), (second, also_saved) = (
        (asdict(result), torch.load(path)) for result, path in (one, other)
    )
    assert timeless(first) == timeless(second)
    for part in ("model", "optimizer"):
        torch.testing.assert_close(saved.pop(part), also_saved.pop(part), rtol=0, atol=0)
    assert timeless(saved) == timeless(also_saved)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(decay: str, tmp_path: Path) -> None:
    whole, halved = (
        RunOptions(seed=3, evaluations=5, checkpoint=tmp_path / name) for name in ("whole", "halved")
    )
    told = list[Metrics]()
    straight = run(spec(decay), whole, on_resumed=told.append)
    stopped = run(spec(decay), halved, lambda metrics: metrics.step >= 16, on_resumed=told.append)
    assert (stopped.status, stopped.steps, stopped.tokens, told) == ("stopped", 16, 1024, [])
    resumed = run(spec(decay), halved, on_resumed=told.append)
    assert told == stopped.history
    assert (resumed.status, resumed.steps) == ("completed", STEPS)
    assert_same_outcome((straight, tmp_path / "whole"), (resumed, tmp_path / "halved"))


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    # Steps 10, 15 and 20 are saved: the kill in step 18 loses two steps of those since an evaluation.
    options = RunOptions(seed=3, evaluations=4, checkpoint_every=5, checkpoint=tmp_path / "whole")
    straight = run(spec(), options)
    killed = script("killed", tmp_path / "killed", 18)
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors
    assert torch.load(tmp_path / "killed")["step"] == 15
    resumed = run(spec(), replace(options, checkpoint=tmp_path / "killed"))
    assert_same_outcome((straight, tmp_path / "whole"), (resumed, tmp_path / "killed"))


def killed(checkpoint: str, at_step: str) -> None:
    """Train, and end by SIGKILL in the forward pass of a step."""
    steps = iter(range(1, int(at_step) + 1))

    def count(module: nn.Module, *_: object) -> None:
        if isinstance(module, GPT) and module.training and next(steps) == int(at_step):
            os.kill(os.getpid(), signal.SIGKILL)

    nn.modules.module.register_module_forward_hook(count)
    run(spec(), RunOptions(seed=3, evaluations=4, checkpoint_every=5, checkpoint=Path(checkpoint)))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    options = RunOptions(checkpoint=tmp_path / "run")
    first, seen = run(spec(), options), list[Metrics]()
    again = run(spec(), options, on_metrics=seen.append)
    assert seen == []
    assert (again.history, again.loss, again.status) == (first.history, first.loss, "completed")


@pytest.mark.parametrize(
    ("changes", "options", "complaint"),
    [
        ({}, {"seed": 4}, "was made with seed = 3, not 4"),
        (
            {"horizon": Horizon(batch_tokens=64, tokens=640)},
            {},
            "was made with horizon = {'batch_tokens': 64, 'tokens': 2560, 'warmup_fraction': 0.1, "
            "'schedule': 'cosine', 'final_fraction': 0.0, 'decay_fraction': 0.2}, not "
            "{'batch_tokens': 64, 'tokens': 640, 'warmup_fraction': 0.1, "
            "'schedule': 'cosine', 'final_fraction': 0.0, 'decay_fraction': 0.2}",
        ),
        ({"model": MODEL.model_copy(update={"context": 8})}, {}, "was made with context = 16, not 8"),
        ({"model": MODEL.model_copy(update={"width": 32})}, {}, "was made with another model"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], options: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    mine = RunOptions(seed=3, evaluations=1, validation_batches=1, checkpoint=tmp_path / "run")
    run(spec(horizon=horizon(steps=40)), mine, on_metrics=lambda _: True)
    message = f"checkpoint: {mine.checkpoint} {complaint}; use another folder"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        run(spec(**changes), replace(mine, **options))


def test_a_checkpoint_made_on_other_data_is_refused(real_text: Path, tmp_path: Path) -> None:
    options = RunOptions(evaluations=1, checkpoint=tmp_path / "run")
    run(spec(horizon=horizon(steps=1)), options)
    message = f"data: must hold the tokens that {options.checkpoint} was made with, but differs"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        run(spec(horizon=horizon(steps=1), data=str(real_text)), options)


# Workers


VALIDATION_BATCHES = (4, 3, 1)  # with 1, one of two workers has nothing to validate


def test_two_workers_share_every_batch_and_learn_what_one_learns(tmp_path: Path) -> None:
    alone = [
        run(spec("l2, clipped", horizon=horizon(steps=20)), options).history
        for options in sharing(world_size=1)
    ]
    workers = [script("worker", rank, tmp_path / "rendezvous") for rank in (0, 1)]
    for worker in workers:
        output, errors = worker.communicate()
        assert worker.returncode == 0, errors
        printed = json.loads(output)
        assert printed["sequences per step"] == [2]
        for mine, theirs in zip(alone, printed["histories"], strict=True):
            for name in ("step", "tokens", "loss", "train_loss", "grad_norm"):
                expected = [getattr(metrics, name) for metrics in mine]
                assert [metrics[name] for metrics in theirs] == pytest.approx(expected, abs=1e-5)
            for one, other in zip(mine, theirs, strict=True):
                assert one.diagnostics is not None
                expected = one.diagnostics.gradient_norm
                assert other["diagnostics"]["gradient_norm"] == pytest.approx(expected, rel=1e-4)


def worker(rank: str, rendezvous: str) -> None:
    """Be one of two workers; print the histories, and how many sequences a training step took."""
    sequences = set()

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        if isinstance(module, GPT) and module.training:
            sequences.add(len(inputs[0]))

    nn.modules.module.register_module_forward_hook(count)
    meeting = f"file://{rendezvous}"
    dist.init_process_group("gloo", meeting, timedelta(seconds=60), world_size=2, rank=int(rank))
    runs = [
        run(spec("l2, clipped", horizon=horizon(steps=20)), options)
        for options in sharing(rank=int(rank), world_size=2)
    ]
    histories = [asdict(result)["history"] for result in runs]
    print(json.dumps({"histories": histories, "sequences per step": list(sequences)}))
    dist.destroy_process_group()


def sharing(**workers: int) -> list[RunOptions]:
    return [
        RunOptions(evaluations=4, validation_batches=count, diagnostics=True, **workers)
        for count in VALIDATION_BATCHES
    ]


def test_every_worker_must_have_a_sequence() -> None:
    message = "workers: must be <= the 4 sequences of a batch, got 5"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        bigrams(options=RunOptions(world_size=5))


# Statuses, evaluations and metrics, of the smallest of all models


def bigrams(
    model: nn.Module | None = None,
    *,
    lr: float = 0.5,
    steps: int = STEPS,
    options: RunOptions | None = None,
    on_metrics: Callable[[Metrics], object] | None = None,
) -> TrainResult:
    """Train a table of the next byte's logits by gradient descent."""
    model = model or Bigrams()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return train(
        model,
        optimizer,
        python_tokens(),
        horizon(steps),
        context=CONTEXT,
        options=options or RunOptions(validation_batches=2),
        on_metrics=on_metrics,
    )


class Bigrams(nn.Embedding):
    """A table of logits, all 0 at first; `broken` says in which passes they are NaN."""

    def __init__(self, broken: Callable[[nn.Module], bool] = lambda _: False) -> None:
        super().__init__(256, 256)
        nn.init.zeros_(self.weight)
        self.broken, self.passes = broken, 0

    def forward(self, tokens_bt: Tensor) -> Tensor:
        self.passes += self.training
        return super().forward(tokens_bt) * (math.nan if self.broken(self) else 1)


def test_a_learning_rate_too_high_diverges_without_an_exception() -> None:
    result = bigrams(lr=1e6, options=RunOptions(evaluations=1, validation_batches=2))
    # Looked at every tenth step.
    assert (result.status, result.loss, result.steps, result.history) == ("diverged", math.inf, 10, [])


@pytest.mark.parametrize(
    ("broken", "steps"),
    [
        (lambda _: True, 1),
        (lambda model: model.passes >= 25, 30),
        (lambda model: not model.training, STEPS // 2),
        (lambda model: not model.training and model.passes == STEPS, STEPS),
    ],
    ids=["from the start", "from step 25", "in validation", "in the last validation"],
)
def test_nan_is_divergence(broken: Callable[[nn.Module], bool], steps: int) -> None:
    result = bigrams(Bigrams(broken), options=RunOptions(evaluations=2, validation_batches=2))
    assert (result.status, result.loss, result.steps) == ("diverged", math.inf, steps)


def test_a_diverged_run_leaves_its_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    options = RunOptions(evaluations=1, validation_batches=2, checkpoint=path, checkpoint_every=3)
    result = bigrams(Bigrams(lambda model: model.passes >= 22), options=options)
    # The loss is looked at before each checkpoint, not only at every tenth step.
    assert (result.status, result.steps) == ("diverged", 24)
    state = torch.load(path, weights_only=True)
    assert state["step"] == 21
    assert state["model"]["weight"].isfinite().all()


def test_a_run_told_so_goes_on_through_a_high_loss() -> None:
    options = RunOptions(evaluations=1, validation_batches=2, abort_on="nan")
    result = bigrams(lr=1e6, options=options)
    assert (result.status, result.steps) == ("completed", STEPS)
    assert 2 * math.log(256) < result.loss < math.inf
    result = bigrams(Bigrams(lambda model: model.passes >= 25), options=options)
    assert (result.status, result.steps) == ("diverged", 30)


def test_a_run_stopped_where_its_loss_is_nan_has_diverged() -> None:
    result = bigrams(Bigrams(lambda model: not model.training), on_metrics=lambda _: True)
    assert (result.status, result.loss, result.steps) == ("diverged", math.inf, 4)


def test_a_true_answer_to_the_metrics_stops_the_run() -> None:
    result = bigrams(on_metrics=lambda metrics: metrics.step == 12)
    assert (result.status, result.steps, result.tokens) == ("stopped", 12, 12 * 64)
    assert result.loss == result.history[-1].loss < math.log(256)


def test_after_the_last_step_there_is_nothing_to_stop() -> None:
    result = bigrams(on_metrics=lambda metrics: metrics.step == STEPS)
    assert (result.status, result.steps) == ("completed", STEPS)


@pytest.mark.parametrize(
    ("steps", "evaluations"), [(40, 1), (40, 7), (7, 3), (13, 13), (97, 10), (5, 10), (1, 10)]
)
def test_evaluations_are_as_many_as_asked_evenly_spaced_the_last_at_the_end(
    steps: int, evaluations: int
) -> None:
    seen: list[Metrics] = []
    options = RunOptions(evaluations=evaluations, validation_batches=1)
    result = bigrams(steps=steps, options=options, on_metrics=seen.append)
    assert result.history == seen
    at = [metrics.step for metrics in seen]
    assert len(at) == min(evaluations, steps)
    gaps = {after - before for before, after in zip([0, *at], at, strict=False)}
    assert at[-1] == steps
    assert max(gaps) - min(gaps) <= 1


def test_the_metrics_are_what_they_say() -> None:
    model, tokens = Bigrams(), python_tokens()
    first, second = bigrams(
        model, steps=8, options=RunOptions(seed=5, evaluations=2, validation_batches=3)
    ).history
    assert (first.step, first.tokens, second.step, second.tokens) == (4, 256, 8, 512)
    assert second.lr_factor == schedule(horizon(8), 7)
    assert second.grad_norm is None  # SGD measures none
    assert second.tokens_per_second == pytest.approx(512 / second.seconds, rel=0.01)
    with torch.no_grad():
        batches = tokens.validation_batches(3, batch_size=4, context=CONTEXT)
        losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y in batches]
    assert second.loss == pytest.approx(sum(losses).item() / 3, abs=1e-6)


def test_the_training_loss_is_the_mean_since_the_last_evaluation() -> None:
    model, tokens = Bigrams(), python_tokens()
    history = bigrams(model, lr=0.0, steps=8, options=RunOptions(seed=5, evaluations=2)).history
    assert [metrics.train_loss for metrics in history] == pytest.approx([math.log(256)] * 2)
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(1))
    history = bigrams(model, lr=0.0, steps=8, options=RunOptions(seed=5, evaluations=2)).history
    batches = [tokens.batch(step, seed=5, batch_size=4, context=CONTEXT) for step in range(8)]
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item() for x, y in batches]
    expected = [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    assert [metrics.train_loss for metrics in history] == pytest.approx(expected, abs=1e-5)


def test_every_group_follows_the_schedule_from_its_own_peak() -> None:
    model, rates = Bigrams(), []
    extra = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr": 0.5}, {"params": [extra], "lr": 2.0}])
    optimizer.register_step_pre_hook(
        lambda *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    train(model, optimizer, python_tokens(), horizon(9), context=CONTEXT)
    factors = [schedule(horizon(9), step) for step in range(9)]
    assert rates == [[0.5 * factor, 2.0 * factor] for factor in factors]


def test_before_step_is_called_between_gradients_and_update_with_the_runs_step(tmp_path: Path) -> None:
    options, calls = RunOptions(evaluations=3, validation_batches=1, checkpoint=tmp_path / "run"), list[Any]()
    for last in (4, 9):  # stopped, then resumed
        model = Bigrams()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        optimizer.register_step_pre_hook(lambda *_: calls.append("update"))

        def look(
            step: int, given: nn.Module, its: torch.optim.Optimizer, own: Any = (model, optimizer)
        ) -> None:
            assert (given, its) == own
            assert own[0].weight.grad.any()
            calls.append((step, its.param_groups[0]["lr"]))

        train(
            model,
            optimizer,
            python_tokens(),
            horizon(9),
            context=CONTEXT,
            options=options,
            on_metrics=lambda metrics, last=last: metrics.step >= last,
            before_step=look,
        )
    assert calls[::2] == [(step, 0.5 * schedule(horizon(9), step)) for step in range(9)]
    assert calls[1::2] == ["update"] * 9


def test_bf16_learns_nearly_what_fp32_learns() -> None:
    exact, rounded = (run(spec(), RunOptions(precision=precision)) for precision in ("fp32", "bf16"))
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, abs=0.05)


def test_a_batch_must_be_whole_sequences_and_the_data_long_enough(tmp_path: Path) -> None:
    message = "batch_tokens: must be a multiple of context = 16, got 100"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        run(spec(horizon=Horizon(batch_tokens=100, tokens=1000)), RunOptions())
    short = tmp_path / "short.txt"
    short.write_bytes(bytes(64))
    message = (
        f"data: {short}: the training split must hold at least batch_size * context + 1 = "
        "4 * 16 + 1 = 65 tokens, got 32"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        train(
            Bigrams(),
            torch.optim.SGD([nn.Parameter(torch.zeros(1))]),
            open_tokens(short, validation_fraction=0.5),
            horizon(),
            context=CONTEXT,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "worker": worker}[sys.argv[1]](*sys.argv[2:])
