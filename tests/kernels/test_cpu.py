"""The CPU back end beside the reference, its threads, its memory and what it leaves to the reference."""

import copy
import math
import weakref
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from widthwise.kernels import SGDC, AdamHC, cpu, reference

from .options import OPTIONS

pytestmark = pytest.mark.compiler

CHUNK = 1 << 14  # of csrc/cpu.cpp
DECAYS = ["none", "l2", "huber", "huber-prox"]
AROUND_CHUNKS = [
    *(1, 7, 8, 15, 16, 17, 1023, 1024, 1025, 4095, 4096, 4097),
    *(CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5),
]


@pytest.fixture(autouse=True)
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weights(sizes: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(0.1 * torch.randn(size, generator=generator) ** 3).requires_grad_() for size in sizes]


def step(optimizer: AdamHC, seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    optimizer.step()


def trained(backend: str, sizes: list[int], steps: int = 3, **options: Any) -> AdamHC:
    params = weights(sizes)
    optimizer = AdamHC(params, **OPTIONS | options, backend=backend)
    optimizer.set_decay_scale({params[0]: 1.7, params[-1]: 0.4})
    for seed in range(steps):
        step(optimizer, seed)
    return optimizer


def contents(optimizer: AdamHC) -> list[dict[str, Tensor]]:
    """Return weights and state of each parameter, by name."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [{"weights": param.detach(), **optimizer.state.get(param, {})} for param in params]


def assert_same_bits(first: AdamHC, second: AdamHC) -> None:
    for own, other in zip(contents(first), contents(second), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0, equal_nan=True)


def assert_close(first: AdamHC, second: AdamHC) -> None:
    """Assert that weights and state are a few roundings apart, on the scale of what was added up."""
    own, other = contents(first), contents(second)
    assert [list(entry) for entry in own] == [list(entry) for entry in other]
    for name in {name for entry in other for name in entry}:
        actual, expected = (
            torch.cat([torch.as_tensor(entry[name]).flatten() for entry in entries if name in entry])
            for entries in (own, other)
        )
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=3e-7 * scale)


@pytest.mark.parametrize("threshold", ["mean", "ema"])
@pytest.mark.parametrize("decay", DECAYS)
def test_equals_the_reference(decay: str, threshold: str) -> None:
    """In weights and the whole state, around every boundary of blocks and chunks."""
    clip_norm = 0.5 if threshold == "ema" else None
    options = {"decay": decay, "threshold": threshold, "clip_norm": clip_norm}
    first, second = (trained(backend, AROUND_CHUNKS, **options) for backend in ("cpu", "reference"))
    assert (first.backend, second.backend) == ("cpu", "reference")
    assert_close(first, second)


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.3, 0.4), (0.999, 0.9999)])
def test_equals_the_reference_at_other_betas(betas: tuple[float, float]) -> None:
    assert_close(*(trained(backend, [1000, 3], betas=betas) for backend in ("cpu", "reference")))


@pytest.mark.parametrize("decay", DECAYS)
def test_an_element_is_its_formula_to_the_bit(decay: str) -> None:
    """Each operation rounds once, in the order of csrc/adamhc.h: no compiler may fuse or reorder."""
    (theta,) = weights([5000])
    old = theta.detach().clone()
    theta.grad = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    optimizer = AdamHC([theta], **OPTIONS | {"decay": decay, "threshold": "mean"}, backend="cpu")
    optimizer.step()
    lr, (beta1, beta2) = OPTIONS["lr"], OPTIONS["betas"]
    tau = lr * OPTIONS["weight_decay"] * lr / OPTIONS["max_lr"]
    rest1, rest2, step_size, root_scale, eps, tau, shrink = np.float32(
        [1 - beta1, 1 - beta2, lr / (1 - beta1), 1 / np.sqrt(1 - beta2), OPTIONS["eps"], tau, 1 / (1 + tau)]
    )
    delta = np.float32(OPTIONS["huber_c"]) * cpu.abs_means([old])[0].numpy()
    # NumPy, because torch.sqrt is not correctly rounded.
    old, grad = old.numpy(), theta.grad.numpy()
    m, v = rest1 * grad, rest2 * grad * grad
    descent = step_size * m / (np.sqrt(v) * root_scale + eps)
    moved = old - descent
    expected = {
        "none": moved,
        "l2": old - tau * old - descent,
        "huber": old - tau * old.clip(-delta, delta) - descent,
        "huber-prox": moved - tau * (moved * shrink).clip(-delta, delta),
    }
    np.testing.assert_array_equal(theta.detach().numpy(), expected[decay])


@pytest.mark.parametrize("decay", DECAYS)
def test_the_bits_do_not_depend_on_the_threads(decay: str) -> None:
    one_and_two = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        one_and_two.append(trained("cpu", [3 * CHUNK + 5, 70, 2 * CHUNK], decay=decay))
    assert_same_bits(one_and_two[0], one_and_two[1])
    assert_same_bits(one_and_two[1], one_and_two[2])


def test_the_mean_of_a_step_is_the_measured_one() -> None:
    optimizer = trained("cpu", AROUND_CHUNKS)
    params = optimizer.param_groups[0]["params"]
    kept = torch.stack([optimizer.state[param]["abs_mean"] for param in params])
    assert torch.equal(kept, cpu.abs_means(params))
    exact = torch.stack([param.detach().double().abs().mean() for param in params])
    torch.testing.assert_close(kept.double(), exact, rtol=1e-7, atol=0)


def test_the_mean_of_millions_of_equal_weights() -> None:
    mean = cpu.abs_means([torch.full((3_000_017,), 0.1)]).item()
    assert mean == pytest.approx(torch.tensor(0.1).item(), rel=3e-7)


@pytest.mark.parametrize(("source", "target"), [("cpu", "reference"), ("reference", "cpu")])
def test_a_state_moves_between_back_ends(source: str, target: str) -> None:
    started = trained(source, [300, 4097])
    state = copy.deepcopy(started.state_dict())
    moved = AdamHC([p.detach().clone().requires_grad_() for p in weights([300, 4097])], backend=target)
    moved.load_state_dict(state)
    with torch.no_grad():
        for own, other in zip(contents(moved), contents(started), strict=True):
            own["weights"].copy_(other["weights"])
    for seed in range(3, 6):
        step(started, seed)
        step(moved, seed)
    assert_close(started, moved)


def test_a_state_in_other_dtypes_and_strides_is_put_into_shape() -> None:
    """As a checkpoint of a parameter in other strides has it, or an old one with a plain number for `step`."""
    params = [weights([24])[0].detach().view(4, 6).requires_grad_() for _ in range(2)]
    odd, even = (AdamHC([param], **OPTIONS, backend="cpu") for param in params)
    for optimizer in (odd, even):
        step(optimizer, 0)
    state = odd.state[params[0]]
    state["exp_avg"] = state["exp_avg"].t().contiguous().t()
    state["exp_avg_sq"] = state["exp_avg_sq"].double()
    state["step"] = 1
    for optimizer in (odd, even):
        step(optimizer, 1)
    assert_same_bits(odd, even)


def test_a_state_of_another_shape_is_refused() -> None:
    optimizer = trained("cpu", [24])
    (param,) = optimizer.param_groups[0]["params"]
    optimizer.state[param]["exp_avg"] = torch.zeros(23)
    text = r"^state: exp_avg must have the shape of its parameter, \(24,\), got \(23,\)$"
    with pytest.raises(ValueError, match=text):
        step(optimizer, 3)


def test_a_gradient_left_from_another_shape_is_refused() -> None:
    (param,) = weights([24])
    optimizer = AdamHC([param], **OPTIONS, backend="cpu")
    param.grad = torch.ones(24)
    param.data = torch.zeros(6, 5)
    text = r"^gradient: must have the shape of its parameter, \(6, 5\), got \(24,\)$"
    with pytest.raises(ValueError, match=text):
        optimizer.step()


def test_replaced_memory_is_found() -> None:
    """Weights, moments and scalars that live elsewhere, or anew, after the plan of a step was made."""
    changed, plain = trained("cpu", [5000, 30]), trained("cpu", [5000, 30])
    names = ["exp_avg", "exp_avg_sq", "step", "abs_mean", "threshold_ema"]
    for turn, name in enumerate([*names, "exp_avg.data", "exp_avg_sq.data", "data"]):
        (param, _) = changed.param_groups[0]["params"]
        own = changed.state[param]
        if name == "data":
            param.data = param.data.clone()
        elif name.endswith(".data"):
            moment = own[name.removesuffix(".data")]
            moment.data = moment.data.clone()
        else:
            own[name] = own[name].clone()
        step(changed, turn)
        step(plain, turn)
    changed.state[param] = dict(changed.state[param])
    step(changed, 9)
    step(plain, 9)
    assert_same_bits(changed, plain)


def test_a_reset_state_is_begun_again() -> None:
    first, second = (trained(backend, [500, 20]) for backend in ("cpu", "reference"))
    for optimizer in (first, second):
        optimizer.state = defaultdict(dict)
        step(optimizer, 3)
        optimizer.state.clear()
        step(optimizer, 4)
    assert first.state[first.param_groups[0]["params"][0]]["step"].item() == 1
    assert_close(first, second)


def test_changed_options_are_followed() -> None:
    """Every option may change between steps, as in the reference."""
    first, second = (trained(backend, [500, 20]) for backend in ("cpu", "reference"))
    changes: list[dict[str, Any]] = [
        {"decay": "l2"},
        {"decay": "huber-prox", "threshold": "mean"},
        {"lr": 0.001, "corrected": False},
        {"betas": (0.5, 0.6), "eps": 1e-3},
        {"weight_decay": 2.0, "huber_c": math.inf, "decay": "huber"},
    ]
    for turn, change in enumerate(changes):
        for optimizer in (first, second):
            optimizer.param_groups[0].update(change)
            step(optimizer, turn)
        assert_close(first, second)
    for optimizer in (first, second):
        optimizer.set_decay_scale({optimizer.param_groups[0]["params"][0]: 9.0})
        optimizer.add_param_group({"params": weights([40], seed=5), "lr": 0.1})
        step(optimizer, 9)
    assert_close(first, second)


def test_parameters_that_come_and_go() -> None:
    """A missing gradient skips its parameter, whose mean stays known; what comes later is stepped."""
    first, second = (trained(backend, [500, 20, 30]) for backend in ("cpu", "reference"))
    for seed in range(6):
        for optimizer in (first, second):
            params = optimizer.param_groups[0]["params"]
            for index, param in enumerate(params):
                generator = torch.Generator().manual_seed(seed)
                grad = torch.randn(param.shape, generator=generator)
                param.grad = grad if (seed >> index) & 1 else None
            optimizer.step()
    assert_close(first, second)


def test_the_version_counter_moves() -> None:
    """Autograd finds out that saved weights have changed, and AdamHC that nobody else changed them."""
    (theta,) = weights([10])
    optimizer = AdamHC([theta], **OPTIONS, backend="cpu")
    loss = (theta * theta).sum()
    step(optimizer, 0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_rest_is_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    single, turned = weights([12])[0], weights([12])[0].detach().view(3, 4).t().requires_grad_()
    double = weights([12])[0].detach().double().requires_grad_()
    assert [cpu.fits(param) for param in (single, turned, double)] == [True, False, False]
    taken: list[int] = []
    update = reference.update

    def counted(batch: reference.Batch, *options: Any) -> None:
        taken.append(len(batch.params))
        update(batch, *options)

    monkeypatch.setattr(reference, "update", counted)
    optimizer = AdamHC([single, turned, double], **OPTIONS, backend="cpu")
    for seed in range(2):
        step(optimizer, seed)
    assert taken == [1, 1, 1, 1]
    assert [optimizer.state[param]["step"].item() for param in (single, turned, double)] == [2, 2, 2]


def test_gradients_of_other_strides_and_dtypes_are_copied_and_left_alone() -> None:
    plain, odd = (weights([12])[0].detach().view(3, 4).requires_grad_() for _ in range(2))
    first, second = (AdamHC([param], **OPTIONS, backend="cpu") for param in (plain, odd))
    grads = torch.arange(12.0).view(4, 3)
    for turn in range(2):
        plain.grad = grads.t().contiguous()
        odd.grad = torch.stack([grads, grads], dim=-1)[..., turn].t()
        assert not odd.grad.is_contiguous()
        first.step()
        second.step()
    assert_same_bits(first, second)
    assert torch.equal(odd.grad, grads.t())


def test_a_step_keeps_no_gradient_alive() -> None:
    optimizer = trained("cpu", [500, 20])
    gradients = []
    for param in optimizer.param_groups[0]["params"]:
        gradients.append(weakref.ref(param.grad))
    optimizer.step()
    optimizer.zero_grad()
    assert [gradient() for gradient in gradients] == [None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_the_gradients(dtype: torch.dtype) -> None:
    """In one read of them, the same for any number of threads, and without overflow."""
    params = [param.detach().to(dtype).requires_grad_() for param in weights(AROUND_CHUNKS)]
    optimizer = AdamHC(params, **OPTIONS, clip_norm=1.0, backend="cpu")
    norms = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        step(optimizer, 0)
        norms.append(optimizer.grad_norm)
    exact = torch.cat([param.grad.double().flatten() for param in params]).norm()
    assert torch.equal(*norms)
    torch.testing.assert_close(norms[0].double(), exact, rtol=1e-7, atol=0)
    for param in params:
        param.grad.fill_(1e25)
    optimizer.step()
    assert optimizer.grad_norm.isfinite()


def test_the_norm_is_over_all_parameters() -> None:
    """Those that are left to the reference too."""
    single, double = weights([1000])[0], weights([30])[0].detach().double().requires_grad_()
    optimizer = AdamHC([single, double], **OPTIONS, clip_norm=1.0, backend="cpu")
    step(optimizer, 0)
    exact = torch.cat([single.grad.double(), double.grad]).norm()
    torch.testing.assert_close(optimizer.grad_norm.double(), exact, rtol=1e-7, atol=0)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    """Untouched memory takes no room: the last element alone is more than a page of zeros."""
    huge = torch.zeros((1 << 31) + 5, dtype=torch.bfloat16)
    huge[-1] = 2.0**31
    assert cpu.abs_means([huge]).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.slow
def test_a_step_of_more_than_2_to_the_31_elements() -> None:
    """What lies beyond moves, and nothing else; the gradient's zeros take no room, the weights 4.3 GB."""
    beyond = (1 << 31) + 5
    theta, grad = (torch.zeros(beyond + 3, dtype=torch.bfloat16) for _ in range(2))
    theta[beyond:], grad[beyond:] = 1.0, 0.5
    theta.requires_grad_().grad = grad
    optimizer = SGDC([theta], lr=0.5, decay="none", master_weights=False, backend="cpu")
    optimizer.step()
    assert theta[beyond:].tolist() == [0.75] * 3
    assert theta.count_nonzero() == 3


def test_thousands_of_tensors() -> None:
    sizes = [1 + i % 50 for i in range(2000)]
    first, second = (trained(backend, sizes, steps=1) for backend in ("cpu", "reference"))
    assert_close(first, second)


def test_infinite_and_zero_moments() -> None:
    """What overflows and what is nothing gives what the reference gives."""
    grads = torch.tensor([1e30, -1e30, 0.0, math.inf, 1e-30, -0.0])
    results = []
    for backend in ("cpu", "reference"):
        theta = torch.ones(6, requires_grad=True)
        optimizer = AdamHC([theta], **OPTIONS | {"eps": 0.0}, backend=backend)
        theta.grad = grads.clone()
        optimizer.step()
        results.append(theta.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=0, equal_nan=True)


def test_an_explicit_cpu_back_end_needs_parameters_there() -> None:
    text = "^backend: 'cpu' must have all parameters on CPU, got one on meta$"
    with pytest.raises(ValueError, match=text):
        AdamHC([torch.ones(2, device="meta", requires_grad=True)], backend="cpu")
    assert AdamHC([torch.ones(2, device="meta", requires_grad=True)]).backend == "reference"
    assert AdamHC([torch.ones(2, requires_grad=True)]).backend == "cpu"
