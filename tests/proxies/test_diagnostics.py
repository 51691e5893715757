"""Diagnostics: each quantity against NumPy in float64, the laws against AdamHC on noise, and their place in a run."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from widthwise.kernels import AdamHC
from widthwise.proxies import GPT, Diagnostics, Recorder, RunOptions
from widthwise.proxies import diagnostics as measure
from widthwise.proxies.noise_laws import advance_variance, advance_variance_by_steps, update_ratio_law
from widthwise.proxies.outcome import SPECTRUM_SHARES, KindDiagnostics, Metrics
from widthwise.proxies.recorder import EXACT_UP_TO
from widthwise.proxies.runs import RunSpec, run
from widthwise.proxies.validation import ConfigError

from .tiny import tiny_run

CONTEXT, STEPS = 16, 40


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def refuses(message: str) -> Any:
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


# The laws


@pytest.mark.parametrize(("lr", "decay", "start"), [(0.02, 1.0, 0.3), (0.1, 2.0, 0.0), (0.01, 0.1, 1.0)])
def test_at_constant_rates_the_law_is_the_closed_form(lr: float, decay: float, start: float) -> None:
    variance, tau, steps = start**2, lr * decay, 50
    for _ in range(steps):
        variance = advance_variance(variance, lr, tau)
    kept = (1 - tau) ** (2 * steps)
    assert variance == pytest.approx(kept * start**2 + (1 - kept) * lr / (2 * decay), rel=1e-12)


def test_without_decay_the_law_is_a_random_walk() -> None:
    variance = 0.25
    for lr in (0.1, 0.2, 0.3):
        variance = advance_variance(variance, lr, 0.0)
    assert variance == pytest.approx(0.25 + 0.01 + 0.04 + 0.09)


@pytest.mark.parametrize("steps", [0, 1, 500])
def test_many_steps_at_once_are_those_steps_one_by_one(steps: int) -> None:
    draw = np.random.default_rng(0)
    lrs, strengths = draw.uniform(0, 0.1, steps), draw.uniform(0, 1.1, steps) ** 4
    variance = 0.3
    for lr, strength in zip(lrs.tolist(), strengths.tolist(), strict=True):
        variance = advance_variance(variance, lr, strength)
    assert advance_variance_by_steps(0.3, lrs, strengths) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize(("first", "expected"), [(2.5, 0.0), (0.5, math.inf)])
def test_weights_at_zero_stay_there_under_a_decay_that_would_let_others_grow(
    first: float, expected: float
) -> None:
    lrs, strengths = np.full(1000, 0.1), np.array([first] + 999 * [4.0])
    variance = 0.0
    for lr, strength in zip(lrs.tolist(), strengths.tolist(), strict=True):
        variance = advance_variance(variance, lr, strength)
    assert advance_variance_by_steps(0.0, lrs, strengths) == variance == expected


def test_in_equilibrium_the_law_of_updates_is_the_papers() -> None:
    lr, decay, beta1 = 0.02, 0.5, 0.8
    expected = math.sqrt(2 * lr * decay * (1 - beta1) / (1 + beta1))
    assert update_ratio_law(lr / (2 * decay), lr, beta1) == pytest.approx(expected)
    assert update_ratio_law(0.0, lr, beta1) == math.inf


DECAYS: dict[str, dict[str, Any]] = {
    "l2": {"decay": "l2"},
    "l2, corrected": {"decay": "l2", "corrected": True, "max_lr": 0.04},
    "l2, scaled": {"decay": "l2", "weight_decay": 0.25, "scale": 4.0},
    "huber": {"huber_c": 1.0},
    "huber, ema": {"huber_c": 1.5, "threshold": "ema", "threshold_beta": 0.9},
    "huber-prox": {"decay": "huber-prox", "huber_c": 2.0},
}


class Noise:
    """A layer whose gradients are noise, AdamHC and a recorder."""

    def __init__(
        self, *, scale: float = 1.0, std: float = 0.2, shape: tuple[int, int] = (64, 96), **options: Any
    ) -> None:
        self.model = nn.Linear(*shape, bias=False)
        nn.init.normal_(self.model.weight, 0.0, std)
        settings = {"lr": 0.02, "weight_decay": 1.0, "decay": "l2", **options}
        self.optimizer = AdamHC([{"params": [self.model.weight], "kind": "matrix"}], **settings)
        self.optimizer.set_decay_scale({self.model.weight: scale})
        self.recorder = Recorder(self.model, self.optimizer)

    def step(self, *, lr: float = 0.02, sample: bool = True) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.model.weight.grad = 0.01 * torch.randn_like(self.model.weight)
        self.optimizer.step()
        self.recorder.after_step(sample=sample)

    def measured(self) -> KindDiagnostics:
        return self.recorder.diagnostics().kinds["matrix"]


@pytest.mark.parametrize("options", DECAYS.values(), ids=DECAYS)
def test_weights_and_updates_of_noise_follow_their_laws_at_any_learning_rate(options: dict[str, Any]) -> None:
    noise = Noise(**options)
    for step in range(400):  # constant for two decay times, then linear to zero
        noise.step(lr=0.02 * min(1.0, 2 - step / 200), sample=step % 50 >= 40)
        if step % 50 == 49:
            measured = noise.measured()
            assert measured.rms_ratio == pytest.approx(1.0, abs=0.12)
            assert measured.update_ratio_over_law == pytest.approx(1.0, abs=0.12)


def test_weights_that_a_gradient_pulls_one_way_leave_their_law() -> None:
    noise = Noise()
    direction = 0.1 * torch.randn_like(noise.model.weight)
    for _ in range(100):
        noise.model.weight.grad = direction
        noise.optimizer.step()
        noise.recorder.after_step()
    measured = noise.measured()
    assert measured.rms_ratio is not None
    assert measured.rms_ratio > 3


# Each quantity


def exact(tensor: Tensor) -> Any:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 700_000, generator=torch.Generator().manual_seed(1)),
        torch.randn(40, 30, generator=torch.Generator().manual_seed(1)).mT[::2],
        torch.full((1 << 21,), 0.1),
        torch.zeros(()),
    ],
    ids=["large", "strided", "equal", "zero"],
)
def test_the_norm_is_right_at_any_size_and_stride(tensor: Tensor) -> None:
    assert float(measure.norm(tensor)) == pytest.approx(np.sqrt(np.square(exact(tensor)).sum()), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 7])
def test_the_updates_norm_is_that_of_the_step_without_its_decay(steps: int) -> None:
    weight = nn.Parameter(torch.randn(600, 500, dtype=torch.float64))
    optimizer = AdamHC([weight], lr=0.03, betas=(0.8, 0.9), eps=0.2, decay="none")
    for _ in range(steps):
        before = weight.detach().clone()
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    found = measure.update_norm(optimizer.state[weight], (0.8, 0.9), 0.2)
    assert float(found) == pytest.approx(float((weight.detach() - before).norm()) / 0.03, rel=1e-12)


def test_kappa_is_the_share_of_the_decay_that_clipping_leaves() -> None:
    weight = torch.randn(300, 1000)
    theta = exact(weight)
    expected = (theta * theta.clip(-0.7, 0.7)).sum() / np.square(theta).sum()
    assert measure.decay_fraction(weight, 0.7) == pytest.approx(expected, rel=1e-5)
    for c in (1.0, 2.0, 3.0):
        kappa = measure.decay_fraction(weight, c * float(weight.abs().mean()))
        assert kappa == pytest.approx(math.erf(c / math.sqrt(math.pi)), abs=0.005)
    assert measure.decay_fraction(weight, math.inf) == 1.0
    assert math.isnan(measure.decay_fraction(torch.zeros(3), 0.5))


@pytest.mark.parametrize("shape", [(40, 40), (64, 16), (16, 64), (1, 9), (9, 1)])
def test_the_singular_values_are_numpys(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    everything = np.linalg.svd(exact(weight), compute_uv=False)
    expected, values = everything[0], measure.singular_values(weight)
    assert values.tolist() == pytest.approx(everything, rel=1e-4, abs=2e-3 * expected)
    assert float(values[0]) == pytest.approx(expected, rel=1e-5)
    shares = [0.0, 0.25, 0.5, 1.0]
    assert measure.spectrum(values, shares) == pytest.approx(
        np.quantile(values.numpy(), [1.0, 0.75, 0.5, 0.0]).tolist()
    )
    vector = measure.power_iteration(weight, iterations=300)
    assert float(vector.norm()) == pytest.approx(1.0, rel=1e-5)
    assert float((weight @ vector).norm()) == pytest.approx(expected, rel=1e-4)


def test_power_iteration_comes_from_below_and_goes_on_from_where_it_was() -> None:
    weight, vector = torch.randn(300, 200), None
    top, found = float(measure.singular_values(weight)[0]), [0.0]
    for _ in range(6):
        vector = measure.power_iteration(weight, vector)
        found.append(float((weight @ vector).norm()))
    assert found == sorted(found)
    assert 0.9 * top < found[1] < found[-1] <= top * (1 + 1e-6)
    assert found[-1] > 0.98 * top


def test_a_zero_matrix_has_no_direction_and_one_that_is_not_finite_no_value() -> None:
    zero = torch.zeros(5, 4)
    assert not measure.singular_values(zero).any()
    assert not measure.power_iteration(zero).any()
    again = measure.power_iteration(torch.eye(5, 4), measure.power_iteration(zero))
    assert float(again.norm()) == pytest.approx(1.0)
    assert measure.singular_values(torch.full((3, 2), math.nan)).isnan().tolist() == [True, True]


class Twice(nn.Module):
    """Has a layer that is called twice, one with a bias, and one that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6, bias=False), nn.Linear(6, 3)
        self.unused, self.dropout = nn.Linear(6, 2), nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(self.inner(torch.relu(self.inner(x)))))


def test_the_gain_is_the_ratio_of_sizes_of_outputs_without_bias_and_inputs() -> None:
    model, x = Twice(), torch.randn(5, 4, 6)
    found = measure.gains(model, x)
    first, last = exact(model.inner.weight), exact(model.outer.weight)
    one = exact(x) @ first.T
    two = np.maximum(one, 0)
    three = two @ first.T
    both = [np.mean(np.square(pair)) for pair in ((exact(x), two), (one, three))]
    assert found == {
        "inner.weight": pytest.approx(np.sqrt(both[1] / both[0]), rel=1e-5),
        "outer.weight": pytest.approx(
            np.sqrt(np.mean(np.square(three @ last.T)) / np.mean(np.square(three))), rel=1e-5
        ),
    }
    assert math.isnan(measure.gains(model, torch.zeros(1, 6))["inner.weight"])


def test_a_look_leaves_neither_hooks_nor_other_modes_behind() -> None:
    model = Twice()
    model.dropout.eval()
    modes = [module.training for module in model.modules()]
    measure.gains(model, torch.randn(2, 6))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure.gains(model, torch.randn(2, 5))
    assert [module.training for module in model.modules()] == modes
    assert [module for module in model.modules() if module._forward_hooks] == []


# The recorder


def test_the_record_is_what_the_samples_and_the_weights_are() -> None:
    noise = Noise(decay="huber", huber_c=1.5, eps=0.01, betas=(0.7, 0.8))
    weight, ratios = noise.model.weight, []
    inputs = torch.randn(8, 64)
    for step in range(6):
        noise.step(lr=0.02 / (1 + step), sample=step in (2, 3, 5))
        assert weight.grad is not None
        state, size = noise.optimizer.state[weight], np.linalg.norm(exact(weight))
        moments = [
            exact(state[name]) / (1 - beta ** (step + 1))
            for name, beta in (("exp_avg", 0.7), ("exp_avg_sq", 0.8))
        ]
        update = np.linalg.norm(0.02 / (1 + step) * moments[0] / (np.sqrt(moments[1]) + 0.01)) / size
        gradient = np.linalg.norm(exact(weight.grad))
        if step in (2, 3, 5):
            ratios.append((update, gradient / size, gradient))
    found = noise.recorder.diagnostics(inputs)
    (one,) = found.parameters.values()
    theta, x = exact(weight), exact(inputs)
    threshold = 1.5 * np.abs(theta).mean()
    update, gradient, gradient_norm = np.mean(ratios, axis=0)
    expected = {
        "kind": "matrix",
        "size": theta.size,
        "rms": np.sqrt(np.square(theta).mean()),
        "update_ratio": update,
        "gradient_to_weight": gradient,
        "top_singular_value": np.linalg.svd(theta, compute_uv=False)[0],
        "spectrum": np.quantile(
            np.linalg.svd(theta, compute_uv=False), [1 - share for share in SPECTRUM_SHARES]
        ),
        "gain": np.sqrt(np.square(x @ theta.T).mean() / np.square(x).mean()),
        "kappa": (theta * theta.clip(-threshold, threshold)).sum() / np.square(theta).sum(),
    }
    numbers = {name: pytest.approx(value, rel=1e-4) for name, value in expected.items() if name != "kind"}
    assert {name: value for name, value in asdict(one).items() if name in expected} == {**expected, **numbers}
    assert found.gradient_norm == pytest.approx(gradient_norm, rel=1e-5)


def test_the_samples_are_forgotten_and_none_is_no_number() -> None:
    noise = Noise()
    noise.step()
    assert noise.measured().update_ratio is not None
    noise.step(sample=False)
    found = noise.recorder.diagnostics()
    (one,) = found.parameters.values()
    assert (one.update_ratio, one.update_ratio_law, one.gradient_to_weight, found.gradient_norm) == (
        None,
    ) * 4
    assert one.gain is None
    assert one.rms is not None


def test_kinds_are_means_over_weights() -> None:
    model = nn.ModuleList([nn.Linear(4, 8, bias=False), nn.Linear(8, 12)])
    groups = [
        {"params": [model[0].weight, model[1].weight], "kind": "matrix"},
        {"params": [model[1].bias], "kind": "bias", "weight_decay": 0.0},
    ]
    recorder = Recorder(model, AdamHC(groups, lr=0.1, weight_decay=0.5, decay="l2"))
    found = recorder.diagnostics()
    small, large = (found.parameters[f"{index}.weight"] for index in (0, 1))
    assert small.rms is not None
    assert large.rms is not None
    assert found.kinds["matrix"].rms == pytest.approx((32 * small.rms + 96 * large.rms) / 128)
    assert found.kinds["matrix"].rms_ratio == pytest.approx(1.0)
    assert found.kinds["matrix"].kappa == 1.0
    bias = found.parameters["1.bias"]
    assert (bias.kind, bias.kappa, bias.top_singular_value, bias.gain) == ("bias", None, None, None)
    assert bias.spectrum is None
    assert set(found.kinds) == {"matrix", "bias"}


def test_large_matrices_are_measured_by_a_power_iteration_that_remembers() -> None:
    noise = Noise(shape=(EXACT_UP_TO + 20, EXACT_UP_TO + 1))
    top = np.linalg.svd(exact(noise.model.weight), compute_uv=False)[0]
    found = [noise.measured().top_singular_value or 0.0 for _ in range(5)]
    (one,) = noise.recorder.diagnostics().parameters.values()
    assert one.spectrum is None
    assert found == sorted(found)
    assert 0.97 * top < found[-1] <= top * (1 + 1e-5)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda m: torch.optim.AdamW(m.parameters()), "optimizer: must be AdamHC for diagnostics, got AdamW"),
        (
            lambda m: AdamHC(m.parameters()),
            "optimizer: group 0 must have the kind that parameter_groups gives it, for diagnostics, got None",
        ),
        (
            lambda m: AdamHC([{"params": [*m.parameters(), nn.Parameter(torch.ones(1))], "kind": "matrix"}]),
            "optimizer: must hold the model's parameters and no others for diagnostics",
        ),
    ],
    ids=["AdamW", "no kinds", "another's parameter"],
)
def test_what_cannot_be_followed_is_refused(optimizer: Callable[[nn.Module], Any], message: str) -> None:
    model = nn.Linear(3, 3)
    with refuses(message):
        Recorder(model, optimizer(model))


# In a run


def spec(**tuned: Any) -> RunSpec:
    return tiny_run(STEPS, **tuned)


OBSERVED = RunOptions(seed=3, evaluations=4, validation_batches=1, diagnostics=True)


def diagnosed(metrics: Metrics) -> Diagnostics:
    assert metrics.diagnostics is not None
    return metrics.diagnostics


def test_a_run_learns_the_same_with_and_without_diagnostics(tmp_path: Path) -> None:
    with_them = run(spec(), replace(OBSERVED, checkpoint=tmp_path / "with"))
    options = replace(OBSERVED, diagnostics=False, checkpoint=tmp_path / "without")
    without = run(spec(), options)
    assert [one.loss for one in with_them.history] == [one.loss for one in without.history]
    assert [one.diagnostics for one in without.history] == [None] * 4
    one, other = (torch.load(tmp_path / name) for name in ("with", "without"))
    for part in ("model", "optimizer"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


def test_every_parameter_is_measured_at_every_evaluation() -> None:
    history = run(spec(), OBSERVED).history
    names = dict(GPT(spec().model).named_parameters())
    for metrics in history:
        found = diagnosed(metrics)
        assert list(found.parameters) == list(names)
        assert set(found.kinds) == {"matrix", "embedding", "readout"}
        missing = {
            (one.kind, field.name)
            for one in found.parameters.values()
            for field in fields(one)
            if getattr(one, field.name) is None
        }
        assert missing == {("embedding", "gain"), ("embedding", "kappa"), ("readout", "kappa")}
    assert json.loads(json.dumps(asdict(history[-1]), allow_nan=False)) == asdict(history[-1])


def test_the_gradient_norm_is_what_the_optimizer_measures() -> None:
    history = run(spec(clip_norm=0.5), replace(OBSERVED, evaluations=STEPS)).history
    measured = [diagnosed(one).gradient_norm for one in history]
    assert measured == pytest.approx([one.grad_norm for one in history], rel=1e-5)


@pytest.mark.parametrize("decay", [{}, {"threshold": "ema"}, {"decay": "l2"}], ids=["huber", "ema", "l2"])
def test_the_diagnostics_of_a_resumed_run_are_those_of_an_undisturbed_one(
    decay: dict[str, Any], tmp_path: Path
) -> None:
    options = replace(OBSERVED, evaluations=10)
    straight = run(spec(**decay), options)
    halved = replace(options, checkpoint=tmp_path / "run")
    run(spec(**decay), halved, lambda metrics: metrics.step >= 20)
    resumed = run(spec(**decay), halved)
    assert [one.diagnostics for one in resumed.history] == [one.diagnostics for one in straight.history]


def test_a_run_that_was_begun_without_diagnostics_has_them_from_its_resumption(tmp_path: Path) -> None:
    off = replace(OBSERVED, diagnostics=False, checkpoint=tmp_path / "run")
    run(spec(), off, lambda metrics: metrics.step >= 20)
    resumed = run(spec(), replace(OBSERVED, checkpoint=tmp_path / "run"))
    assert [one.diagnostics is None for one in resumed.history] == [True, True, False, False]


def test_a_run_that_diverges_is_still_json() -> None:
    result = run(spec(lr=1e30), replace(OBSERVED, evaluations=STEPS))
    assert result.status == "diverged"
    for metrics in result.history:
        json.dumps(asdict(diagnosed(metrics)), allow_nan=False)
