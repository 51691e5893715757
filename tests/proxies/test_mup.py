"""µP holds in the model as it is built and trained: coordinates that do not move with the width, and an identity."""

from functools import cache
from math import log

import mup
import mup.init
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widthwise.kernels import AdamHC
from widthwise.proxies import GPT, GPTConfig, Horizon, Hyperparameters, open_tokens, parameter_table
from widthwise.proxies.config import KINDS
from widthwise.proxies.data import Tokens
from widthwise.transfer import Recipe

WIDTHS = (32, 64, 128, 256)
STEPS = 10
RECIPE = Recipe(
    hyperparameters=Hyperparameters(lr=0.01, weight_decay=0.4, huber_c=2.0),
    proxy=GPTConfig(width=32, depth=2, context=64),
    horizon=Horizon(batch_tokens=256, tokens=25_600),
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def python_tokens() -> Tokens:
    return open_tokens("python")


def learn(model: GPT, optimizer: AdamHC, step: int, *, seed: int) -> float:
    x, y = python_tokens().batch(step, seed=seed, batch_size=4, context=model.config.context)
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# The coordinate check (Yang et al., arXiv 2203.03466, appendix D.1)


def movement(rule: str, width: int, seed: int) -> dict[str, list[float]]:
    """Return, per layer, the rms change of its output on a fixed batch since initialisation, after each step."""
    plan = RECIPE.at(width=width, rule=rule)
    model = GPT(plan.model, seed=seed)
    table = parameter_table(lambda w: GPT(plan.model.model_copy(update={"width": w})), width, base_width=32)
    optimizer = AdamHC(plan.parameter_groups(model, table), clip_norm=RECIPE.hyperparameters.clip_norm)
    fixed, _ = python_tokens().batch(10**6, seed=seed, batch_size=4, context=64)
    start = outputs(model, fixed)
    moved: dict[str, list[float]] = {name: [] for name in start}
    for step in range(STEPS):
        learn(model, optimizer, step, seed=seed)
        for name, output in outputs(model, fixed).items():
            moved[name].append((output - start[name]).square().mean().sqrt().item())
    return moved


@torch.no_grad()
def outputs(model: GPT, tokens_bt: Tensor) -> dict[str, Tensor]:
    """Return what the embedding, each block and the whole model put out."""
    found: dict[str, Tensor] = {}
    layers = {
        "embedding": model.embedding,
        "block 0": model.blocks[0],
        "block 1": model.blocks[1],
        "logits": model,
    }
    hooks = [
        layer.register_forward_hook(lambda _module, _input, output, name=name: found.update({name: output}))
        for name, layer in layers.items()
    ]
    model(tokens_bt)
    for hook in hooks:
        hook.remove()
    return found


def slopes(rule: str, seeds: range) -> dict[str, np.ndarray]:
    """Return, per layer, the log-log slope of its movement against the width, after each step."""
    runs = [[movement(rule, width, seed) for seed in seeds] for width in WIDTHS]
    found = {}
    for name in runs[0][0]:
        moved = np.array([[one[name] for one in same_width] for same_width in runs]).mean(axis=1)
        # Nothing moves the embedding in the first step.
        found[name] = np.polyfit(np.log(WIDTHS), np.log(np.maximum(moved, 1e-30)), 1)[0]
    return found


def test_under_mup_no_layer_moves_more_or_less_in_a_wider_model() -> None:
    found = slopes("fan-sqrt", range(4))
    # The readout starts at zero, so that the first step's gradient reaches nothing below it ...
    learning = {name: slope if name == "logits" else slope[1:] for name, slope in found.items()}
    for name, slope in learning.items():
        assert np.abs(slope).max() <= 0.1, (name, slope)
    # ... and the blocks only decay, by ηλ, which fan-sqrt scales by w^-½.
    for name in ("block 0", "block 1"):
        assert found[name][0] == pytest.approx(-0.5, abs=0.1)


def test_in_the_standard_parametrisation_the_check_fails() -> None:
    found = slopes("sp", range(1))
    for name in ("block 0", "block 1", "logits"):
        assert found[name].max() > 0.3, (name, found[name])


# mup's own rates and initialisation (Yang et al., arXiv 2203.03466, Table 8)


def build(width: int) -> nn.Module:
    """Return a model with mup's own readout."""
    layers = (nn.Linear(width, 3 * width), nn.LayerNorm(3 * width), nn.Linear(3 * width, width))
    return nn.Sequential(nn.Embedding(9, width), *layers, mup.MuReadout(width, 9))


# mup's AdamW multiplies λ by the width, as the second rule does.
@pytest.mark.parametrize(
    ("rule", "settings"), [("mup-coupled", ["lr"]), ("mup-independent", ["lr", "weight_decay"])]
)
@pytest.mark.parametrize("width", [16, 128])
def test_rates_and_decay_are_mups_own(rule: str, settings: list[str], width: int) -> None:
    plan = RECIPE.at(width=width, rule=rule, decay_kinds=KINDS)
    model = build(width)
    mup.set_base_shapes(model, build(32), delta=build(64), do_assert=False)
    theirs = mup.MuAdamW(model.parameters(), lr=0.01, weight_decay=0.4)
    ours = AdamHC(plan.parameter_groups(model, parameter_table(build, width=width, base_width=32)))
    for name, parameter in model.named_parameters():
        found, expected = (
            next(group for group in one.param_groups if any(parameter is p for p in group["params"]))
            for one in (ours, theirs)
        )
        for setting in settings:
            assert found[setting] == pytest.approx(expected[setting], rel=1e-12), (name, setting)


@pytest.mark.parametrize("width", [16, 128])
def test_the_initialisation_is_mups_own(width: int) -> None:
    proxy = GPTConfig(width=32, embedding_std=0.5, matrix_std=2.0, readout_std=0.25)
    plan = RECIPE.model_copy(update={"proxy": proxy}).at(width=width, rule="mup-coupled")
    table = parameter_table(build, width=width, base_width=32)
    found, expected = build(width), build(width)
    mup.set_base_shapes(expected, build(32), delta=build(64), rescale_params=False, do_assert=False)
    base = {"0.weight": 0.5, "1.weight": 2 / 32**0.5, "3.weight": 2 / 96**0.5, "4.weight": 0.25}
    torch.manual_seed(0)
    for name, parameter in expected.named_parameters():
        if name in base:
            mup.init.normal_(parameter, std=base[name])
    torch.manual_seed(0)
    plan.initialise(found, table)
    for name, parameter in expected.named_parameters():
        if name in base:
            torch.testing.assert_close(dict(found.named_parameters())[name], parameter, rtol=1e-6, atol=0)


# A tied readout: its weight is the embedding's, so that the logits must be kept small by their multiplier


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("base", "width"), [(32, 32), (32, 256), (256, 256)])
def test_the_initial_loss_is_that_of_uniform_predictions(tied: bool, base: int, width: int) -> None:
    proxy = GPTConfig(width=base, context=64, tied=tied)
    config = RECIPE.model_copy(update={"proxy": proxy}).at(width=width).model
    # Of real text a tied readout knows something from the start: that a token may come again.
    x, y = torch.randint(256, (2, 16, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = F.cross_entropy(GPT(config, seed=1)(x).flatten(0, 1), y.flatten()).item()
    assert loss == pytest.approx(log(config.vocab_size), rel=0.1)


@pytest.mark.parametrize("width", [32, 128])
def test_a_tied_proxy_learns(width: int) -> None:
    proxy = GPTConfig(width=32, context=64, tied=True)
    tuned = RECIPE.hyperparameters.model_copy(update={"lr": 0.03})
    plan = RECIPE.model_copy(update={"proxy": proxy, "hyperparameters": tuned}).at(width=width)
    model = GPT(plan.model, seed=1)
    table = parameter_table(lambda w: GPT(plan.model.model_copy(update={"width": w})), width, base_width=32)
    optimizer = AdamHC(plan.parameter_groups(model, table))
    losses = [learn(model, optimizer, step, seed=1) for step in range(60)]
    assert np.mean(losses[-10:]) < log(256) - 2


# The identity: a forward multiplier a is undone by std/a, η/a, λ·a, ε·a


@pytest.mark.parametrize("multiplier", [0.125, 4.0])
def test_a_forward_multiplier_trades_exactly_against_std_rate_decay_and_eps(multiplier: float) -> None:
    expected, found = trajectory(1.0), trajectory(multiplier)
    assert len(expected) == 200
    assert expected[-1] < expected[0] - 1
    assert found == expected


def trajectory(multiplier: float) -> list[float]:
    """Return the losses of a model with a readout multiplier, and everything else of the readout against it."""
    config = GPTConfig(width=16, head_dim=8, depth=1, context=16, readout_std=0.5 / multiplier)
    model = GPT(config.model_copy(update={"readout_multiplier": multiplier}), seed=1)
    readout = [model.readout.weight]
    others = [parameter for name, parameter in model.named_parameters() if name != "readout.weight"]
    settings = {"lr": 0.01 / multiplier, "weight_decay": 0.2 * multiplier, "eps": 1e-8 * multiplier}
    groups = [
        {"params": others, "lr": 0.01, "weight_decay": 0.2, "eps": 1e-8},
        {"params": readout, **settings},
    ]
    optimizer = AdamHC(groups, decay="l2")
    return [learn(model, optimizer, step, seed=1) for step in range(200)]
