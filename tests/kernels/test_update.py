"""The numbers: against scalar Python written from the papers, torch's AdamW, and steady states.

Run with ``python -m pytest tests/kernels/test_update.py``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from widthwise.kernels import AdamHC, reference

pytestmark = pytest.mark.usefixtures("backend")
# What is in float64, which the others leave to it, or a law of the formulas, which they are compared with it for.
ON_REFERENCE = pytest.mark.parametrize("backend", ["reference"], indirect=True)

BETAS, EPS, LAMBDA, PEAK, C, BETA0 = (0.85, 0.93), 1e-3, 0.7, 0.05, 1.3, 0.6
SCHEDULE = [0.01, 0.03, 0.05, 0.04, 0.02, 0.005]
SHAPES = [(5, 7), (3,), ()]


@dataclass
class Scalar:
    """AdamHC on one tensor, an element at a time, in Python floats: independent of the package."""

    weights: list[float]
    decay: str
    threshold: str
    corrected: bool
    scale: float = 1.0
    t: int = 0
    mu: float | None = None
    m: list[float] = field(default_factory=list)
    v: list[float] = field(default_factory=list)

    def step(self, gradients: list[float], lr: float) -> None:
        self.m, self.v = self.m or [0.0] * len(gradients), self.v or [0.0] * len(gradients)
        self.t += 1
        mean = math.fsum(abs(w) for w in self.weights) / len(self.weights)
        self.mu = mean if self.mu is None else BETA0 * self.mu + (1 - BETA0) * mean
        delta = C * (mean if self.threshold == "mean" else self.mu)
        tau = lr * LAMBDA * self.scale * (lr / PEAK if self.corrected else 1.0)
        for i, g in enumerate(gradients):
            self.m[i] = BETAS[0] * self.m[i] + (1 - BETAS[0]) * g
            self.v[i] = BETAS[1] * self.v[i] + (1 - BETAS[1]) * g * g
            m_hat = self.m[i] / (1 - BETAS[0] ** self.t)
            v_hat = self.v[i] / (1 - BETAS[1] ** self.t)
            moved = self.weights[i] - lr * m_hat / (math.sqrt(v_hat) + EPS)
            self.weights[i] = self.decayed(moved, self.weights[i], tau, delta)

    def decayed(self, moved: float, old: float, tau: float, delta: float) -> float:
        if self.decay == "none":
            return moved
        if self.decay == "l2":
            return moved - tau * old
        if self.decay == "huber":
            return moved - tau * min(max(old, -delta), delta)
        if abs(moved) <= (1 + tau) * delta:
            return moved / (1 + tau)
        return moved - tau * delta * math.copysign(1.0, moved)


def heavy(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return weights or gradients with outliers, so that a threshold cuts some of them."""
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(shape, generator=generator, dtype=torch.float64) ** 3).to(dtype)


def options(**changed: Any) -> dict[str, Any]:
    """Return options that are all different from zero and from the defaults."""
    fixed = {
        "lr": PEAK,
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": LAMBDA,
        "huber_c": C,
        "threshold_beta": BETA0,
    }
    return fixed | changed


def gradients(params: list[Tensor], seed: int) -> Iterator[float]:
    """Give `params` new gradients for each learning rate of the schedule."""
    for t, lr in enumerate(SCHEDULE):
        for i, param in enumerate(params):
            param.grad = heavy(tuple(param.shape), seed + 100 * t + i, param.dtype)
        yield lr


def parameters(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [heavy(shape, seed, dtype).requires_grad_() for seed, shape in enumerate(SHAPES, start=1)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize(
    ("decay", "threshold", "corrected"),
    list(product(["none", "l2", "huber", "huber-prox"], ["mean", "ema"], [False, True])),
)
def test_equals_scalar_python(
    decay: str, threshold: str, corrected: bool, dtype: torch.dtype, tolerance: float
) -> None:
    params = parameters(dtype)
    scales = [1.0, 2.5, 0.5]
    scalars = [
        Scalar(param.detach().double().flatten().tolist(), decay, threshold, corrected, scale)
        for param, scale in zip(params, scales, strict=True)
    ]
    optimizer = AdamHC(params, **options(decay=decay, threshold=threshold, corrected=corrected))
    optimizer.set_decay_scale(dict(zip(params, scales, strict=True)))
    for lr in gradients(params, seed=7):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        for param, scalar in zip(params, scalars, strict=True):
            assert param.grad is not None
            scalar.step(param.grad.double().flatten().tolist(), lr)
    for param, scalar in zip(params, scalars, strict=True):
        state = optimizer.state[param]
        for actual, expected in [
            (param, scalar.weights),
            (state["exp_avg"], scalar.m),
            (state["exp_avg_sq"], scalar.v),
        ]:
            got = actual.detach().double().flatten().numpy()
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
        if threshold == "ema" and decay.startswith("huber"):
            assert state["threshold_ema"].item() == pytest.approx(scalar.mu, rel=10 * tolerance)


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_l2_is_torch_adamw(epsilon: float) -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    optimizer = AdamHC(ours, **options(decay="l2", eps=epsilon))
    adamw = torch.optim.AdamW(theirs, lr=PEAK, betas=BETAS, eps=epsilon, weight_decay=LAMBDA)
    for lr, _ in zip(gradients(ours, seed=3), gradients(theirs, seed=3), strict=True):
        optimizer.param_groups[0]["lr"] = adamw.param_groups[0]["lr"] = lr
        optimizer.step()
        adamw.step()
    for a, b in zip(ours, theirs, strict=True):
        # torch multiplies by 1 − ηλ where we subtract ηλ·θ: a rounding apart in θ, and none in m and v, but for
        # the CPU back end, which fuses no multiply-adds.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=2e-8)
        tolerance = 0.0 if optimizer.backend == "reference" else 3e-7
        for name in ("exp_avg", "exp_avg_sq"):
            own, other = optimizer.state[a][name], adamw.state[b][name]
            torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize("huber_c", [math.inf, 1e30])
@pytest.mark.parametrize("threshold", ["mean", "ema"])
def test_an_infinite_threshold_is_l2_bit_for_bit(huber_c: float, threshold: str) -> None:
    huber, l2 = parameters(torch.float32), parameters(torch.float32)
    for params in (huber, l2):
        params.append(torch.zeros(4, requires_grad=True))
    first = AdamHC(huber, **options(decay="huber", huber_c=huber_c, threshold=threshold, corrected=True))
    second = AdamHC(l2, **options(decay="l2", corrected=True))
    for lr, _ in zip(gradients(huber, seed=5), gradients(l2, seed=5), strict=True):
        first.param_groups[0]["lr"] = second.param_groups[0]["lr"] = lr
        first.step()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(huber, l2, strict=True))


@ON_REFERENCE
def test_an_infinite_threshold_of_the_proximal_step_divides() -> None:
    weights = heavy((8,), 1).requires_grad_()
    expected = weights.detach() / (1 + PEAK * LAMBDA)
    weights.grad = torch.zeros_like(weights)
    AdamHC([weights], **options(decay="huber-prox", huber_c=math.inf)).step()
    torch.testing.assert_close(weights.detach(), expected, rtol=1e-14, atol=0)


@ON_REFERENCE
@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("huber-prox", [0.049504950495049507, 0.0995049504950495, 0.101, 0.499]),
        ("huber", [0.0495, 0.0995, 0.101, 0.499]),
    ],
)
def test_the_worked_example(decay: str, expected: list[float]) -> None:
    """τ = 0.01, δ = 0.1, no gradient: both sides of the threshold, and where Euler and prox differ."""
    weights = torch.tensor([0.05, 0.1005, 0.102, 0.5], dtype=torch.float64, requires_grad=True)
    weights.grad = torch.zeros_like(weights)
    huber_c = 0.1 / weights.detach().mean().item()
    AdamHC([weights], **options(lr=0.1, weight_decay=0.1, decay=decay, huber_c=huber_c)).step()
    np.testing.assert_allclose(weights.detach().numpy(), expected, rtol=1e-13)


@ON_REFERENCE
@pytest.mark.parametrize("decay", ["l2", "huber", "huber-prox"])
def test_pieces_do_not_show(decay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors worked on apart give the bits that they give together, whatever their sizes."""
    together, apart = parameters(), parameters()
    pieces: list[int] = []
    for params, piece in ((together, 1000), (apart, 20)):
        monkeypatch.setattr(reference, "PIECE", piece)
        optimizer = AdamHC(params, **options(decay=decay), backend="reference")
        monkeypatch.setattr(reference, "_advance_moments", _counted(reference._advance_moments, pieces))
        for _ in gradients(params, seed=9):
            optimizer.step()
        monkeypatch.undo()
    assert pieces == [3] * len(SCHEDULE) + [1, 2] * len(SCHEDULE)
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)


def _counted(function: Callable[..., None], sizes: list[int]) -> Callable[..., None]:
    def counted(grads: list[Tensor], *others: Any) -> None:
        sizes.append(len(grads))
        function(grads, *others)

    return counted


@ON_REFERENCE
@pytest.mark.parametrize("huber_c", [1.0, 2.0, 3.0])
def test_huber_decays_gaussian_weights_by_kappa(huber_c: float) -> None:
    """κ = erf(c/√π) is the share of the decay that is left: .575, .890, .983."""
    old = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = old.clone().requires_grad_()
    weights.grad = torch.zeros_like(old)
    AdamHC([weights], **options(huber_c=huber_c)).step()
    kappa = (old @ (old - weights.detach()) / (PEAK * LAMBDA) / (old @ old)).item()
    assert kappa == pytest.approx(math.erf(huber_c / math.sqrt(math.pi)), abs=3e-3)


@ON_REFERENCE
@pytest.mark.parametrize("decay", ["l2", "huber", "huber-prox"])
def test_steady_state_under_noise(decay: str) -> None:
    """RMS(θ)² relaxes to η/(2λ) as (1−ηλ)^{2t}, and ‖Δθ‖/‖θ‖ goes to √(2ηλ(1−β1)/(1+β1))."""
    lr, weight_decay, beta1, start, steps = 0.02, 0.5, 0.5, 0.5, 400
    generator = torch.Generator().manual_seed(1)
    weights = (start * torch.randn(20_000, generator=generator)).requires_grad_()
    optimizer = AdamHC(
        [weights],
        lr=lr,
        betas=(beta1, 0.99),
        weight_decay=weight_decay,
        decay=decay,
        huber_c=6.0,
        corrected=True,
    )
    squares = {}
    for t in range(1, steps + 1):
        old = weights.detach().clone()
        weights.grad = torch.randn(weights.shape, generator=generator)
        optimizer.step()
        squares[t] = weights.detach().square().mean().item()
    for t in (50, 150, steps):
        left = (1 - lr * weight_decay) ** (2 * t)
        assert squares[t] == pytest.approx(left * start**2 + (1 - left) * lr / (2 * weight_decay), rel=0.06)
    ratio = ((weights.detach() - old).norm() / old.norm()).item()
    expected = math.sqrt(2 * lr * weight_decay * (1 - beta1) / (1 + beta1))
    assert ratio == pytest.approx(expected, rel=0.05)


@ON_REFERENCE
def test_clipping_reads_nothing_back() -> None:
    """Tensors without memory refuse to be read by the host, which on a device would have to wait."""
    grads = [torch.ones(size, device="meta") for size in (3, 5)]
    norm = reference.total_norm([reference.total_norm(grads), *grads])
    assert reference.clip_factor(norm, 0.5).is_meta


@ON_REFERENCE
@pytest.mark.parametrize("values", ["random", "equal"])
def test_the_mean_of_millions_of_weights(values: str) -> None:
    """One float32 sum in sequence would be far off: 5.8 % at 30 M."""
    n = 3_000_017
    generator = torch.Generator().manual_seed(2)
    weights = torch.full((n,), 0.1) if values == "equal" else torch.randn(n, generator=generator)
    expected = weights.double().abs().mean().item()
    assert reference.abs_means([weights]).item() == pytest.approx(expected, rel=3e-7)


@ON_REFERENCE
@pytest.mark.parametrize(
    "n", [1, reference.CHUNK - 1, reference.CHUNK, reference.CHUNK + 1, reference.PIECE + 1]
)
def test_the_mean_around_the_chunk_size(n: int) -> None:
    weights = heavy((n,), 3)
    assert reference.abs_means([weights]).item() == pytest.approx(weights.abs().mean().item(), rel=1e-14)


@ON_REFERENCE
def test_the_first_step_has_epsilon_outside_the_bias_correction() -> None:
    """With β2 = .999 an ε that is divided too would shrink this step 31.6 times less than it does."""
    weights = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    weights.grad = torch.tensor([0.5], dtype=torch.float64)
    AdamHC([weights], lr=0.1, betas=(0.9, 0.999), eps=0.5, weight_decay=0.2, decay="l2").step()
    assert weights.item() == pytest.approx(1.0 - 0.1 * 0.5 / (0.5 + 0.5) - 0.1 * 0.2 * 1.0, rel=1e-14)


def test_bias_correction_is_in_double() -> None:
    """In float32, 1 − 0.99999^1 would be 0.14 % off."""
    weights = torch.tensor([1.0], requires_grad=True)
    weights.grad = torch.tensor([0.5])
    AdamHC([weights], lr=0.1, betas=(0.99999, 0.99999), eps=1e-12, weight_decay=0.2, decay="l2").step()
    assert weights.item() == pytest.approx(1.0 - 0.1 - 0.02, rel=2e-7)
