"""The CUDA back end beside the reference: on a device, and emulated on a CPU where there is none.

Run with ``python -m pytest tests/kernels/test_cuda.py``; with ``-m gpu``, on the device alone.
"""

import copy
import math
import re
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from widthwise.kernels import AdamHC, backends, cuda
from widthwise.kernels.cuda import batch as batches
from widthwise.kernels.cuda import plan

from .emulation import Emulation
from .options import OPTIONS

CHUNK, TILE, CAPACITY = batches.CHUNK, 1 << 11, batches.CAPACITY
DECAYS = ["none", "l2", "huber", "huber-prox"]
AROUND_BOUNDARIES = [
    *(1, 3, 4, 5, 1023, 1024, 1025, TILE - 1, TILE, TILE + 1),
    *(CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + TILE + 3),
]
SCHEDULE = [0.03 * (0.5 + 0.5 * math.cos(math.pi * t / 50)) for t in range(50)]


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return where tensors are to be; tests that use it run on both."""
    if request.param == "emulated":
        request.getfixturevalue("emulation")
        return torch.device("cpu")
    return torch.device("cuda", 0)


def weights(sizes: list[int], device: torch.device, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(0.1 * torch.randn(size, generator=generator) ** 3).to(device).requires_grad_() for size in sizes]


def fill_gradients(params: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for param in params:
        grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        if param.grad is None:
            param.grad = grad
        else:
            param.grad.copy_(grad)


def parameters_of(optimizer: AdamHC) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def trained(
    backend: str, device: torch.device, sizes: list[int], *, steps: int = 3, seed: int = 0, **options: Any
) -> AdamHC:
    params = weights(sizes, device, seed)
    optimizer = AdamHC(params, **OPTIONS | options, backend=backend)
    optimizer.set_decay_scale({params[0]: 1.7, params[-1]: 0.4})
    for t in range(steps):
        fill_gradients(params, t)
        optimizer.step()
    return optimizer


def contents(optimizer: AdamHC) -> list[dict[str, Tensor]]:
    """Return weights and state of each parameter, on CPU."""
    return [
        {"weights": param.detach().cpu().clone()}
        | {name: torch.as_tensor(value).cpu().clone() for name, value in optimizer.state[param].items()}
        for param in parameters_of(optimizer)
    ]


def assert_same_bits(first: AdamHC, second: AdamHC) -> None:
    for own, other in zip(contents(first), contents(second), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0, equal_nan=True)


def assert_close(first: AdamHC, second: AdamHC) -> None:
    """Assert that weights and state are a few roundings apart, on the scale of what was added up."""
    own, other = contents(first), contents(second)
    assert [sorted(entry) for entry in own] == [sorted(entry) for entry in other]
    for name in {name for entry in other for name in entry}:
        actual, expected = (
            torch.cat([entry[name].flatten() for entry in entries if name in entry])
            for entries in (own, other)
        )
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=2e-6, atol=5e-7 * scale)


@pytest.mark.parametrize("threshold", ["mean", "ema"])
@pytest.mark.parametrize("decay", DECAYS)
def test_equals_the_reference(decay: str, threshold: str, device: torch.device) -> None:
    """In weights and the whole state, around every boundary of accesses, tiles and chunks."""
    clip_norm = 0.5 if threshold == "ema" else None
    options = {"decay": decay, "threshold": threshold, "clip_norm": clip_norm}
    first, second = (trained(name, device, AROUND_BOUNDARIES, **options) for name in ("cuda", "reference"))
    assert (first.backend, second.backend) == ("cuda", "reference")
    assert_close(first, second)


def test_memory_that_is_not_aligned(device: torch.device) -> None:
    """Tensors that begin and end anywhere; what lies around them stays as it is."""
    sizes, apart = [TILE + 1, 5, CHUNK + 1, 4 * TILE], 6
    aligned = trained("cuda", device, sizes)
    params = weights(sizes, device)
    buffer = torch.full((sum(sizes) + apart * (len(sizes) + 1) + 1,), 99.0, device=device)
    views, outside = [], torch.ones(len(buffer), dtype=torch.bool)
    at = apart
    for param in params:
        inside = slice(at, at + param.numel())
        buffer[inside], outside[inside] = param.detach(), False
        views.append(buffer[inside].requires_grad_())
        at = inside.stop + apart
    optimizer = AdamHC(views, **OPTIONS, backend="cuda")
    optimizer.set_decay_scale({views[0]: 1.7, views[-1]: 0.4})
    for t in range(3):
        fill_gradients(views, t)
        optimizer.step()
    assert {view.data_ptr() % 16 for view in views} == {0, 4, 8, 12}
    assert buffer[outside.to(device)].eq(99.0).all()
    # The same bits, and so the same order of each sum.
    for own, other in zip(contents(optimizer), contents(aligned), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_a_step_leaves_the_mean_that_is_measured(device: torch.device) -> None:
    """To the bit, so that a run that is resumed goes on as if it had not stopped."""
    optimizer = trained("cuda", device, AROUND_BOUNDARIES)
    params = parameters_of(optimizer)
    kept = torch.stack([optimizer.state[param]["abs_mean"] for param in params])
    assert torch.equal(cuda.abs_means(params), kept)
    exact = torch.stack([param.detach().double().abs().mean() for param in params])
    torch.testing.assert_close(kept.double(), exact, rtol=3e-7, atol=0)


def test_the_same_bits_again(device: torch.device) -> None:
    first, second = (trained("cuda", device, [3 * CHUNK + 5, 7], clip_norm=0.5) for _ in range(2))
    assert_same_bits(first, second)


def test_more_tensors_than_a_launch_takes(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu":  # which takes its time
        monkeypatch.setattr(plan, "CAPACITY", 5)
    sizes = [3] * (plan.CAPACITY + 2)
    first, second = (trained(name, device, sizes, steps=2) for name in ("cuda", "reference"))
    assert_close(first, second)


def test_states_move_between_back_ends(device: torch.device) -> None:
    """Two steps with one back end and two with the other, from the state dict of the first."""
    sizes = [CHUNK + 3, 5]
    whole = trained("reference", device, sizes, steps=4)
    for names in (("cuda", "reference"), ("reference", "cuda")):
        before = trained(names[0], device, sizes, steps=2)
        params = [param.detach().clone().requires_grad_() for param in parameters_of(before)]
        after = AdamHC(params, **OPTIONS, backend=names[1])
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        for t in (2, 3):
            fill_gradients(params, t)
            after.step()
        assert_close(after, whole)


def test_found_inf_is_read_on_the_device(device: torch.device) -> None:
    optimizer = trained("cuda", device, [CHUNK + 3, 5])
    before = contents(optimizer)
    params = parameters_of(optimizer)
    for found, same in ((1.0, True), (0.0, False)):
        optimizer.found_inf = torch.full((), found, device=device)
        fill_gradients(params, 9)
        optimizer.step()
        for own, other in zip(contents(optimizer), before, strict=True):
            assert all(torch.equal(own[name], other[name]) == same for name in ("weights", "step", "exp_avg"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learning_rate_on_the_device(dtype: torch.dtype, device: torch.device) -> None:
    rates = SCHEDULE[:5]
    results = []
    for lr in (torch.tensor(0.5, dtype=dtype, device=device), 0.5):
        params = weights([CHUNK + 3, 5], device)
        optimizer = AdamHC(params, **OPTIONS | {"lr": lr}, backend="cuda")
        for t, rate in enumerate(rates):
            fill_gradients(params, t)
            if isinstance(lr, Tensor):
                lr.fill_(rate)
            else:
                # The same rounding as the tensor's.
                optimizer.param_groups[0]["lr"] = torch.tensor(rate, dtype=dtype).item()
            optimizer.step()
        results.append(optimizer)
    assert_same_bits(*results)


def test_groups_of_many_options_are_one_launch(device: torch.device) -> None:
    """As a stack of proxies would have them: the same as an optimizer for each."""
    settings = [
        {"lr": 0.01 * k, "weight_decay": 0.1 * k, "huber_c": k, "decay": DECAYS[k % 4]} for k in range(1, 9)
    ]
    together, apart = ([weights([TILE + k], device, seed=k) for k in range(8)] for _ in range(2))
    common = OPTIONS | {"max_lr": None}
    one = AdamHC(
        [{"params": params, **own} for params, own in zip(together, settings, strict=True)],
        **common,
        backend="cuda",
    )
    many = [
        AdamHC(params, **common | own, backend="cuda") for params, own in zip(apart, settings, strict=True)
    ]
    for t in range(3):
        for k in range(8):
            fill_gradients(together[k], 10 * t + k)
            fill_gradients(apart[k], 10 * t + k)
        for optimizer in (one, *many):
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(chain(*together), chain(*apart), strict=True))


# What only the emulation can show.


def test_two_launches_a_step(emulation: Emulation) -> None:
    emulation.running = False
    optimizer = trained("cuda", torch.device("cpu"), [3] * CAPACITY, steps=1)
    emulation.launches.clear()
    emulation.uploads = 0
    optimizer.step()
    assert [launch.kernel for launch in emulation.launches] == ["adamhc_float32_float32", "adamhc_finish"]
    assert emulation.uploads == 0


def test_two_launches_for_each_way_of_keeping(emulation: Emulation) -> None:
    params = [torch.ones(3, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.bfloat16) * 2]
    optimizer = AdamHC(params, **OPTIONS, backend="cuda")
    for _ in range(2):
        emulation.launches.clear()
        fill_gradients(params, 0)
        optimizer.step()
    assert [launch.kernel for launch in emulation.launches] == [
        *("adamhc_float32_float32", "adamhc_finish"),
        *("adamhc_master_float32", "adamhc_finish"),
    ]


def test_a_new_learning_rate_is_one_upload(emulation: Emulation) -> None:
    optimizer = trained("cuda", torch.device("cpu"), [3, 4], steps=1)
    emulation.uploads = 0
    optimizer.param_groups[0]["lr"] = 0.011
    optimizer.step()
    optimizer.step()
    assert emulation.uploads == 1


def test_no_barrier_is_missing(emulation: Emulation) -> None:
    """The threads of a block may run in any order between barriers."""
    sizes = [3 * CHUNK + 5, 7]
    forwards = trained("cuda", torch.device("cpu"), sizes)
    emulation.backwards = True
    assert_same_bits(trained("cuda", torch.device("cpu"), sizes), forwards)


def captured(optimizer: AdamHC, emulation: Emulation) -> Callable[[], None]:
    """Capture a step, and return what replays it."""
    emulation.launches.clear()
    emulation.capturing = True
    optimizer.step()
    emulation.capturing = False
    launches = list(emulation.launches)
    return lambda: [launch.run() for launch in launches]


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("decay", DECAYS)
def test_a_captured_step_follows_its_schedules(
    decay: str, state_dtype: torch.dtype | None, emulation: Emulation
) -> None:
    """η, r_t, t (and with it the random numbers), λ and the decay scales: a replay reads them where they are."""
    cpu, sizes = torch.device("cpu"), [CHUNK + 3, 5]
    eager, replayed = (
        trained("cuda", cpu, sizes, steps=1, decay=decay, lr=torch.tensor(0.02), state_dtype=state_dtype)
        for _ in range(2)
    )
    replay = captured(replayed, emulation)
    for t, lr in enumerate(SCHEDULE[:8]):
        for optimizer, step in ((eager, eager.step), (replayed, replay)):
            params = parameters_of(optimizer)
            fill_gradients(params, t)
            optimizer.param_groups[0]["lr"].fill_(lr)
            optimizer.param_groups[0]["weight_decay"] = 0.6 - 0.05 * t
            optimizer.set_decay_scale({params[0]: 1.0 + t})
            step()
    assert_same_bits(eager, replayed)


def refusal(text: str) -> Any:
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


def test_what_a_capture_refuses(emulation: Emulation) -> None:
    cpu = torch.device("cpu")
    frozen = trained("cuda", cpu, [5], steps=1)
    first = trained("cuda", cpu, [5], steps=0, lr=torch.tensor(0.02))
    changed = trained("cuda", cpu, [5], steps=1, lr=torch.tensor(0.02))
    changed.param_groups[0]["weight_decay"] = 0.3
    fill_gradients(parameters_of(first), 0)
    emulation.capturing = True
    lr = "lr: must be a float tensor on cpu where a graph captures the step, so that it can change, got 0.02"
    for optimizer, text in (
        (frozen, lr),
        (first, "step: must be done once, with the same parameters, before a graph captures it"),
        (changed, "step: options have changed; call refresh() before a graph captures it"),
    ):
        before = contents(optimizer) if optimizer is not first else None
        with refusal(text):
            optimizer.step()
        assert before is None or all(
            torch.equal(own["weights"], other["weights"])
            for own, other in zip(contents(optimizer), before, strict=True)
        )
    emulation.capturing = False
    changed.refresh()
    emulation.capturing = True
    changed.step()


# What only a device can show.


@pytest.mark.gpu
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("decay", DECAYS)
def test_a_graph_equals_eager_steps(decay: str, clip_norm: float | None) -> None:
    """Fifty replays under a schedule that changes at each, bit for bit."""
    device = torch.device("cuda", 0)
    optimizers = []
    for _ in range(2):
        lr = torch.tensor(0.02, device=device)
        optimizers.append(
            trained("cuda", device, [CHUNK + 3, 5], steps=1, decay=decay, clip_norm=clip_norm, lr=lr)
        )
    eager, replayed = optimizers
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        replayed.step()
    for t, lr in enumerate(SCHEDULE):
        for optimizer, step in ((eager, eager.step), (replayed, graph.replay)):
            params = parameters_of(optimizer)
            fill_gradients(params, t)
            optimizer.param_groups[0]["lr"].fill_(lr)
            optimizer.set_decay_scale({params[0]: 1.0 + 0.1 * t})
            step()
    assert_same_bits(eager, replayed)


@pytest.mark.gpu
def test_a_scheduler_drives_a_graph() -> None:
    """Schedulers of torch write to a learning rate that is a tensor."""
    device = torch.device("cuda", 0)
    optimizer = trained("cuda", device, [5], steps=1, lr=torch.tensor(0.02, device=device), betas=(0.0, 0.0))
    (param,) = parameters_of(optimizer)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        optimizer.step()
    moved = []
    for _ in range(3):
        before = param.detach().clone()
        optimizer.param_groups[0]["weight_decay"] = 0.0
        optimizer.refresh()
        graph.replay()
        moved.append((param.detach() - before).abs().mean().item())
        scheduler.step()
    assert moved == pytest.approx([moved[0], moved[0] / 2, moved[0] / 4], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_does_not_wait_for_the_device(scaled: bool) -> None:
    device = torch.device("cuda", 0)
    optimizer = trained("cuda", device, [CHUNK + 3, 5], clip_norm=0.5)
    if scaled:
        optimizer.found_inf = torch.zeros((), device=device)
        optimizer.grad_scale = torch.ones((), device=device)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for lr in SCHEDULE[:5]:
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_it_runs_on_the_current_stream() -> None:
    """Behind work that the stream has still to do: a stale gradient would show."""
    device = torch.device("cuda", 0)
    optimizers = [trained("cuda", device, [CHUNK + 3, 5]) for _ in range(2)]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for optimizer, own in zip(optimizers, (stream, torch.cuda.current_stream()), strict=True):
        with torch.cuda.stream(own):
            torch.cuda._sleep(50_000_000)
            for param in parameters_of(optimizer):
                assert param.grad is not None
                param.grad.mul_(2.0)
            optimizer.step()
    torch.cuda.synchronize()
    assert_same_bits(*optimizers)


@pytest.mark.gpu
def test_more_than_2_31_elements() -> None:
    """Beginning and end of a tensor of 8.6 GB, and its mean, beside a small tensor with the same values."""
    device = torch.device("cuda", 0)
    (piece,) = weights([CHUNK], device)
    many = 2**31 // CHUNK + 1
    large = piece.detach().repeat(many).requires_grad_()
    options = OPTIONS | {"threshold": "mean"}
    optimizers = [AdamHC([param], **options, backend="cuda") for param in (large, piece)]
    for t in range(2):
        fill_gradients([piece], t)
        assert piece.grad is not None
        large.grad = piece.grad.repeat(many)
        for optimizer in optimizers:
            optimizer.step()
    assert large.numel() > 2**31
    # δ is a mean of the same values, added up in another order.
    for part in (large[:CHUNK], large[-CHUNK:]):
        torch.testing.assert_close(part.detach(), piece.detach(), rtol=1e-6, atol=1e-8)
    means = [
        optimizer.state[param]["abs_mean"]
        for optimizer, param in zip(optimizers, (large, piece), strict=True)
    ]
    torch.testing.assert_close(*means, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_auto_takes_it_where_all_parameters_are_on_the_device() -> None:
    here, there = torch.ones(2, requires_grad=True), torch.ones(2, device="cuda", requires_grad=True)
    assert AdamHC([there]).backend == "cuda"
    assert AdamHC([here, there]).backend == "reference"
    assert AdamHC([torch.ones(2, dtype=torch.float64, device="cuda", requires_grad=True)]).backend == "cuda"
    with refusal("backend: 'cuda' must have all parameters on CUDA, got one on cpu"):
        AdamHC([there, here], backend="cuda")
    active, reason = backends.describe("cuda")
    assert re.fullmatch(r"cuda \(built with NVRTC \d+\.\d+ for sm_\d+, agrees with the reference\)", active)
    assert reason is None


@pytest.mark.gpu
def test_with_torch_gradscaler() -> None:
    weights = torch.ones(4, device="cuda", requires_grad=True)
    optimizer = AdamHC([weights], **OPTIONS)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=100)
    for factor in (1.0, math.inf, 2.0):
        optimizer.zero_grad()
        scaler.scale((factor * weights).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512.0
    assert optimizer.state[weights]["step"].item() == 2
