"""AlphaDecay, AWD and AdaDecay: their formulas by hand, their place in a step, resumption bit for bit."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from widthwise.proxies import AWD, GPT, AdaDecay, AlphaDecay, GPTConfig, Horizon, Hyperparameters, RunOptions
from widthwise.proxies.decaying import adadecay_factors
from widthwise.proxies.runs import RunSpec, base_settings, run
from widthwise.proxies.spectra import decay_scales
from widthwise.proxies.validation import ConfigError

from .toy import Toy

CONTEXT, STEPS = 16, 20
MODEL = GPTConfig(width=64, head_dim=16, depth=2, context=CONTEXT)
METHODS = [
    AlphaDecay(interval=8),
    AlphaDecay(interval=6, assign="sigmoid", fixed_aspect=True),
    AlphaDecay(interval=6, lag=3),
    AWD(),
    AdaDecay(),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec(module_decay: AlphaDecay | AWD | AdaDecay | None, **tuned: Any) -> RunSpec:
    """Return a run of a tiny GPT with Huber decay and AdamC's correction."""
    hyperparameters = Hyperparameters(lr=0.02, weight_decay=2.0, **{"huber_c": 1.0, **tuned})
    return RunSpec(
        model=MODEL,
        base_width=64,
        horizon=Horizon(batch_tokens=4 * CONTEXT, tokens=STEPS * 4 * CONTEXT),
        hyperparameters=hyperparameters,
        settings=base_settings(hyperparameters),
        data="python",
        module_decay=module_decay,
    )


def checkpointed(path: Path) -> RunOptions:
    return RunOptions(seed=3, evaluations=5, validation_batches=2, checkpoint=path)


# In a run


@pytest.mark.parametrize("tuned", [{}, {"decay": "l2", "clip_norm": 0.5}], ids=["huber", "l2, clipped"])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    method: AlphaDecay | AWD | AdaDecay, tuned: dict[str, Any], tmp_path: Path
) -> None:
    # Refreshed before steps 1, 8 and 16 (or 1, 6, 12 and 18) of 20, stopped after the 12th, with or without a lag.
    straight = run(spec(method, **tuned), checkpointed(tmp_path / "whole"))
    stopped = run(
        spec(method, **tuned), checkpointed(tmp_path / "halved"), lambda metrics: metrics.step >= 12
    )
    assert (stopped.status, stopped.steps) == ("stopped", 12)
    resumed = run(spec(method, **tuned), checkpointed(tmp_path / "halved"))
    assert (straight.status, straight.loss) == ("completed", resumed.loss)
    whole, halved = (torch.load(tmp_path / name) for name in ("whole", "halved"))
    for part in ("model", "optimizer"):
        torch.testing.assert_close(whole[part], halved[part], rtol=0, atol=0)
    assert run(spec(None, **tuned), RunOptions(seed=3, validation_batches=2)).loss != straight.loss


def test_alphadecay_sets_the_scales_of_the_weights_at_its_last_refresh(tmp_path: Path) -> None:
    # The 20th step is one to refresh at: what it used is what the weights after 19 steps give.
    method = AlphaDecay(interval=20, high=2.0, mean_preserving=True)
    options = RunOptions(seed=3, evaluations=20, validation_batches=1, checkpoint=tmp_path / "run")
    run(spec(method), options, lambda metrics: metrics.step >= 19)
    weights = torch.load(tmp_path / "run")["model"]
    run(spec(method), options)
    state = torch.load(tmp_path / "run")["optimizer"]
    found = sorted(one["decay_scale"] for one in state.values())
    expected = decay_scales({name: weights[name] for name in weights}, high=2.0, mean_preserving=True)
    assert found == sorted(expected.values())
    assert max(found) > 1.2


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_run_with_module_decay_travels_as_json(method: AlphaDecay | AWD | AdaDecay) -> None:
    assert RunSpec.model_validate_json(spec(method).model_dump_json()) == spec(method)


# In any training loop


@pytest.mark.parametrize(
    ("interval", "refreshed"), [(500, [0, 499, 999]), (1, list(range(1000))), (400, [0, 399, 799])]
)
def test_alphadecay_looks_at_the_first_step_and_before_every_interval(
    interval: int, refreshed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr("widthwise.proxies.decaying.decay_scales", lambda *_, **__: seen.append(step) or {})
    toy, method = Toy(), AlphaDecay(interval=interval)
    for step in range(1000):
        method(step, toy.model, toy.optimizer)
    assert seen == refreshed


def test_alphadecay_leaves_frozen_weights_and_biases_alone() -> None:
    toy = Toy()
    frozen = nn.Linear(64, 64).requires_grad_(False)
    AlphaDecay()(0, nn.Sequential(*toy.model, frozen), toy.optimizer)
    scales = toy.scales()
    assert scales[1::2] == [1.0] * 3
    assert sorted(scales[::2])[::2] == pytest.approx([0.6666, 5.0])
    assert not toy.optimizer.state.get(frozen.weight)


@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_awd_is_the_smoothed_ratio_of_the_norms(clip_norm: float | None) -> None:
    toy, smoothed = Toy(clip_norm=clip_norm), 0.0
    for step in range(4):
        toy.draw(lambda gradient: 0.1 * gradient)
        gradients = [parameter.grad for parameter in toy.model.parameters() if parameter.grad is not None]
        g, w = (
            math.sqrt(sum(float(x.double().square().sum()) for x in xs)) for xs in (gradients, toy.weights())
        )
        smoothed = 0.1 * smoothed + 0.9 * (g if clip_norm is None else min(g, clip_norm)) / w
        AWD()(step, toy.model, toy.optimizer)
        assert toy.scales() == pytest.approx([smoothed] * 6, rel=1e-5)
        toy.optimizer.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_awd_stays_where_a_gradient_is_not_finite(bad: float) -> None:
    toy = Toy()
    AWD()(0, toy.model, toy.optimizer)
    before = toy.scales()
    toy.draw(lambda gradient: gradient * bad)
    AWD()(1, toy.model, toy.optimizer)
    assert toy.scales() == before


def test_adadecay_factors_of_a_known_gradient() -> None:
    gradient = torch.tensor([0.1, -0.2, 0.3, -0.8])
    exact = torch.tensor([0.047603, 0.194468, 0.644792, 1.997504])
    torch.testing.assert_close(adadecay_factors(gradient), exact, rtol=0, atol=1e-6)
    assert adadecay_factors(torch.full((3, 3), -2.0)).tolist() == [[1.0] * 3] * 3
    assert adadecay_factors(torch.zeros(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "options", [{"decay": "l2"}, {}, {"corrected": True, "max_lr": 0.4}, {"huber_c": math.inf}]
)
def test_adadecay_pulls_each_weight_by_its_own_factor(options: dict[str, Any]) -> None:
    toy, undecayed = Toy(**options), Toy(**{**options, "decay": "none"})
    for step in range(3):
        for one in (toy, undecayed):
            torch.manual_seed(10 + step)
            one.draw()
        before = toy.weights()
        with torch.no_grad():
            for mine, other in zip(toy.model.parameters(), undecayed.model.parameters(), strict=True):
                other.copy_(mine)
        AdaDecay()(step, toy.model, toy.optimizer)
        toy.optimizer.step()
        undecayed.optimizer.step()
        assert toy.scales() == [0.0] * 6
        tau = 0.1 * 0.5 * (0.25 if options.get("corrected") else 1)
        parameters = zip(before, toy.model.parameters(), undecayed.weights(), strict=True)
        for old, new, plain in parameters:
            assert new.grad is not None
            size = new.grad.abs()
            theta = 2 / (1 + torch.exp(-4 * (size - size.mean()) / size.std(correction=0)))
            limit = (
                math.inf if options.get("decay") == "l2" else options.get("huber_c", 1.0) * old.abs().mean()
            )
            expected = plain - tau * theta * old.clamp(-limit, limit)
            torch.testing.assert_close(new.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"decay": "l2"}, {}, {"corrected": True, "max_lr": 0.4}])
def test_adadecay_of_equal_gradients_is_the_optimizers_own_decay(options: dict[str, Any]) -> None:
    toy, uniform = Toy(**options), Toy(**options)
    for step in range(3):
        for one in (toy, uniform):
            torch.manual_seed(10 + step)
            one.draw(lambda gradient: 0.1 * gradient.sign())
        AdaDecay()(step, toy.model, toy.optimizer)
        toy.optimizer.step()
        uniform.optimizer.step()
    torch.testing.assert_close(toy.weights(), uniform.weights(), rtol=1e-6, atol=1e-7)


def test_what_does_not_decay_is_left_alone() -> None:
    for options in ({"decay": "none"}, {"weight_decay": 0.0}):
        toy = Toy(**options)
        before = toy.weights()
        AdaDecay()(0, toy.model, toy.optimizer)
        torch.testing.assert_close(toy.weights(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            AdaDecay(),
            {"decay": "huber-prox"},
            "module_decay: adadecay needs decay 'l2', or 'huber' with threshold 'mean', "
            "got decay 'huber-prox' and threshold 'mean'",
        ),
        (
            AdaDecay(),
            {"threshold": "ema"},
            "module_decay: adadecay needs decay 'l2', or 'huber' with threshold 'mean', "
            "got decay 'huber' and threshold 'ema'",
        ),
    ],
)
def test_a_decay_that_adadecay_cannot_do_is_refused(method: AdaDecay, options: Any, message: str) -> None:
    toy = Toy(**options)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        method(0, toy.model, toy.optimizer)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_another_optimizer_is_refused(method: Callable[[int, nn.Module, Optimizer], None]) -> None:
    model = GPT(MODEL, seed=0)
    message = "optimizer: must be AdamHC for module-wise decay, got AdamW"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        method(0, model, torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval: must be >= 1, got 0"),
        ({"interval": 20, "lag": 20}, "lag: must be < interval = 20, got 20"),
        ({"low": 2.0, "high": 1.0}, "low: 0 <= low <= high must hold, and high > 0, got low=2.0, high=1.0"),
        ({"assing": "linear"}, "assing: unknown field; did you mean 'assign'?"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        AlphaDecay.parse(settings)
