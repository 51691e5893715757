"""Every refusal of AdamHC, with its full text."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from widthwise.kernels import SGDC, AdamHC

NAN, INF = math.nan, math.inf


def refusal(text: str) -> Any:
    """Expect a ValueError that says `text` and nothing else."""
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": -0.1}, "lr: must be finite and >= 0, got -0.1"),
        ({"lr": INF}, "lr: must be finite and >= 0, got inf"),
        ({"lr": torch.tensor(NAN)}, "lr: must be finite and >= 0, got tensor(nan)"),
        ({"betas": (1.0, 0.9)}, "betas: must be two numbers in [0, 1), got (1.0, 0.9)"),
        ({"betas": (0.9, -0.1)}, "betas: must be two numbers in [0, 1), got (0.9, -0.1)"),
        ({"betas": (0.9,)}, "betas: must be two numbers in [0, 1), got (0.9,)"),
        ({"eps": -1e-8}, "eps: must be finite and >= 0, got -1e-08"),
        ({"weight_decay": -0.1}, "weight_decay: must be finite and >= 0, got -0.1"),
        ({"weight_decay": NAN}, "weight_decay: must be finite and >= 0, got nan"),
        ({"decay": "L2"}, "decay: must be one of 'none', 'l2', 'huber', 'huber-prox', got 'L2'"),
        ({"huber_c": -1.0}, "huber_c: must be > 0, got -1.0"),
        ({"huber_c": 0.0}, "huber_c: must be > 0, got 0.0"),
        ({"huber_c": NAN}, "huber_c: must be > 0, got nan"),
        ({"huber_c": None}, "huber_c: must be > 0 if decay is 'huber', got None"),
        ({"threshold": "max"}, "threshold: must be one of 'mean', 'ema', got 'max'"),
        ({"threshold_beta": 1.0}, "threshold_beta: must be in [0, 1), got 1.0"),
        ({"corrected": 1}, "corrected: must be True or False, got 1"),
        ({"max_lr": -1.0}, "max_lr: must be finite and >= 0, got -1.0"),
        (
            {"lr": 0.0, "corrected": True},
            "max_lr: must be > 0 if corrected (it defaults to the group's lr), got 0.0",
        ),
        ({"master_weights": None}, "master_weights: must be True or False, got None"),
        (
            {"state_dtype": torch.float16},
            "state_dtype: must be None or torch.bfloat16, got torch.float16",
        ),
        ({"rounding_seed": 0.5}, "rounding_seed: must be an integer, got 0.5"),
        ({"clip_norm": 0.0}, "clip_norm: must be > 0 or None, got 0.0"),
        ({"clip_norm": NAN}, "clip_norm: must be > 0 or None, got nan"),
        (
            {"backend": "cuda"},
            "backend: 'cuda' must have all parameters on CUDA, got one on cpu",
        ),
        ({"backend": "mps"}, "backend: must be one of 'auto', 'cuda', 'cpu', 'reference', got 'mps'"),
    ],
)
def test_arguments(options: dict[str, Any], text: str) -> None:
    with refusal(text):
        AdamHC([torch.ones(2, requires_grad=True)], **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"momentum": 1.0}, "momentum: must be in [0, 1), got 1.0"),
        ({"momentum": -0.1}, "momentum: must be in [0, 1), got -0.1"),
        ({"nesterov": True}, "nesterov: must be False without momentum, got True"),
        ({"nesterov": 1, "momentum": 0.5}, "nesterov: must be True or False, got 1"),
        ({"weight_decay": -0.1}, "weight_decay: must be finite and >= 0, got -0.1"),
        ({"state_dtype": torch.int8}, "state_dtype: must be None or torch.bfloat16, got torch.int8"),
    ],
)
def test_arguments_of_sgdc(options: dict[str, Any], text: str) -> None:
    with refusal(text):
        SGDC([torch.ones(2, requires_grad=True)], **options)


OWN = {
    "lr": 0.1,
    "weight_decay": 0.1,
    "huber_c": 1.0,
    "max_lr": 0.1,
    "momentum": 0.5,
    "eps": 1e-8,
    "decay": "huber",
}


@pytest.mark.parametrize(
    ("optimizer", "options", "text"),
    [
        (AdamHC, {"lr": -1}, "lr: must be finite and >= 0, got -1"),
        (AdamHC, {"huber_c": -1}, "huber_c: must be > 0, got -1"),
        (AdamHC, {"max_lr": -1}, "max_lr: must be finite and >= 0, got -1"),
        (AdamHC, {"eps": -1}, "eps: must be finite and >= 0, got -1"),
        (SGDC, {"momentum": 2}, "momentum: must be in [0, 1), got 2"),
        (SGDC, {"decay": "L2"}, "decay: must be one of 'none', 'l2', 'huber', 'huber-prox', got 'L2'"),
    ],
)
def test_the_constructors_arguments_also_where_every_group_has_its_own(
    optimizer: Any, options: dict[str, Any], text: str
) -> None:
    groups = [{"params": [torch.ones(2, requires_grad=True)], **OWN}]
    with refusal(text):
        optimizer(groups, **options)
    # What is for the groups to fill in.
    optimizer(groups, huber_c=None, max_lr=None, lr=0.0, corrected=True, decay="huber")


@pytest.mark.parametrize(
    "options",
    [
        {"decay": "l2", "huber_c": None},
        {"decay": "none", "huber_c": None},
        {"huber_c": INF},
        {"lr": 0.0},
        {"eps": 0.0},
        {"clip_norm": INF},
        {"backend": "reference"},
    ],
)
def test_arguments_at_the_edge_are_taken(options: dict[str, Any]) -> None:
    AdamHC([torch.ones(2, requires_grad=True)], **options)


@pytest.mark.parametrize("optimizer", [AdamHC, SGDC])
@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64, torch.int64])
def test_parameters_of_other_dtypes(optimizer: Any, dtype: torch.dtype) -> None:
    with refusal(f"params: must be float32, float64 or bfloat16, got {dtype} of shape (2, 3)"):
        optimizer([torch.ones(2, 3, dtype=dtype)])


@pytest.mark.usefixtures("lone_process")
def test_sharded_bfloat16_parameters() -> None:
    mesh = init_device_mesh("cpu", (1,))
    sharded = distribute_tensor(torch.ones(4, 2, dtype=torch.bfloat16), mesh, [Shard(0)])
    text = "params: must be float32 or float64 where they are sharded, got torch.bfloat16 of shape (4, 2)"
    with refusal(text):
        AdamHC([sharded])


def weights_and_optimizer(**options: Any) -> tuple[Tensor, AdamHC]:
    weights = torch.ones(3, 2, requires_grad=True)
    return weights, AdamHC([torch.ones(5, requires_grad=True), weights], **options)


@pytest.mark.parametrize(
    ("gradient", "kind"),
    [
        (torch.ones(3, 2).to_sparse(), "torch.sparse_coo torch.float32"),
        (torch.ones(3, 2, dtype=torch.complex64), "torch.strided torch.complex64"),
    ],
)
@pytest.mark.parametrize("trained", [False, True])
def test_sparse_and_complex_gradients(gradient: Tensor, kind: str, trained: bool, backend: str) -> None:
    """At the first step, and where a plan of earlier steps is there."""
    weights, optimizer = weights_and_optimizer(clip_norm=1.0)
    other = optimizer.param_groups[0]["params"][0]
    weights.grad_dtype = None  # torch refuses complex ones itself unless told so
    other.grad, weights.grad = torch.ones(5), torch.ones(3, 2)
    if trained:
        optimizer.step()
    before, states = other.detach().clone(), len(optimizer.state)
    weights.grad = gradient
    with refusal(f"gradient: must be dense and real, got {kind} for a parameter of shape (3, 2)"):
        optimizer.step()
    assert torch.equal(other, before)
    assert len(optimizer.state) == states == 2 * trained


def test_decay_scales_of_a_stranger() -> None:
    weights, optimizer = weights_and_optimizer()
    text = "decay_scale: must be for parameters of this optimizer, got a tensor of shape (7,)"
    with refusal(text):
        optimizer.set_decay_scale({weights: 2.0, torch.ones(7): 1.0})
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("multiplier", [-0.5, INF, NAN])
def test_decay_scales_out_of_range(multiplier: float) -> None:
    weights, optimizer = weights_and_optimizer()
    with refusal(f"decay_scale: must be finite and >= 0, got {multiplier}"):
        optimizer.set_decay_scale({weights: multiplier})
    assert len(optimizer.state) == 0


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ({"params": [torch.ones(2)], "huber_c": -1.0}, "huber_c: must be > 0, got -1.0"),
        (
            {"params": [torch.ones(2, dtype=torch.int64)]},
            "params: must be float32, float64 or bfloat16, got torch.int64 of shape (2,)",
        ),
    ],
)
def test_a_refused_group_is_not_added(group: dict[str, Any], text: str) -> None:
    _, optimizer = weights_and_optimizer()
    with refusal(text):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
