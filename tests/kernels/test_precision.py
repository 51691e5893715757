"""bfloat16 parameters and moments: master copies, stochastic rounding, and what each takes of memory."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from widthwise.kernels import AdamHC, backends
from widthwise.kernels.precision import round_stochastically_, splitmix64

from .emulation import emulate
from .options import OPTIONS

NARROW = torch.bfloat16
KINDS: dict[str, dict[str, Any]] = {
    "master": {},
    "master, narrow moments": {"state_dtype": NARROW},
    "no master": {"master_weights": False},
    "no master, narrow moments": {"master_weights": False, "state_dtype": NARROW},
}
SIZES = [17_000, 1, 1023, 70]  # the first is more than a chunk


@pytest.fixture(params=["cpu", "cuda"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a back end that is compared with the reference."""
    if request.param == "cuda":
        emulate(monkeypatch)
        monkeypatch.setattr(backends, "resolve", lambda name, params: name)
    return str(request.param)


def weights(sizes: list[int] = SIZES, dtype: torch.dtype = NARROW) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(0.1 * torch.randn(n, generator=generator)).to(NARROW).to(dtype).requires_grad_() for n in sizes]


def run(optimizer: AdamHC, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(100 + seed)
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.randn(param.shape, generator=generator).to(NARROW).to(param.dtype)
        optimizer.step()


def assert_same_bits(first: AdamHC, second: AdamHC) -> None:
    pairs = zip(first.param_groups[0]["params"], second.param_groups[0]["params"], strict=True)
    for own, other in pairs:
        assert torch.equal(own, other)
        torch.testing.assert_close(first.state[own], second.state[other], rtol=0, atol=0)


def of_kind(kind: str, params: list[Tensor], **options: Any) -> AdamHC:
    return AdamHC(params, **{**OPTIONS, **KINDS[kind], **options})


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("decay", ["l2", "huber"])
def test_a_master_copy_is_the_float32_optimizer(decay: str) -> None:
    """Bit for bit."""
    narrow, wide = weights(), weights(dtype=torch.float32)
    first, second = (AdamHC(params, **OPTIONS | {"decay": decay}) for params in (narrow, wide))
    run(first, range(4))
    run(second, range(4))
    for own, other in zip(narrow, wide, strict=True):
        state = first.state[own]
        master = state.pop("master")
        assert torch.equal(own, master.to(NARROW))
        torch.testing.assert_close(master, other.detach(), rtol=0, atol=0)
        torch.testing.assert_close(state, second.state[other], rtol=0, atol=0)


@pytest.mark.compiler
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("decay", ["none", "l2", "huber", "huber-prox"])
def test_the_back_ends_agree(kind: str, decay: str, fast: str) -> None:
    """Up to the roundings of float32, which seldom tip that of bfloat16 over."""
    first, second = (of_kind(kind, weights(), decay=decay, backend=name) for name in (fast, "reference"))
    run(first, range(3))
    run(second, range(3))
    for own, other in zip(
        *(optimizer.param_groups[0]["params"] for optimizer in (first, second)), strict=True
    ):
        assert (own != other).float().mean() < 2e-3
        torch.testing.assert_close(own, other, rtol=2**-7, atol=1e-4)  # a rounding tipped over
        mine, theirs = first.state[own], second.state[other]
        assert {name: value.dtype for name, value in mine.items()} == {
            name: value.dtype for name, value in theirs.items()
        }
        torch.testing.assert_close(mine["exp_avg"].float(), theirs["exp_avg"].float(), rtol=2**-7, atol=1e-6)


@pytest.mark.compiler
def test_the_back_ends_round_by_the_same_numbers(fast: str) -> None:
    """β of a half makes moments of bfloat16 gradients without any rounding but that to bfloat16."""
    options = {"betas": (0.5, 0.5), "state_dtype": NARROW, "rounding_seed": -3}
    first, second = (
        AdamHC(weights(), **{**OPTIONS, **options}, backend=name) for name in (fast, "reference")
    )
    run(first, range(5))
    run(second, range(5))
    for own, other in zip(
        *(optimizer.param_groups[0]["params"] for optimizer in (first, second)), strict=True
    ):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(first.state[own][name], second.state[other][name])


@pytest.mark.compiler
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_bits_do_not_depend_on_the_threads(kind: str) -> None:
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(of_kind(kind, weights(), clip_norm=0.5, backend="cpu"))
        run(results[-1], range(3))
    torch.set_num_threads(before)
    assert_same_bits(*results)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", list(KINDS))
def test_small_decay_has_its_effect(kind: str) -> None:
    """τ = 1/1000 is less than half of bfloat16's last bit: rounded to the nearest, the weights stay for good."""
    theta = torch.full((5_000,), 0.75, dtype=NARROW, requires_grad=True)
    stuck = theta.detach().clone()
    optimizer = of_kind(kind, [theta], decay="l2", lr=0.01, max_lr=0.01, weight_decay=0.1)
    for _ in range(50):
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
        stuck -= 1e-3 * stuck
    assert torch.equal(stuck, torch.full_like(stuck, 0.75))
    assert theta.float().mean().item() == pytest.approx(0.75 * (1 - 1e-3) ** 50, rel=2**-8)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
def test_narrow_moments_follow_slow_averages(dtype: torch.dtype) -> None:
    """With β2 = .99, v grows by less than half of its last bit at a step when it is four fifths there."""
    theta = torch.zeros(1000, dtype=dtype, requires_grad=True)
    optimizer = AdamHC([theta], **{**OPTIONS, "betas": (0.9, 0.99)}, state_dtype=NARROW)
    v = torch.zeros((), dtype=NARROW)
    for _ in range(300):
        theta.grad = torch.ones_like(theta)
        optimizer.step()
        v.lerp_(torch.ones((), dtype=NARROW), 0.01)
    expected = 1 - 0.99**300
    assert v.item() < 0.9 * expected
    state = optimizer.state[theta]
    assert state["exp_avg_sq"].dtype is NARROW
    assert state["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("value", [1 + 2**-9, -3.14159, 1e-30, 2.5e-40])
def test_stochastic_rounding_is_unbiased(value: float) -> None:
    source = torch.full((200_000,), value)
    target = torch.empty(200_000, dtype=NARROW)
    round_stochastically_(target, source, splitmix64(1), 1, 0)
    below, above = sorted(set(target.tolist()))
    assert below < source[0].item() < above
    share = (source[0].item() - below) / (above - below)
    spread = (above - below) * math.sqrt(share * (1 - share) / 200_000)
    assert target.double().mean().item() == pytest.approx(source[0].item(), abs=4 * spread)


def test_what_has_no_neighbours_stays() -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.0])
    target = torch.empty(7, dtype=NARROW)
    round_stochastically_(target, values, 5, 1, 0)
    torch.testing.assert_close(target.float(), values, rtol=0, atol=0, equal_nan=True)
    assert target[4].signbit()


def test_random_numbers_are_independent() -> None:
    """Of elements, steps, parameters and what is rounded."""
    source = torch.full((50_000,), 1 + 2**-8)  # half-way
    ups = []
    for stream, step, what in [(1, 1, 0), (1, 2, 0), (1, 1, 1), (2, 1, 0), (splitmix64(0), 1, 0)]:
        target = torch.empty(50_000, dtype=NARROW)
        round_stochastically_(target, source, splitmix64(stream), step, what)
        ups.append((target > 1).numpy())
    ups += [np.roll(ups[0], shift) for shift in (1, 2, 16, 1024)]
    correlations = np.corrcoef(np.array(ups, dtype=float)) - np.eye(len(ups))
    assert np.abs(correlations).max() < 4.5 / math.sqrt(50_000)


def test_replicas_round_alike_and_seeds_differently() -> None:
    same = [of_kind("no master", weights()) for _ in range(2)]
    other = of_kind("no master", weights(), rounding_seed=1)
    for optimizer in (*same, other):
        run(optimizer, range(2))
    assert_same_bits(*same)
    first, second = (optimizer.param_groups[0]["params"][0] for optimizer in (same[0], other))
    assert 0.02 < (first != second).float().mean().item() < 0.98


@pytest.mark.usefixtures("backend")
def test_edits_from_outside_reach_the_master_copy() -> None:
    """And what was not edited keeps the remainder that the weights do not show."""
    (theta,) = weights([100])
    optimizer = AdamHC([theta], **OPTIONS)
    run(optimizer, range(2))
    master = optimizer.state[theta]["master"].clone()
    with torch.no_grad():
        theta[:10] = 0.5
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, range(2, 3))
    after = optimizer.state[theta]["master"]
    assert torch.equal(after[10:], master[10:])
    assert torch.equal(after[:10], torch.full((10,), 0.5))


def loaded(optimizer: AdamHC, kind: str, backend: str) -> AdamHC:
    file = io.BytesIO()
    params = optimizer.param_groups[0]["params"]
    torch.save((params, optimizer.state_dict()), file)
    file.seek(0)
    own, state = torch.load(file)
    fresh = of_kind(kind, [param.detach().clone().requires_grad_() for param in own], backend=backend)
    fresh.load_state_dict(state)
    return fresh


def deep_copied(optimizer: AdamHC, kind: str, backend: str) -> AdamHC:
    return copy.deepcopy(optimizer)


def pickled(optimizer: AdamHC, kind: str, backend: str) -> AdamHC:
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("copied", [loaded, deep_copied, pickled])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_copy_continues_bit_for_bit(copied: Callable[..., AdamHC], kind: str, backend: str) -> None:
    optimizer = of_kind(kind, weights(), clip_norm=1.0, rounding_seed=0)
    run(optimizer, range(3))
    other = copied(optimizer, kind, "auto")
    assert other.backend == backend
    other.clip_norm = 1.0
    run(optimizer, range(3, 6))
    run(other, range(3, 6))
    assert_same_bits(optimizer, other)


@pytest.mark.compiler
@pytest.mark.parametrize("forth", [True, False])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_state_moves_between_back_ends(kind: str, forth: bool, fast: str) -> None:
    source, target = (fast, "reference") if forth else ("reference", fast)
    started = of_kind(kind, weights(), backend=source)
    run(started, range(3))
    moved = loaded(started, kind, target)
    assert moved.backend == target
    assert_same_bits(started, moved)
    run(started, range(3, 5))
    run(moved, range(3, 5))
    for own, other in zip(started.param_groups[0]["params"], moved.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(own, other, rtol=2**-7, atol=1e-4)


def test_a_state_of_other_precision_is_taken_over() -> None:
    """A state with a master copy goes on without one, and back."""
    optimizer = of_kind("master", weights())
    run(optimizer, range(2))
    without = of_kind("no master, narrow moments", weights())
    without.load_state_dict(optimizer.state_dict())
    run(without, range(2, 3))
    param = without.param_groups[0]["params"][0]
    assert "master" not in without.state[param]
    assert without.state[param]["exp_avg"].dtype is NARROW
    optimizer.load_state_dict(without.state_dict())
    run(optimizer, range(3, 4))
    param = optimizer.param_groups[0]["params"][0]
    assert optimizer.state[param]["master"].dtype is torch.float32
    assert optimizer.state[param]["exp_avg"].dtype is torch.float32


def test_a_master_copy_of_another_shape_is_refused() -> None:
    (theta,) = weights([24])
    optimizer = AdamHC([theta], **OPTIONS)
    run(optimizer, range(1))
    optimizer.state[theta]["master"] = torch.zeros(23)
    text = r"^state: master must have the shape of its parameter, \(24,\), got \(23,\)$"
    with pytest.raises(ValueError, match=text):
        run(optimizer, range(1, 2))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_kept_mean_is_that_of_the_weights(kind: str) -> None:
    """Of the master copy where there is one, of the rounded weights where not."""
    optimizer = of_kind(kind, weights(), decay="huber")
    run(optimizer, range(2))
    for param in optimizer.param_groups[0]["params"]:
        state = optimizer.state[param]
        exact = state.get("master", param).double().abs().mean().item()
        assert state["abs_mean"].item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("kind", "dtype", "size"),
    [
        ("master", torch.float32, 12),
        ("master, narrow moments", torch.float32, 8),
        ("master", NARROW, 14),
        ("master, narrow moments", NARROW, 10),
        ("no master", NARROW, 10),
        ("no master, narrow moments", NARROW, 6),
    ],
)
def test_bytes_per_parameter(kind: str, dtype: torch.dtype, size: int) -> None:
    """As docs/kernels.md has it."""
    (theta,) = weights([4096], dtype)
    optimizer = of_kind(kind, [theta])
    run(optimizer, range(1))
    tensors = [theta, *(value for value in optimizer.state[theta].values() if value.dim() > 0)]
    assert sum(tensor.nbytes for tensor in tensors) == size * 4096


@pytest.mark.usefixtures("lone_process", "backend")
def test_under_ddp() -> None:
    layer = torch.nn.Linear(8, 4).to(NARROW)
    model = DistributedDataParallel(layer)
    optimizer = AdamHC(model.parameters(), **OPTIONS, master_weights=False)
    before = layer.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(3, 8, dtype=NARROW)).square().sum().backward()
        optimizer.step()
    assert optimizer.state[layer.weight]["step"].item() == 2
    assert (layer.weight != before).any()
