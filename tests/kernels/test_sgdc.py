"""SGDC beside torch's SGD, scalar formulas and the steady state that its correction keeps."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from widthwise.kernels import SGDC
from widthwise.kernels.cuda.proof import KEPT

PEAK, LAMBDA, C = 0.2, 0.3, 1.3
SCHEDULE = [0.05, 0.2, 0.15, 0.02]
MOMENTA = [(0.0, False), (0.8, False), (0.8, True)]


def weights(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) ** 3).to(dtype).requires_grad_()
        for shape in [(5, 4), (3,)]
    ]


def fill_gradients(params: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params:
        gradient = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = gradient.to(param.dtype)


def run(optimizer: SGDC, params: list[Tensor], seeds: range) -> None:
    for seed in seeds:
        fill_gradients(params, seed)
        optimizer.param_groups[0]["lr"] = SCHEDULE[seed % len(SCHEDULE)]
        optimizer.step()


def pulled(moved: Tensor, old: Tensor, decay: str, tau: float) -> Tensor:
    """Decay `moved`, which a step has made of `old`, by formula (5)."""
    delta = C * old.abs().mean()
    if decay == "none":
        return moved
    if decay == "l2":
        return moved - tau * old
    if decay == "huber":
        return moved - tau * old.clamp(-delta, delta)
    inside = moved.abs() <= (1 + tau) * delta
    return torch.where(inside, moved / (1 + tau), moved - tau * delta * moved.sign())


@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("decay", ["none", "l2", "huber", "huber-prox"])
def test_is_torch_sgd_with_a_decay_beside_it(
    decay: str, corrected: bool, momentum: float, nesterov: bool
) -> None:
    ours, theirs = weights(), weights()
    optimizer = SGDC(
        ours,
        lr=PEAK,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=LAMBDA,
        decay=decay,
        huber_c=C,
        corrected=corrected,
    )
    sgd = torch.optim.SGD(theirs, lr=PEAK, momentum=momentum, nesterov=nesterov)
    for seed, lr in enumerate(SCHEDULE):
        run(optimizer, ours, range(seed, seed + 1))
        fill_gradients(theirs, seed)
        sgd.param_groups[0]["lr"] = lr
        olds = [param.detach().clone() for param in theirs]
        sgd.step()
        tau = lr * LAMBDA * (lr / PEAK if corrected else 1)
        with torch.no_grad():
            for param, old in zip(theirs, olds, strict=True):
                param.copy_(pulled(param, old, decay, tau))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-14)
        assert ("momentum_buffer" in optimizer.state[own]) == (momentum > 0)


@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("lr", [PEAK, PEAK / 2])
def test_the_correction_keeps_the_steady_state(lr: float, momentum: float, nesterov: bool) -> None:
    """Of weights before a normalisation ‖g‖/‖θ‖ goes to √(2λ/η_max)·(1−β), whatever η is now.

    With the learning rate η/(1−β) and the decay λ·(1−β) that the momentum makes of them, it is √(2λ/η).
    """
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(400, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = SGDC(
        [theta], lr=lr, max_lr=PEAK, momentum=momentum, nesterov=nesterov, weight_decay=0.05, clip_norm=None
    )
    ratios = []
    for _ in range(3000):
        old = theta.detach()
        noise = torch.randn(400, generator=generator, dtype=torch.float64)
        # The gradient of a function of θ/‖θ‖ is orthogonal to θ, and the shorter the longer θ is.
        theta.grad = (noise - (noise @ old) / (old @ old) * old) / old.norm()
        ratios.append((theta.grad.norm() / old.norm()).item())
        optimizer.step()
    expected = math.sqrt(2 * 0.05 / PEAK) * (1 - momentum)
    assert sum(ratios[-1000:]) / 1000 == pytest.approx(expected, rel=0.03)


def state_dict_copied(optimizer: SGDC, params: list[Tensor]) -> tuple[SGDC, list[Tensor]]:
    own = [param.detach().clone().requires_grad_() for param in params]
    other = SGDC(own, lr=7.0, momentum=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, own


def pickled(optimizer: SGDC, params: list[Tensor]) -> tuple[SGDC, list[Tensor]]:
    return pickle.loads(pickle.dumps((optimizer, params)))


@pytest.mark.parametrize("copied", [state_dict_copied, pickled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_continues_bit_for_bit(copied: Any, dtype: torch.dtype) -> None:
    params = weights(dtype=dtype)
    optimizer = SGDC(params, lr=PEAK, momentum=0.8, weight_decay=LAMBDA, decay="huber", threshold="ema")
    optimizer.set_decay_scale({params[0]: 2.0})
    run(optimizer, params, range(3))
    other, own = copied(optimizer, params)
    run(optimizer, params, range(3, 6))
    run(other, own, range(3, 6))
    for first, second in zip(params, own, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        torch.testing.assert_close(optimizer.state[first], other.state[second], rtol=0, atol=0)


def test_loads_a_checkpoint_of_torch_sgd() -> None:
    params = weights()
    sgd = torch.optim.SGD(params, lr=0.03, momentum=0.8, weight_decay=0.4)
    fill_gradients(params, 0)
    sgd.step()
    buffer = sgd.state[params[0]]["momentum_buffer"].clone()
    optimizer = SGDC(params, lr=PEAK)
    optimizer.load_state_dict(sgd.state_dict())
    run(optimizer, params, range(1, 2))
    assert params[0].grad is not None
    expected = 0.8 * buffer + params[0].grad
    torch.testing.assert_close(optimizer.state[params[0]]["momentum_buffer"], expected)
    assert optimizer.param_groups[0]["weight_decay"] == 0.4


def test_clips_and_unscales() -> None:
    scaled, plain = weights(), weights()
    first = SGDC(scaled, lr=PEAK, momentum=0.8, weight_decay=LAMBDA, clip_norm=0.5)
    second = SGDC(plain, lr=PEAK, momentum=0.8, weight_decay=LAMBDA)
    first.grad_scale = torch.tensor(8.0)
    for seed in range(3):
        fill_gradients(scaled, seed)
        fill_gradients(plain, seed)
        for param in scaled:
            assert param.grad is not None
            param.grad *= 8.0
        torch.nn.utils.clip_grad_norm_(plain, 0.5)
        first.step()
        second.step()
    for own, other in zip(scaled, plain, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kept", list(KEPT))
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_a_back_end_equals_the_reference(kept: str, momentum: float, nesterov: bool, backend: str) -> None:
    """In weights and state, for every decay; what is narrow, up to a rounding that tips over here and there."""
    dtype, precision = KEPT[kept]
    optimizers = []
    for name in ("auto", "reference"):
        generator = torch.Generator().manual_seed(0)
        groups: list[dict[str, Any]] = [
            {"params": [_heavy(n, generator).to(dtype).requires_grad_() for n in (2053, 3)], "decay": decay}
            for decay in ("none", "l2", "huber", "huber-prox")
        ]
        optimizer = SGDC(
            groups,
            lr=0.02,
            max_lr=0.03,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=2.0,
            huber_c=C,
            threshold="ema",
            threshold_beta=0.6,
            clip_norm=5.0,
            **precision,
            backend=name,
        )
        optimizers.append(optimizer)
        params = [param for group in groups for param in group["params"]]
        optimizer.set_decay_scale({params[0]: 2.0, params[5]: 0.5})
        for _ in range(3):
            for param in params:
                param.grad = _heavy(param.numel(), generator).to(dtype)
            optimizer.step()
    assert [optimizer.backend for optimizer in optimizers] == [backend, "reference"]
    narrow = kept != "float32_float32"
    for own, other in zip(*map(_contents, optimizers), strict=True):
        assert {name: value.dtype for name, value in own.items()} == {
            name: value.dtype for name, value in other.items()
        }
        for name, value in own.items():
            rest = value.float() - other[name].float()
            tipped = rest.abs() > 2e-6 * other[name].float().abs().max()
            assert tipped.sum() <= (0.005 * tipped.numel() + 1 if narrow else 0), name
            assert (rest.abs() <= 2**-7 * other[name].abs() + 1e-3).all()


def _heavy(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator) ** 3


def _contents(optimizer: SGDC) -> list[dict[str, Tensor]]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [
        {"weights": param.detach()} | {k: torch.as_tensor(v) for k, v in optimizer.state[param].items()}
        for param in params
    ]
