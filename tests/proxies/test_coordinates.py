"""The coordinate check's measurement, against outputs that are kept by hand."""

import re
from copy import deepcopy
from statistics import geometric_mean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from widthwise.proxies import GPT, Coordinates, GPTConfig, RunOptions, runs
from widthwise.proxies.runs import coordinate_deltas
from widthwise.proxies.validation import ConfigError

from .tiny import tiny_run


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Stack(nn.Module):
    """Blocks, of which the second returns a tuple and changes its input's copy in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.GRU(4, 4, batch_first=True)]
        )
        self.head = nn.Linear(4, 7)

    def states(self, tokens: Tensor) -> dict[str, Tensor]:
        embedded = self.embedding(tokens)
        first = self.layers[0](embedded)
        second, _ = self.layers[1](first)
        return {"embedding": embedded, "layers.0": first, "layers.1": second, "logits": self.head(second)}

    def forward(self, tokens: Tensor) -> Tensor:
        return self.states(tokens)["logits"]


def trained(steps: int, layers: Any = None) -> tuple[Coordinates, list[Stack]]:
    """Return the coordinates of random steps, and the models: at first, and after each step."""
    model = Stack()
    tokens = torch.randint(7, (3, 5))
    coordinates, kept = Coordinates(model, tokens, layers), [deepcopy(model)]
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        coordinates.after_step()
        kept.append(deepcopy(model))
    return coordinates, kept


@torch.no_grad()
def test_the_change_of_every_blocks_output_is_measured_in_the_first_ten_steps() -> None:
    coordinates, models = trained(13)
    start, *after = [model.states(coordinates.inputs) for model in models]
    for name, deltas in coordinates.deltas.items():
        expected = [
            float((states[name] - start[name]).double().square().mean().sqrt()) for states in after[:10]
        ]
        assert deltas == pytest.approx(expected, rel=1e-5)
    assert list(coordinates.deltas) == ["embedding", "layers.0", "layers.1", "logits"]
    assert coordinates.start == {}


def test_layers_may_be_named_by_patterns() -> None:
    coordinates, _ = trained(1, ["layers.0*", "head"])
    assert sorted(coordinates.deltas) == ["head", "layers.0", "layers.0.0", "layers.0.1", "logits"]
    message = "layers: pattern 'haed' matches no module; did you mean 'head'?"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        trained(0, ["haed"])


def test_of_a_gpt_the_embedding_the_blocks_and_the_logits_are_followed() -> None:
    model = GPT(GPTConfig(width=16, head_dim=8, depth=3, context=8, norm_gain=True))
    coordinates = Coordinates(model, torch.randint(256, (2, 8)))
    assert list(coordinates.deltas) == ["embedding", "blocks.0", "blocks.1", "blocks.2", "logits"]
    assert model.training
    assert [module for module in model.modules() if module._forward_hooks] == []


# Of a run


def test_a_runs_first_steps_have_no_part_of_its_weight_decay_and_a_long_warm_up() -> None:
    found = coordinate_deltas(tiny_run(40), RunOptions(seed=1))
    assert found is not None
    assert {name: len(deltas) for name, deltas in found.items()} == {
        "embedding": 10,
        "blocks.0": 10,
        "logits": 10,
    }
    # Behind a readout that starts at zero, nothing but the logits moves in the first step.
    assert [name for name, deltas in found.items() if deltas[0] > 0] == ["logits"]
    assert all(deltas[1] > 0 for deltas in found.values())
    assert coordinate_deltas(tiny_run(40, weight_decay=10.0), RunOptions(seed=1)) == found
    assert coordinate_deltas(tiny_run(80), RunOptions(seed=1)) == found
    # Its own warm-up, over a hundred steps, is longer.
    gentler = coordinate_deltas(tiny_run(1000), RunOptions(seed=1))
    assert gentler is not None
    assert all(gentler[name][9] < 0.8 * found[name][9] for name in found)


def test_a_runs_first_steps_are_means_over_several_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = coordinate_deltas(tiny_run(40), RunOptions(seed=1))
    monkeypatch.setattr(runs, "STARTS", 1)
    starts = [coordinate_deltas(tiny_run(40), RunOptions(seed=seed)) for seed in (4, 5, 6, 7)]
    assert found is not None
    for name, deltas in found.items():
        changes = [start[name][1:] for start in starts if start is not None]
        assert deltas[1:] == pytest.approx([geometric_mean(step) for step in zip(*changes, strict=True)])
        assert len({tuple(change) for change in changes}) == 4


def test_first_steps_that_diverge_are_none() -> None:
    assert coordinate_deltas(tiny_run(40, lr=1e30), RunOptions()) is None


def test_first_steps_of_sharded_parameters_are_refused() -> None:
    message = "coordinates: needs the whole model on every worker (parallel 'ddp'), got 'fsdp'"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        coordinate_deltas(tiny_run(40), RunOptions(parallel="fsdp"))
