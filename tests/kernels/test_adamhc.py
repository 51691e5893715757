"""The books that AdamHC keeps: state, groups, thresholds, clipping, skipped steps, copies and schedules."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from widthwise import kernels
from widthwise.kernels import AdamHC

pytestmark = pytest.mark.usefixtures("backend")

OPTIONS: dict[str, Any] = {
    "lr": 0.05,
    "betas": (0.8, 0.9),
    "eps": 1e-4,
    "weight_decay": 0.6,
    "huber_c": 1.2,
    "threshold": "ema",
    "threshold_beta": 0.7,
    "corrected": True,
}
HUBER = ["huber", "huber-prox"]


def parameters(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in [(6, 4), (9,)]]


def fill_gradients(params: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def run(optimizer: AdamHC, params: list[Tensor], seeds: range) -> None:
    for seed in seeds:
        fill_gradients(params, seed)
        optimizer.step()


def snapshot(optimizer: AdamHC, params: list[Tensor]) -> list[tuple[Tensor, dict[str, Any]]]:
    return [(param.detach().clone(), copy.deepcopy(dict(optimizer.state[param]))) for param in params]


def assert_same(
    first: list[tuple[Tensor, dict[str, Any]]],
    second: list[tuple[Tensor, dict[str, Any]]],
    tolerance: float = 0.0,
) -> None:
    """Assert equality of parameters and of the whole state, bit for bit unless a tolerance is given."""
    for (weights, state), (other_weights, other_state) in zip(first, second, strict=True):
        torch.testing.assert_close(
            weights, other_weights, rtol=tolerance, atol=tolerance / 10, equal_nan=True
        )
        torch.testing.assert_close(state, other_state, rtol=tolerance, atol=tolerance / 10, equal_nan=True)


def test_the_public_names() -> None:
    assert kernels.__all__ == ["SGDC", "AdamHC"]
    assert all(hasattr(kernels, name) for name in kernels.__all__)


def test_the_defaults_of_a_group() -> None:
    params = parameters()
    (group,) = AdamHC(params).param_groups
    assert group.pop("params") == params
    assert group == {
        "lr": 1e-3,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "decay": "huber",
        "huber_c": 2.0,
        "threshold": "mean",
        "threshold_beta": 0.99,
        "corrected": False,
        "max_lr": 1e-3,
    }


def test_groups_have_their_own_peaks_and_options() -> None:
    a, b = parameters()
    optimizer = AdamHC(
        [{"params": [a], "lr": 0.3, "name": "first"}, {"params": [b], "max_lr": 0.9}], **OPTIONS
    )
    optimizer.add_param_group({"params": [parameters(1)[0]], "lr": 0.02, "decay": "l2"})
    peaks = [group["max_lr"] for group in optimizer.param_groups]
    assert peaks == [0.3, 0.9, 0.02]
    assert optimizer.param_groups[0]["name"] == "first"
    assert [group["decay"] for group in optimizer.param_groups] == ["huber", "huber", "l2"]


def test_named_parameters() -> None:
    layer = nn.Linear(3, 2)
    assert AdamHC(layer.named_parameters(), **OPTIONS).param_groups[0]["param_names"] == ["weight", "bias"]


def test_groups_do_not_mix() -> None:
    """Two groups in one optimizer are two optimizers."""
    together, apart = parameters(), parameters()
    groups = [
        {"params": [together[0]], "decay": "huber-prox"},
        {"params": [together[1]], "lr": 0.01, "eps": 0.1},
    ]
    one = AdamHC(groups, **OPTIONS)
    two = AdamHC([apart[0]], **{**OPTIONS, "decay": "huber-prox"})
    three = AdamHC([apart[1]], **{**OPTIONS, "lr": 0.01, "eps": 0.1})
    for seed in range(3):
        fill_gradients(together, seed)
        fill_gradients(apart, seed)
        for optimizer in (one, two, three):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize("decay", HUBER)
def test_the_kept_mean_is_that_of_the_weights(decay: str) -> None:
    params = parameters()
    optimizer = AdamHC(params, **{**OPTIONS, "decay": decay})
    run(optimizer, params, range(3))
    for param in params:
        assert optimizer.state[param]["abs_mean"].item() == pytest.approx(param.abs().mean().item(), rel=1e-6)
        assert optimizer.state[param]["nonfinite"].item() == 0


def test_without_huber_no_mean_is_kept() -> None:
    params = parameters()
    optimizer = AdamHC(params, **{**OPTIONS, "decay": "l2"})
    run(optimizer, params, range(2))
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}


def edit_in_place(param: Tensor) -> None:
    with torch.no_grad():
        param.mul_(3.0)


def replace_data(param: Tensor) -> None:
    param.data = param.data * 3.0


@pytest.mark.parametrize("edit", [edit_in_place, replace_data])
def test_an_outside_edit_is_measured(edit: Callable[[Tensor], None]) -> None:
    params = parameters()
    optimizer = AdamHC(params, **{**OPTIONS, "threshold": "mean", "corrected": False})
    run(optimizer, params, range(2))
    before = params[0].detach().clone()
    edit(params[0])
    assert_step_has_threshold_of(optimizer, params, before * 3.0)


def test_an_edit_through_data_needs_remeasure() -> None:
    params = parameters()
    optimizer = AdamHC(params, **{**OPTIONS, "threshold": "mean", "corrected": False})
    run(optimizer, params, range(2))
    before = params[0].detach().clone()
    params[0].data.mul_(3.0)
    optimizer.remeasure()
    assert_step_has_threshold_of(optimizer, params, before * 3.0)


def test_loading_a_state_measures_the_present_weights() -> None:
    params = parameters()
    optimizer = AdamHC(params, **{**OPTIONS, "threshold": "mean", "corrected": False})
    run(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    edit_in_place(params[0])
    run(optimizer, params, range(2, 3))
    optimizer.load_state_dict(saved)
    assert_step_has_threshold_of(optimizer, params, params[0].detach().clone())


def assert_step_has_threshold_of(optimizer: AdamHC, params: list[Tensor], edited: Tensor) -> None:
    """Do a step without gradient and momentum: what moves the weights is the decay alone."""
    for param in params:
        param.grad = torch.zeros_like(param)
        optimizer.state[param]["exp_avg"].zero_()
    optimizer.step()
    delta = OPTIONS["huber_c"] * edited.abs().mean()
    expected = edited - OPTIONS["lr"] * OPTIONS["weight_decay"] * edited.clamp(-delta, delta)
    torch.testing.assert_close(params[0].detach(), expected, rtol=1e-6, atol=1e-7)


def test_a_not_finite_gradient_shows_and_the_threshold_is_held() -> None:
    params = parameters()
    optimizer = AdamHC(params, **OPTIONS)
    run(optimizer, params, range(2))
    state = optimizer.state[params[0]]
    mean = state["abs_mean"].clone()
    fill_gradients(params, 2)
    params[0].grad[0, 0] = math.nan
    optimizer.step()
    average = state["threshold_ema"].clone()
    assert params[0][0, 0].isnan()
    assert params[0].isnan().sum() == 1
    assert (state["nonfinite"].item(), state["abs_mean"].item()) == (1.0, mean.item())
    run(optimizer, params, range(3, 4))
    assert (state["nonfinite"].item(), state["threshold_ema"].item()) == (1.0, average.item())
    assert optimizer.state[params[1]]["nonfinite"].item() == 0
    with torch.no_grad():
        params[0][0, 0] = 0.0
    state["exp_avg"][0, 0] = state["exp_avg_sq"][0, 0] = 0.0
    run(optimizer, params, range(4, 5))
    assert state["nonfinite"].item() == 0
    assert state["threshold_ema"].item() != average.item()


def test_a_skipped_step_changes_nothing(backend: str) -> None:
    params = parameters()
    optimizer = AdamHC(params, **OPTIONS, clip_norm=0.5)
    run(optimizer, params, range(2))
    before = snapshot(optimizer, params)
    optimizer.found_inf = torch.ones(())
    run(optimizer, params, range(2, 3))
    assert_same(before, snapshot(optimizer, params))
    if backend != "cuda":  # which does not wait to learn that the step is skipped
        assert optimizer.grad_norm is None


def test_a_skipped_first_step_makes_no_state() -> None:
    params = parameters()
    optimizer = AdamHC(params, **OPTIONS)
    optimizer.found_inf = torch.ones(())
    run(optimizer, params, range(1))
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_the_gradient_scale_is_divided_out(clip_norm: float | None) -> None:
    plain, scaled = parameters(), parameters()
    first, second = (AdamHC(params, **OPTIONS, clip_norm=clip_norm) for params in (plain, scaled))
    second.grad_scale = torch.tensor(1024.0)
    for seed in range(3):
        fill_gradients(plain, seed)
        fill_gradients(scaled, seed)
        for param in scaled:
            param.grad *= 1024.0
        first.step()
        second.step()
    # A power of two scales without rounding; the 1e-6 of the clip factor is that of the true norm.
    assert_same(snapshot(first, plain), snapshot(second, scaled))


def test_with_torch_gradscaler() -> None:
    (weights,) = [torch.ones(4, requires_grad=True)]
    optimizer = AdamHC([weights], **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for factor in (1.0, math.inf, 2.0):
        optimizer.zero_grad()
        scaler.scale((factor * weights).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    state = optimizer.state[weights]
    assert scaler.get_scale() == 512.0
    assert state["step"].item() == 2
    torch.testing.assert_close(state["exp_avg"], torch.full((4,), 0.8 * 0.2 * 1.0 + 0.2 * 2.0))
    assert weights.isfinite().all()


@pytest.mark.parametrize("clip_norm", [0.3, 1e6, math.inf])
def test_clipping_is_that_of_clip_grad_norm(clip_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    groups = [{"params": [ours[0]]}, {"params": [ours[1]], "lr": 0.01}]
    optimizer = AdamHC(groups, **OPTIONS, clip_norm=clip_norm)
    other = AdamHC([{"params": [theirs[0]]}, {"params": [theirs[1]], "lr": 0.01}], **OPTIONS)
    for seed in range(3):
        fill_gradients(ours, seed)
        fill_gradients(theirs, seed)
        gradients = [param.grad.clone() for param in ours]
        optimizer.step()
        norm = torch.nn.utils.clip_grad_norm_(theirs, clip_norm)
        torch.testing.assert_close(optimizer.grad_norm, norm, rtol=2e-7, atol=0)
        other.step()
        assert all(torch.equal(param.grad, gradient) for param, gradient in zip(ours, gradients, strict=True))
    assert_same(snapshot(optimizer, ours), snapshot(other, theirs), 1e-6)


def test_the_norm_is_not_computed_without_clipping() -> None:
    params = parameters()
    optimizer = AdamHC(params, **OPTIONS)
    run(optimizer, params, range(1))
    assert optimizer.grad_norm is None


def test_a_not_finite_norm_shows_everywhere() -> None:
    params = parameters()
    optimizer = AdamHC(params, **OPTIONS, clip_norm=0.3)
    fill_gradients(params, 0)
    params[0].grad[0, 0] = math.nan
    optimizer.step()
    assert all(param.isnan().all() for param in params)


@pytest.mark.parametrize("decay", ["l2", *HUBER])
def test_decay_scales(decay: str) -> None:
    scaled, plain = parameters(), parameters()
    first = AdamHC(scaled, **{**OPTIONS, "decay": decay})
    first.set_decay_scale({scaled[0]: 2.0, scaled[1]: 0.5})
    groups = [{"params": [plain[0]], "weight_decay": 1.2}, {"params": [plain[1]], "weight_decay": 0.3}]
    second = AdamHC(groups, **{**OPTIONS, "decay": decay})
    run(first, scaled, range(3))
    run(second, plain, range(3))
    for a, b in zip(scaled, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert first.state_dict()["state"][0]["decay_scale"] == 2.0


def round_trip(optimizer: AdamHC, params: list[Tensor]) -> tuple[AdamHC, list[Tensor]]:
    """Save and load the weights and the state dict, as a checkpoint does."""
    file = io.BytesIO()
    torch.save((params, optimizer.state_dict()), file)
    file.seek(0)
    loaded, state = torch.load(file)
    fresh = AdamHC([torch.zeros_like(param).requires_grad_() for param in params], lr=9.0, clip_norm=2.0)
    fresh.load_state_dict(state)
    own = fresh.param_groups[0]["params"]
    with torch.no_grad():
        for param, weights in zip(own, loaded, strict=True):
            param.copy_(weights)
    return fresh, own


def deep_copy(optimizer: AdamHC, params: list[Tensor]) -> tuple[AdamHC, list[Tensor]]:
    return copy.deepcopy((optimizer, params))


def pickled(optimizer: AdamHC, params: list[Tensor]) -> tuple[AdamHC, list[Tensor]]:
    return pickle.loads(pickle.dumps((optimizer, params)))


@pytest.mark.parametrize("copied", [round_trip, deep_copy, pickled])
@pytest.mark.parametrize("decay", ["none", "l2", *HUBER])
@pytest.mark.parametrize("threshold", ["mean", "ema"])
def test_a_copy_continues_bit_for_bit(copied: Any, decay: str, threshold: str, backend: str) -> None:
    params = parameters()
    optimizer = AdamHC(params, **{**OPTIONS, "decay": decay, "threshold": threshold}, clip_norm=2.0)
    optimizer.set_decay_scale({params[0]: 3.0})
    run(optimizer, params, range(3))
    optimizer.param_groups[0]["lr"] = 0.02
    other, own = copied(optimizer, params)
    run(optimizer, params, range(3, 6))
    run(other, own, range(3, 6))
    assert_same(snapshot(optimizer, params), snapshot(other, own))
    assert other.param_groups[0]["max_lr"] == 0.05
    assert (other.clip_norm, other.backend) == (2.0, backend)


def test_loads_a_checkpoint_of_torch_adamw() -> None:
    params = parameters()
    adamw = torch.optim.AdamW(params, lr=0.03, betas=(0.8, 0.9), weight_decay=0.4)
    fill_gradients(params, 0)
    adamw.step()
    optimizer = AdamHC(params, **OPTIONS)
    optimizer.load_state_dict(adamw.state_dict())
    run(optimizer, params, range(1, 2))
    assert optimizer.state[params[0]]["step"].item() == 2
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["decay"], group["max_lr"]) == (0.03, 0.4, "huber", 0.05)


def test_a_schedule_drives_the_correction() -> None:
    """Without gradient the weights shrink by the factor 1 − η·λ·η/η_max."""
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    weights.grad = torch.zeros_like(weights)
    optimizer = AdamHC([weights], **{**OPTIONS, "decay": "l2"})
    factors = [0.25, 1.0, 0.5]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: [*factors, 0.1][t])
    expected = 1.0
    for factor in factors:
        optimizer.step()
        scheduler.step()
        expected *= 1 - (0.05 * factor) * 0.6 * factor
    assert optimizer.param_groups[0]["max_lr"] == 0.05
    torch.testing.assert_close(weights.detach(), torch.full_like(weights, expected), rtol=1e-14, atol=0)


def test_onecycle_sets_the_peak() -> None:
    """OneCycleLR writes `max_lr` into the groups, and it means the same."""
    params = parameters()
    optimizer = AdamHC(params, **OPTIONS)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=5)
    for seed in range(4):
        run(optimizer, params, range(seed, seed + 1))
        scheduler.step()
    assert optimizer.param_groups[0]["max_lr"] == 0.4


def test_a_tensor_learning_rate() -> None:
    ours, theirs = parameters(), parameters()
    rate = torch.tensor(0.05, dtype=torch.float64)
    first, second = AdamHC(ours, **{**OPTIONS, "lr": rate}), AdamHC(theirs, **OPTIONS)
    run(first, ours, range(2))
    run(second, theirs, range(2))
    rate.fill_(0.01)
    second.param_groups[0]["lr"] = 0.01
    run(first, ours, range(2, 4))
    run(second, theirs, range(2, 4))
    assert_same(snapshot(first, ours), snapshot(second, theirs))
    assert first.param_groups[0]["max_lr"] == 0.05


@pytest.mark.parametrize("decay", ["l2", *HUBER])
def test_gradients_in_other_strides(decay: str) -> None:
    ours, theirs = parameters(), parameters()
    first, second = (AdamHC(params, **{**OPTIONS, "decay": decay}) for params in (ours, theirs))
    for seed in range(3):
        fill_gradients(ours, seed)
        fill_gradients(theirs, seed)
        ours[0].grad = ours[0].grad.t().contiguous().t()
        assert ours[0].grad.stride() != ours[0].stride()
        first.step()
        second.step()
    assert_same(snapshot(first, ours), snapshot(second, theirs))


def test_a_parameter_in_other_strides() -> None:
    plain = parameters()
    turned = [
        plain[0].detach().t().contiguous().t().requires_grad_(),
        plain[1].detach().clone().requires_grad_(),
    ]
    first, second = AdamHC(plain, **OPTIONS), AdamHC(turned, **OPTIONS)
    run(first, plain, range(3))
    run(second, turned, range(3))
    # The CPU back end leaves `turned` to the reference, a few roundings away.
    tolerance = 0.0 if first.backend == "reference" else 1e-5
    assert_same(snapshot(first, plain), snapshot(second, turned), tolerance)


def test_empty_tensors_and_missing_gradients_are_passed_over() -> None:
    weights, idle, empty = *parameters(), torch.zeros(0, 3, requires_grad=True)
    optimizer = AdamHC([empty, weights, idle], **OPTIONS, clip_norm=1.0)
    before = idle.detach().clone()
    weights.grad, empty.grad = torch.ones_like(weights), torch.zeros_like(empty)
    optimizer.step()
    assert list(optimizer.state) == [weights]
    assert torch.equal(idle, before)
    idle.grad = torch.ones_like(idle)
    optimizer.step()
    assert [optimizer.state[param]["step"].item() for param in (weights, idle)] == [2, 1]


def test_single_and_double_precision_in_one_group() -> None:
    single, double = parameters()[0], parameters()[0].detach().double().requires_grad_()
    optimizer = AdamHC([single, double], **OPTIONS, clip_norm=0.3)
    for seed in range(3):
        fill_gradients([single], seed)
        double.grad = single.grad.double()
        optimizer.step()
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)
    assert all(optimizer.state[double][name].dtype == torch.float64 for name in ("exp_avg", "abs_mean"))


def test_closures_and_zero_grad() -> None:
    weights = torch.full((3,), 2.0, requires_grad=True)
    optimizer = AdamHC([weights], **OPTIONS)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weights.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[0] == 12.0
    assert losses == sorted(losses, reverse=True)
    optimizer.zero_grad()
    assert weights.grad is None


def test_a_compiled_model() -> None:
    """Its parameters are the model's own, and a step within what is compiled is left as it is; "eager" spares
    the compiler.
    """
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    inner = copy.deepcopy(plain)
    compiled = torch.compile(inner, backend="eager")
    assert all(a is b for a, b in zip(compiled.parameters(), inner.parameters(), strict=True))
    for model in (plain, compiled):
        optimizer = AdamHC(model.parameters(), **OPTIONS, clip_norm=0.5)
        step = optimizer.step if model is plain else torch.compile(optimizer.step, backend="eager")
        for seed in range(3):
            optimizer.zero_grad()
            inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
            model(inputs).square().mean().backward()
            step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), inner.parameters(), strict=True))


def test_many_steps_fit_a_line() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(64, 5, generator=generator), torch.randn(5, 1, generator=generator)
    weights = torch.zeros(5, 1, requires_grad=True)
    optimizer = AdamHC([weights], lr=0.1, weight_decay=1e-4, corrected=True, clip_norm=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        optimizer.zero_grad()
        (inputs @ (weights - target)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(weights.detach(), target, rtol=0, atol=1e-3)
