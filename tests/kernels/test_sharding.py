"""AdamHC on sharded parameters equals AdamHC on whole ones, for every way of sharding and any back end.

Started as a script, this file forks the workers of a process group, which so share its imports.
"""

import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, multiprocessing, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from widthwise.kernels import AdamHC

# Uneven over 2 and over 4 workers, and with parts that are empty.
SHAPES = [(6, 4), (9,), (3, 5), (1,), (2, 3)]
STEPS = 5
OPTIONS: dict[str, Any] = {
    "lr": 0.05,
    "betas": (0.8, 0.9),
    "eps": 1e-4,
    "weight_decay": 0.6,
    "huber_c": 1.2,
    "threshold_beta": 0.7,
    "corrected": True,
    "max_lr": 0.07,
}
CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "ema, clipped": {"threshold": "ema", "clip_norm": 0.7},
    "prox, ema": {"decay": "huber-prox", "threshold": "ema"},
    "l2, clipped": {"decay": "l2", "clip_norm": 0.7},
    "reference": {"threshold": "ema", "clip_norm": 0.7, "backend": "reference"},
    "float64": {"dtype": torch.float64},
}
# Name → shape of the mesh and placements of tensors of one and of two dimensions, by the number of workers.
LAYOUTS: dict[int, dict[str, tuple[tuple[int, ...], Any, Any]]] = {
    2: {"fsdp": ((2,), [Shard(0)], [Shard(0)]), "columns": ((2,), [Replicate()], [Shard(1)])},
    4: {
        "fsdp": ((4,), [Shard(0)], [Shard(0)]),
        "hsdp": ((2, 2), [Replicate(), Shard(0)], [Replicate(), Shard(0)]),
        "fsdp x columns": ((2, 2), [Shard(0), Replicate()], [Shard(0), Shard(1)]),
    },
}
Place = Callable[[Tensor], Tensor]


def draw(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def trained(case: str, place: Place) -> tuple[list[Any], AdamHC, list[Tensor]]:
    """Do some steps with all that may happen in between; return the norms, the optimizer and its parameters."""
    options = dict(CASES[case])
    dtype = options.pop("dtype", torch.float32)
    params = [nn.Parameter(place(value)) for value in draw(0, dtype)]
    optimizer = AdamHC(params[:2], **{**OPTIONS, **options})
    optimizer.add_param_group({"params": params[2:], "lr": 0.02, "max_lr": 0.02})
    norms: list[Any] = []
    for step in range(STEPS):
        for param, grad in zip(params, draw(100 + step, dtype), strict=True):
            param.grad = place(grad)
        if step == 0:
            params[1].grad = None
            optimizer.set_decay_scale({params[0]: 1.7})
        if step == 3:
            with torch.no_grad():
                params[0].mul_(1.5)
        optimizer.step()
        norms.append(optimizer.grad_norm)
        optimizer.param_groups[0]["lr"] *= 0.9
    return norms, optimizer, params


def with_a_nan(place: Place) -> tuple[list[Any], AdamHC, list[Tensor]]:
    """Do a step with a gradient that is NaN at one place."""
    params = [nn.Parameter(place(value)) for value in draw(0)]
    optimizer = AdamHC(params, **OPTIONS, threshold="ema")
    for step in range(3):
        for param, grad in zip(params, draw(step), strict=True):
            if step == 1 and param.shape == (6, 4):
                grad[5, 3] = torch.nan
            param.grad = place(grad)
        optimizer.step()
    return [], optimizer, params


def whole(outcome: tuple[list[Any], AdamHC, list[Tensor]]) -> list[Any]:
    """Return parameters, state and norms as whole tensors."""
    norms, optimizer, params = outcome
    state = optimizer.state_dict()["state"]
    states = [{name: full(value) for name, value in state[index].items()} for index in range(len(params))]
    return [[full(param.detach()) for param in params], states, norms]


def full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def same(value: Tensor) -> Tensor:
    return value.clone()


# One process group of 2 workers and one of 4


Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return what every worker of each process group has come to."""
    folder = tmp_path_factory.mktemp("workers")
    ended = subprocess.run(
        [sys.executable, __file__, str(folder)], stderr=subprocess.PIPE, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    return {count: [torch.load(folder / f"{count}.{rank}") for rank in range(count)] for count in LAYOUTS}


def fork_workers(folder: Path) -> None:
    """Have each process group work, one after the other: the second reads the first's checkpoint."""
    import torch._dynamo  # noqa: F401 - every optimizer of torch does, in each worker otherwise

    for count in LAYOUTS:
        multiprocessing.start_processes(worker, (count, folder), nprocs=count, start_method="fork")


def worker(rank: int, count: int, folder: Path) -> None:
    """Be one of `count` workers, and leave what came of it in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting.{count}", rank=rank, world_size=count)
    found: dict[str, Any] = {}
    for name, (shape, one, two) in LAYOUTS[count].items():
        mesh = init_device_mesh("cpu", shape)

        def place(value: Tensor, mesh: DeviceMesh = mesh, one: Any = one, two: Any = two) -> Tensor:
            return distribute_tensor(value, mesh, two if value.ndim == 2 else one)

        for case in CASES:
            found[f"{name}: {case}"] = whole(trained(case, place))
        found[f"{name}: nan"] = whole(with_a_nan(place))
    found["fully_shard"] = list(model_steps(folder, count))
    torch.save(found, folder / f"{count}.{rank}")
    dist.destroy_process_group()


LAYOUTS_AND_CASES = [
    (count, name, case) for count, named in LAYOUTS.items() for name in named for case in [*CASES, "nan"]
]


@pytest.mark.parametrize(("count", "name", "case"), LAYOUTS_AND_CASES)
def test_sharded_equals_whole(results: Results, count: int, name: str, case: str) -> None:
    expected = whole(with_a_nan(same) if case == "nan" else trained(case, same))
    tolerance = 1e-12 if case == "float64" else 2e-6
    for found in results[count]:
        torch.testing.assert_close(
            found[f"{name}: {case}"], expected, rtol=tolerance, atol=tolerance, equal_nan=True
        )
        # The thresholds are one number for all workers, so replicas stay replicas bit for bit.
        torch.testing.assert_close(
            found[f"{name}: {case}"], results[count][0][f"{name}: {case}"], rtol=0, atol=0, equal_nan=True
        )


# A model under fully_shard, saved by 2 workers and loaded by 4


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3))


def model_steps(folder: Path, count: int) -> Iterable[Any]:
    """Train a sharded model, the first two steps by 2 workers, the rest by 4; yield its parameters."""
    sharded = model()
    for part in (sharded[0], sharded[2], sharded):
        fully_shard(part)
    optimizer = AdamHC(sharded.parameters(), **OPTIONS, threshold="ema", clip_norm=0.3)
    if count == 4:
        state = {"model": sharded.state_dict(), "optimizer": get_optimizer_state_dict(sharded, optimizer)}
        dcp.load(state, checkpoint_id=folder / "checkpoint")
        sharded.load_state_dict(state["model"])
        set_optimizer_state_dict(sharded, optimizer, state["optimizer"])
    rank = dist.get_rank()
    for step in (0, 1) if count == 2 else (2, 3):
        model_step(sharded, optimizer, step, slice(rank * 4 // count, (rank + 1) * 4 // count))
    yield [full(param.detach()) for param in sharded.parameters()]
    yield optimizer.grad_norm
    if count == 2:
        state = {"model": sharded.state_dict(), "optimizer": get_optimizer_state_dict(sharded, optimizer)}
        dcp.save(state, checkpoint_id=folder / "checkpoint")


def model_step(module: nn.Module, optimizer: AdamHC, step: int, rows: slice) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
    module(x[rows]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_fully_sharded_model_saved_by_two_workers_goes_on_with_four(results: Results) -> None:
    alone = model()
    optimizer = AdamHC(alone.parameters(), **OPTIONS, threshold="ema", clip_norm=0.3)
    for count in (2, 4):
        for step in (0, 1) if count == 2 else (2, 3):
            model_step(alone, optimizer, step, slice(None))
        expected = [[param.detach() for param in alone.parameters()], optimizer.grad_norm]
        for found in results[count]:
            torch.testing.assert_close(found["fully_shard"], expected, rtol=1e-5, atol=1e-6)


# What needs no second worker


@pytest.fixture
def mesh(tmp_path: Path) -> Iterable[DeviceMesh]:
    """Return a mesh of this process alone."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_partial_sums_are_refused(mesh: DeviceMesh) -> None:
    param = nn.Parameter(DTensor.from_local(torch.ones(4, 2), mesh, [Partial()]))
    text = "params: must not be partial sums, got a DTensor of shape (4, 2) and placements (Partial(sum),)"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        AdamHC([param])


def test_a_state_that_is_not_sharded_as_its_parameter_is_refused(mesh: DeviceMesh) -> None:
    param = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    optimizer, alone = AdamHC([param]), AdamHC([nn.Parameter(torch.ones(4))])
    alone.param_groups[0]["params"][0].grad = torch.ones(4)
    alone.step()
    optimizer.load_state_dict(alone.state_dict())
    param.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    text = "state: exp_avg must be sharded as its parameter, (Shard(dim=0),), got a whole tensor"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        optimizer.step()


def test_a_step_without_any_gradient_changes_nothing(mesh: DeviceMesh) -> None:
    param = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    optimizer = AdamHC([param])
    optimizer.step()
    assert (full(param.detach()) == 1).all()
    assert optimizer.state_dict()["state"] == {}


def test_gradients_are_let_go(mesh: DeviceMesh) -> None:
    param = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    optimizer = AdamHC([param])
    param.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    with torch.no_grad():
        memory = weakref.ref(param.grad.to_local())
    optimizer.step()
    optimizer.zero_grad()
    assert memory() is None


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    fork_workers(Path(sys.argv[1]))
