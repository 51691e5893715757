"""AlphaDecay with a lag: what it uses is what it saw some steps before, whatever happens in between."""

from collections.abc import Iterable
from copy import deepcopy
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from widthwise.proxies import AlphaDecay, refreshing
from widthwise.proxies.refreshing import Refresh
from widthwise.proxies.spectra import decay_scales

from .toy import Toy

STEPS = 16
LAGGING = AlphaDecay(interval=6, lag=2)  # looks before steps 0, 5 and 11, and uses that from 0, 7 and 13 on
ON = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trained(toy: Toy, steps: Iterable[int], method: AlphaDecay = LAGGING) -> list[list[float]]:
    """Take steps with gradients that their numbers decide; return the scales that each has used."""
    scales = []
    for step in steps:
        torch.manual_seed(step)
        toy.draw()
        method(step, toy.model, toy.optimizer)
        toy.optimizer.step()
        scales.append(toy.scales())
    return scales


def found_by(toy: Toy) -> Any:
    """Return the scales that a look at the present weights gives."""
    scales = decay_scales({name: weight.detach().clone() for name, weight in toy.model.named_parameters()})
    return pytest.approx(list(scales.values()), rel=1e-5)


def state_of(toy: Toy) -> tuple[dict[str, Any], dict[str, Any]]:
    return deepcopy(toy.model.state_dict()), deepcopy(toy.optimizer.state_dict())


def load(toy: Toy, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    toy.model.load_state_dict(state[0])
    toy.optimizer.load_state_dict(state[1])


@pytest.mark.parametrize(
    ("device", "method", "lag"),
    [
        ("cpu", LAGGING, 2),
        ("cpu", AlphaDecay(interval=6, lag=5), 5),
        ("cpu", AlphaDecay(interval=6), 0),
        pytest.param("cuda", LAGGING, 2, marks=pytest.mark.gpu),
        pytest.param("cuda", AlphaDecay(interval=6, lag=0), 0, marks=pytest.mark.gpu),
    ],
)
def test_scales_are_those_of_the_weights_some_steps_before(device: str, method: AlphaDecay, lag: int) -> None:
    toy, looks = Toy(device=device), {}
    for step in range(STEPS):
        if step in (0, 5, 11):
            looks[step] = found_by(toy)
        (scales,) = trained(toy, [step], method)
        assert scales == looks[max(look for look in looks if look == 0 or look + lag <= step)]
    assert looks[0].expected != looks[5].expected != looks[11].expected


@pytest.mark.gpu
def test_on_a_cuda_device_the_lag_is_a_tenth_of_the_interval() -> None:
    toy, method = Toy(device="cuda"), AlphaDecay(interval=20)
    first, *_, before = trained(toy, range(19), method)
    found = found_by(toy)
    assert trained(toy, range(19, 23), method) == [first, first, found, found]
    assert before == first != found


@ON
@pytest.mark.parametrize("stopped", [5, 6, 7, 8])  # the look of step 5 is under way after 6 and 7 steps
def test_a_state_dict_made_meanwhile_goes_on_bit_for_bit(stopped: int, device: str) -> None:
    straight, halved, resumed = Toy(device=device), Toy(device=device), Toy(device=device, seed=1)
    expected = trained(straight, range(STEPS))
    trained(halved, range(stopped))
    load(resumed, state_of(halved))
    for toy in (halved, resumed):
        assert trained(toy, range(stopped, STEPS)) == expected[stopped:]
        torch.testing.assert_close(toy.weights(), straight.weights(), rtol=0, atol=0)
        assert not any("next_decay_scale" in state for state in toy.optimizer.state.values())


@pytest.mark.parametrize(
    ("begun_on", "resumed_on"), [("cpu", "cpu"), pytest.param("cuda", "cpu", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("stopped", [6, 7])
def test_what_a_look_found_is_used_at_once_by_a_resumption_without_a_lag(
    stopped: int, begun_on: str, resumed_on: str
) -> None:
    # As a run that was begun on a CUDA device, where the lag is not 0 unless asked for, and goes on without one.
    halved, resumed = Toy(device=begun_on), Toy(device=resumed_on, seed=1)
    trained(halved, range(5))
    found = found_by(halved)
    trained(halved, range(5, stopped))
    load(resumed, state_of(halved))
    scales = trained(resumed, range(stopped, 11), AlphaDecay(interval=6, lag=0))
    assert scales == [found] * (11 - stopped)
    assert not any("next_decay_scale" in state for state in resumed.optimizer.state.values())


def test_what_was_found_at_once_is_kept_by_a_resumption_with_a_lag() -> None:
    halved, resumed = Toy(), Toy(seed=1)
    *_, found = trained(halved, range(6), AlphaDecay(interval=6, lag=0))
    load(resumed, state_of(halved))
    assert trained(resumed, range(6, 13)) == [found] * 7


@pytest.mark.parametrize("lag", [0, 2])
def test_another_look_takes_the_place_of_one_that_was_not_used(lag: int) -> None:
    halved, resumed = Toy(), Toy(seed=1)
    trained(halved, range(7))  # step 5's is to be used at step 7
    load(resumed, state_of(halved))
    found = found_by(resumed)
    scales = trained(resumed, range(7, 12), AlphaDecay(interval=8, lag=lag))  # looks before step 7
    assert scales[lag:] == [found] * (5 - lag)
    assert not any("next_decay_scale" in state for state in resumed.optimizer.state.values())


def test_a_state_dict_that_is_loaded_meanwhile_drops_what_was_seen_of_other_weights() -> None:
    toy = Toy()
    first = trained(toy, range(3))[-1]
    earlier = state_of(toy)
    trained(toy, range(3, 7))
    load(toy, earlier)
    assert trained(toy, [7]) == [first]


def test_an_error_of_the_thread_reaches_whoever_needs_its_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory for eigenvalues")

    toy = Toy()
    trained(toy, range(5))
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    trained(toy, [5, 6])
    with pytest.raises(torch.OutOfMemoryError, match=r"^no memory for eigenvalues$"):
        toy.optimizer.state_dict()
    with pytest.raises(torch.OutOfMemoryError, match=r"^no memory for eigenvalues$"):
        trained(toy, [7])


def test_weights_that_the_optimizer_does_not_have_are_refused() -> None:
    toy = Toy()
    model = nn.Sequential(*toy.model, nn.Linear(64, 50))
    LAGGING(5, model, toy.optimizer)
    rule = "decay_scale: must be for parameters of this optimizer"
    with pytest.raises(ValueError, match=rf"^{rule}, got a tensor of shape \(50, 64\)$"):
        LAGGING(7, model, toy.optimizer)


@pytest.fixture
def may_go_on(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Return what the threads wait for before they look at the matrices; it is set."""
    event, hill_alphas = Event(), refreshing.hill_alphas

    def held(matrices: list[torch.Tensor], **options: Any) -> list[float]:
        assert event.wait(60), "held up by the training thread, which waits for it"
        return hill_alphas(matrices, **options)

    monkeypatch.setattr(refreshing, "hill_alphas", held)
    event.set()
    return event


@ON
def test_a_look_keeps_the_training_thread_waiting_for_no_thread_and_no_device(
    device: str, may_go_on: Event
) -> None:
    toy = Toy(device=device)
    trained(toy, range(9))  # what is loaded and allocated once has been
    found = found_by(toy)
    may_go_on.clear()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        LAGGING(11, toy.model, toy.optimizer)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    may_go_on.set()
    LAGGING(13, toy.model, toy.optimizer)
    assert toy.scales() == found


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("places", [None, [Shard(0)], [Replicate()]])
def test_what_was_seen_stays_as_the_weights_move_on(places: list[Placement] | None, may_go_on: Event) -> None:
    # What one process puts together of its own part alone is that part itself.
    weights: dict[str, torch.Tensor] = dict(Toy().model.named_parameters())
    if places is not None:
        mesh = init_device_mesh("cpu", (1,))
        weights = {name: distribute_tensor(weight, mesh, places) for name, weight in weights.items()}
    expected = decay_scales(weights)
    options = AlphaDecay().model_dump(include={"assign", "low", "high", "mean_preserving"})
    may_go_on.clear()
    refresh = Refresh(weights, fixed_aspect=False, options=options)
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
    may_go_on.set()
    assert list(refresh.scales().values()) == pytest.approx(list(expected.values()), rel=1e-5)
    assert len(set(expected.values())) > 2
