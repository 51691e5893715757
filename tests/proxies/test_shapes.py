"""The parameter table: every entry of the GPT's, other people's modules, mup's own count, and the groups."""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import mup
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from widthwise.proxies import (
    GPT,
    GPTConfig,
    Hyperparameters,
    KindSettings,
    ParameterTable,
    parameter_groups,
    parameter_table,
)
from widthwise.proxies.config import Kind
from widthwise.proxies.table import ParameterEntry, initialise
from widthwise.proxies.validation import ConfigError

Build = Callable[[int], nn.Module]


def gpt(**fields: Any) -> Build:
    return lambda width: GPT(GPTConfig(**{"width": width, "head_dim": 8, "depth": 1, "context": 8, **fields}))


def sequential(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Embedding(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    )


def kinds(table: ParameterTable) -> dict[str, Kind]:
    return {name: entry.kind for name, entry in table.items()}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def vector(kind: Kind, width_multiplier: float, *shape: int) -> ParameterEntry:
    return ParameterEntry(kind=kind, width_multiplier=width_multiplier, normalised=False, shape=shape)


def matrix(width_multiplier: float, fan_in: int, *shape: int) -> ParameterEntry:
    return ParameterEntry(
        kind="matrix", width_multiplier=width_multiplier, normalised=True, shape=shape, fan_in=fan_in
    )


def refuses(message: str) -> pytest.RaisesExc[ConfigError]:
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


# The GPT

MATRICES = [
    *(f"blocks.0.attention.{name}" for name in ("query", "key", "value", "out")),
    *(f"blocks.0.feed_forward.{name}" for name in ("up", "gate", "down")),
]
NORMS = ["blocks.0.attention_norm", "blocks.0.feed_forward_norm", "norm"]


def named(modules: list[str], leaf: str, kind: Kind) -> dict[str, Kind]:
    return {f"{module}.{leaf}": kind for module in modules}


PLAIN: dict[str, Kind] = {
    "embedding.weight": "embedding",
    "readout.weight": "readout",
    **named(MATRICES, "weight", "matrix"),
}
TIED = {name: kind for name, kind in PLAIN.items() if name != "readout.weight"}
GAINS, BIASES = named(NORMS, "weight", "gain"), named(MATRICES, "bias", "bias")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, PLAIN),
        ({"tied": True}, TIED),
        ({"group_size": 2}, PLAIN),
        ({"norm_gain": True}, PLAIN | GAINS),
        ({"bias": True}, PLAIN | BIASES),
        (
            {"bias": True, "norm": "layernorm", "norm_gain": True, "tied": True},
            TIED | BIASES | GAINS | named(NORMS, "bias", "bias"),
        ),
    ],
    ids=["plain", "tied", "grouped queries", "gains", "biases", "everything"],
)
@pytest.mark.parametrize("width", [32, 64, 256])
def test_the_gpts_table(fields: dict[str, Any], expected: dict[str, Kind], width: int) -> None:
    table = parameter_table(gpt(**fields), width=width, base_width=32)
    shapes = shapes_of(gpt(**fields)(width))
    assert (table.width, table.base_width, len(table)) == (width, 32, len(expected))
    assert dict(table) == {
        name: ParameterEntry(
            kind=kind,
            width_multiplier=width / 32,
            normalised=kind == "matrix",
            shape=shapes[name],
            fan_in=(3 * width if "down" in name else width) if kind == "matrix" else None,
        )
        for name, kind in expected.items()
    }


def test_a_width_below_the_base_has_a_multiplier_below_1() -> None:
    table = parameter_table(gpt(), width=16, base_width=64)
    assert {entry.width_multiplier for entry in table.values()} == {0.25}


@pytest.mark.parametrize("delta_width", [16, 48, 256])
def test_the_delta_width_decides_nothing_but_what_grows(delta_width: int) -> None:
    table = parameter_table(gpt(), width=64, base_width=32, delta_width=delta_width)
    assert table == parameter_table(gpt(), width=64, base_width=32)


def test_it_is_printed_as_a_table() -> None:
    table = parameter_table(gpt(group_size=2), width=96, base_width=32)
    printed = StringIO()
    Console(width=80, file=printed).print(table.table())
    rows = [line.split("│")[1:-1] for line in printed.getvalue().splitlines() if line.startswith("│")]
    assert "AdamC: where the recipe says corrected, " in printed.getvalue()
    assert [[cell.strip() for cell in row] for row in rows[:3]] == [
        ["embedding.weight", "embedding", "×3", "no"],
        ["blocks.0.attention.query.weight", "matrix", "×3", "yes"],
        ["blocks.0.attention.key.weight", "matrix", "×3", "yes"],
    ]
    assert len(rows) == len(table)


def test_a_long_name_is_printed_whole() -> None:
    table, printed = parameter_table(gpt(), width=96, base_width=32), StringIO()
    Console(width=50, file=printed).print(table.table())
    rows = [line.split("│")[1:-1] for line in printed.getvalue().splitlines() if line.startswith("│")]
    assert "".join(row[0].strip() for row in rows) == "".join(table)


def test_it_costs_no_memory_and_draws_no_random_number() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    parameter_table(gpt(), width=2**17, base_width=32)
    assert torch.equal(torch.get_rng_state(), before)


# Other people's modules


def encoder_layer(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(d_model=width, nhead=2, dim_feedforward=4 * width)


def convolutions(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, 2 * width, 3),
        nn.GroupNorm(2, 2 * width),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def fixed_inside(width: int) -> nn.Module:
    """Have a layer that does not grow, between layers that do."""
    return nn.Sequential(
        nn.Embedding(9, width), nn.Linear(width, 4 * width), nn.Linear(4 * width, 7), nn.LayerNorm(7)
    )


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            sequential,
            {
                "0.weight": ("embedding", 8),
                "2.weight": ("matrix", 8),
                "2.bias": ("bias", 8),
                "4.weight": ("readout", 8),
                "4.bias": ("bias", 1),
            },
        ),
        (
            encoder_layer,
            {
                "self_attn.in_proj_weight": ("matrix", 8),
                "self_attn.in_proj_bias": ("bias", 8),
                "self_attn.out_proj.weight": ("matrix", 8),
                "self_attn.out_proj.bias": ("bias", 8),
                "linear1.weight": ("matrix", 8),
                "linear1.bias": ("bias", 8),
                "linear2.weight": ("matrix", 8),
                "linear2.bias": ("bias", 8),
                "norm1.weight": ("gain", 8),
                "norm1.bias": ("bias", 8),
                "norm2.weight": ("gain", 8),
                "norm2.bias": ("bias", 8),
            },
        ),
        (
            convolutions,
            {
                "0.weight": ("embedding", 8),
                "0.bias": ("bias", 8),
                "1.weight": ("gain", 8),
                "1.bias": ("bias", 8),
                "2.weight": ("matrix", 8),
                "2.bias": ("bias", 8),
                "3.weight": ("gain", 8),
                "3.bias": ("bias", 8),
                "5.weight": ("readout", 8),
                "5.bias": ("bias", 1),
            },
        ),
        (
            fixed_inside,
            {
                "0.weight": ("embedding", 8),
                "1.weight": ("matrix", 8),
                "1.bias": ("bias", 8),
                "2.weight": ("readout", 8),
                "2.bias": ("bias", 1),
                "3.weight": ("gain", 1),
                "3.bias": ("bias", 1),
            },
        ),
    ],
    ids=["mlp", "transformer encoder", "convolutions", "a layer that does not grow"],
)
def test_modules_of_torch(build: Build, expected: dict[str, tuple[Kind, float]]) -> None:
    table = parameter_table(build, width=128, base_width=16)
    assert {name: (entry.kind, entry.width_multiplier) for name, entry in table.items()} == expected


@pytest.mark.parametrize("build", [sequential, encoder_layer, convolutions, gpt(bias=True, norm_gain=True)])
def test_the_multipliers_are_mups_own(build: Build) -> None:
    model = build(128)
    mup.set_base_shapes(model, build(16), delta=build(32), rescale_params=False, do_assert=False)
    infinite = {name: parameter.infshape for name, parameter in model.named_parameters()}
    table = parameter_table(build, width=128, base_width=16)
    assert {name: shape.width_mult() for name, shape in infinite.items()} == {
        name: entry.width_multiplier for name, entry in table.items()
    }
    assert {name for name, shape in infinite.items() if shape.ninf() == 2} == {
        name for name, entry in table.items() if entry.kind == "matrix"
    }


# Which dimension is summed over


class Experts(nn.Module):
    """Two experts' up-projections, all in one tensor, which grows more slowly than the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(2, 64 + width, width))
        self.up_bias = nn.Parameter(torch.zeros(2, 64 + width))


def slower_inside(width: int) -> nn.Module:
    """Go up to and down from a size that doubles where the width is eight times as large."""
    inner = 96 + width
    return nn.Sequential(
        nn.Linear(width, inner),
        nn.Conv2d(inner, width, (3, 5)),
        nn.ConvTranspose2d(width, inner, (3, 5)),
        nn.ConvTranspose2d(inner, 3, 3, bias=False),
    )


def test_of_two_dimensions_that_grow_the_one_summed_over_counts() -> None:
    table = parameter_table(slower_inside, width=128, base_width=16)
    weights = {name: entry for name, entry in table.items() if name.endswith("weight")}
    found = {name: (entry.kind, entry.width_multiplier, entry.fan_in) for name, entry in weights.items()}
    assert found == {
        "0.weight": ("matrix", 8.0, 128),
        "1.weight": ("matrix", 2.0, 224 * 15),
        "2.weight": ("matrix", 8.0, 128 * 15),
        "3.weight": ("readout", 2.0, None),
    }


def test_experts_tensors_must_be_named_where_it_is_a_guess() -> None:
    message = (
        "build: cannot tell the fan-in of 'up' of shape (2, 192, 128) in Experts, which grows ×2.4 and ×8; name it: "
        "overrides={'up': 'matrix'} (--override up=matrix) where the last dimension is summed over, transposed=['up'] "
        "(--transposed up) where the last but one is"
    )
    with refuses(message):
        parameter_table(Experts, width=128, base_width=16)
    named = parameter_table(Experts, width=128, base_width=16, overrides={"up": "matrix"})
    assert named["up"] == matrix(8.0, 128, 2, 192, 128)
    assert named["up_bias"] == vector("bias", 2.4, 2, 192)
    turned = parameter_table(Experts, width=128, base_width=16, transposed=["u?"])
    assert turned["up"] == matrix(2.4, 192, 2, 192, 128)


def test_a_pattern_of_transposed_matrices_that_matches_nothing_is_an_error() -> None:
    with refuses("transposed: pattern 'down' matches no parameter"):
        parameter_table(Experts, width=128, base_width=16, transposed=["down"])


# Overrides


class WithPositions(nn.Module):
    """A matrix, and learned positions that are a bare parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(10, width))
        self.layer = nn.Linear(width, width)


CANNOT_TELL = (
    "build: cannot tell the kind of parameter 'positions' of shape (10, 64) in WithPositions "
    "(1 growing dimension); name it: overrides={'positions': 'embedding'} (--override positions=embedding) "
    "('matrix' for η/w, where it sums over the width)"
)


def test_a_bare_parameter_of_two_dimensions_must_be_named() -> None:
    with refuses(CANNOT_TELL):
        parameter_table(WithPositions, width=64, base_width=16)
    table = parameter_table(WithPositions, width=64, base_width=16, overrides={"positions": "embedding"})
    assert table["positions"] == vector("embedding", 4.0, 10, 64)


def test_a_pattern_names_many_and_the_last_one_wins() -> None:
    overrides: dict[str, Kind] = {"*.bias": "gain", "4.*": "readout"}
    found = kinds(parameter_table(sequential, width=64, base_width=16, overrides=overrides))
    assert found == {
        "0.weight": "embedding",
        "2.weight": "matrix",
        "2.bias": "gain",
        "4.weight": "readout",
        "4.bias": "readout",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"2.wieght": "readout"}, "pattern '2.wieght' matches no parameter; did you mean '2.weight'?"),
        ({"blocks.*": "readout"}, "pattern 'blocks.*' matches no parameter"),
        (
            {"2.weight": "matrx"},
            "kind must be one of matrix, embedding, readout, gain, bias, got 'matrx'; did you mean 'matrix'?",
        ),
        ({"2.*": "embedding"}, "must leave a matrix; a model without a matrix kind cannot be scaled"),
    ],
)
def test_overrides_that_cannot_be_meant(overrides: Mapping[str, Any], message: str) -> None:
    with refuses(f"overrides: {message}"):
        parameter_table(sequential, width=64, base_width=16, overrides=overrides)


# Guesses that are more likely wrong


def attention(kv_heads: int, name: str = "readout") -> Build:
    """Return a model whose keys and values do not grow."""
    return lambda width: nn.ModuleDict(
        {
            "embedding": nn.Embedding(9, width),
            "query": nn.Linear(width, width, bias=False),
            "key": nn.Linear(width, 16 * kv_heads, bias=False),
            "value": nn.Linear(width, 16 * kv_heads, bias=False),
            name: nn.Linear(width, 9, bias=False),
        }
    )


def bottleneck(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Linear(width, 32), nn.Linear(32, width))


def regression(width: int) -> nn.Module:
    """Read numbers, not tokens."""
    return nn.Sequential(nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 1))


READOUTS = (
    "build: cannot tell readouts from other layers from growing to fixed size, got 'key.weight', 'value.weight', "
    "'readout.weight'; let what is fixed, such as kv heads, grow with the width, or name each: 'matrix' divides η by "
    "the ratio of widths, for layers within the model, 'readout' keeps η, for its outputs; as in "
    "overrides={'key.weight': 'matrix'} (--override key.weight=matrix)"
)


@pytest.mark.parametrize("overrides", [{}, {"readout.weight": "readout"}, {"value.weight": "readout"}])
def test_key_value_heads_that_do_not_grow_are_not_taken_for_readouts(overrides: dict[str, Kind]) -> None:
    with refuses(READOUTS):
        parameter_table(attention(2), width=64, base_width=16, overrides=overrides)


def test_named_one_by_one_they_are_taken_at_the_users_word() -> None:
    overrides: dict[str, Kind] = {"key.weight": "matrix", "value.weight": "matrix"}
    table = parameter_table(attention(2), width=64, base_width=16, overrides=overrides)
    assert [table[name].kind for name in ("key.weight", "readout.weight")] == ["matrix", "readout"]
    assert table["key.weight"].width_multiplier == 4.0
    overrides = {"key.*": "readout", "value.*": "readout", "readout.*": "readout"}
    assert kinds(parameter_table(attention(2), 64, 16, overrides=overrides))["key.weight"] == "readout"


def test_a_message_names_only_some_of_many() -> None:
    def deep(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), *(nn.Linear(width, 8) for _ in range(50)))

    shown = ", ".join(f"'{index}.weight'" for index in range(1, 7))
    with pytest.raises(ConfigError, match=f"got {shown} and 44 more; let what is fixed"):
        parameter_table(deep, width=64, base_width=16)


def test_a_message_names_what_is_alike_in_all_layers_once() -> None:
    class Layer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.key, self.up = nn.Linear(width, 32), nn.Linear(width, width)
            self.adapter = nn.Sequential(nn.Linear(width, 8), nn.Linear(8, width))
            self.router = nn.Parameter(torch.empty(4, width))

    def deep(width: int) -> nn.Module:
        return nn.ModuleDict({"layers": nn.ModuleList(Layer(width) for _ in range(3))})

    def refusal(overrides: dict[str, Kind]) -> str:
        with pytest.raises(ConfigError) as caught:
            parameter_table(deep, width=64, base_width=16, overrides=overrides)
        return str(caught.value)

    router: dict[str, Kind] = {"layers.*.router": "matrix"}
    assert "name it: overrides={'layers.*.router': 'embedding'} (--override 'layers.*.router=embedding')" in (
        refusal({})
    )
    # A pattern without the number of the adapter's layer would name both of them, which are no like.
    down = [f"'layers.{index}.adapter.0.weight'" for index in range(3)]
    assert f"got 'layers.*.key.weight', {', '.join(down)}; let what is fixed" in refusal(router)
    down_named: dict[str, Kind] = {**router, "layers.*.key.weight": "matrix", "*.adapter.0.weight": "matrix"}
    up = [f"'layers.{index}.adapter.1.weight'" for index in range(3)]
    assert f"fixed to growing size, got {', '.join(up)}; scale bottlenecks" in refusal(down_named)


def test_a_linear_layer_from_fixed_to_growing_size_must_be_named() -> None:
    message = (
        "build: must not have linear layers from fixed to growing size, got '2.weight'; scale bottlenecks with "
        "the width, or name input layers: overrides={'2.weight': 'embedding'} (--override 2.weight=embedding)"
    )
    with refuses(message):
        parameter_table(bottleneck, width=64, base_width=16)
    with refuses(message.replace("2.", "0.")):
        parameter_table(regression, width=64, base_width=16)
    table = parameter_table(regression, width=64, base_width=16, overrides={"0.weight": "embedding"})
    assert table["0.weight"] == vector("embedding", 4.0, 64, 5)


# Models that cannot be scaled


def three_ways(width: int) -> nn.Module:
    return nn.Bilinear(width, width, width)


def deeper_when_wider(width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(width // 16)))


def a_dimension_more(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(width, width, 3) if width == 64 else nn.Linear(width, width))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda width: sequential(64),
            "no parameter has two dimensions that grow from width 16 to 32; "
            "a model without a matrix kind cannot be scaled (does build use its argument?)",
        ),
        (
            lambda width: nn.Linear(width, 3),
            "no parameter has two dimensions that grow from width 16 to 32; "
            "a model without a matrix kind cannot be scaled (does build use its argument?)",
        ),
        (
            three_ways,
            "cannot tell the kind of parameter 'weight' of shape (64, 64, 64) in Bilinear "
            "(3 growing dimensions); name it: overrides={'weight': 'embedding'} (--override weight=embedding) "
            "('matrix' for η/w, where it sums over the width)",
        ),
        (
            deeper_when_wider,
            "must give the same parameters at every width, but '1.bias' is not in both width 16 and 32",
        ),
        (
            a_dimension_more,
            "'0.weight' must have the same number of dimensions at every width, got (16, 16) and (64, 64, 3)",
        ),
    ],
    ids=["width unused", "no matrix", "three dimensions grow", "names differ", "dimensions differ"],
)
def test_models_that_cannot_be_scaled(build: Build, message: str) -> None:
    with refuses(f"build: {message}"):
        parameter_table(build, width=64, base_width=16)


def test_a_delta_at_the_base_width_shows_nothing() -> None:
    message = "delta_width: must differ from base_width = 16, or no dimension is seen to grow"
    with refuses(message):
        parameter_table(sequential, width=64, base_width=16, delta_width=16)


# The file


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = parameter_table(convolutions, width=64, base_width=16)
    table.save(tmp_path / "table.json")
    assert ParameterTable.load(tmp_path / "table.json") == table


GAIN = {"kind": "gain", "width_multiplier": 4, "normalised": True, "shape": [9]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "widthwise/recipe/1"}, "schema: must be 'widthwise/table/1', got 'widthwise/recipe/1'"),
        ({"width": 0}, "width: must be >= 1, got 0"),
        ({"base_width": None}, "base_width: must be a whole number, got null"),
        ({"entries": []}, "entries: must be an object, got []"),
        (
            {"entries": {"0.weight": {**GAIN, "kind": "matrx"}}},
            "entries.0.weight.kind: must be 'matrix', 'embedding', 'readout', 'gain' or 'bias', got 'matrx'; "
            "did you mean 'matrix'?",
        ),
        (
            {"entries": {"0.weight": {**GAIN, "kind": "matrix"}}},
            "entries.0.weight.fan_in: is required of a matrix",
        ),
        (
            {"entries": {"0.weight": {**GAIN, "fan_in": 9}}},
            "entries.0.weight.fan_in: must be null of any kind but matrix",
        ),
        (
            {"entries": {"0.weight": {**GAIN, "shape": [-1]}}},
            "entries.0.weight.shape.0: must be >= 0, got -1",
        ),
        (
            {"entries": {"0.weight": {name: GAIN[name] for name in GAIN if name != "shape"}}},
            "entries.0.weight.shape: is required",
        ),
        (
            {"entries": {"0.weight": {**GAIN, "width_multiplayer": 4}}},
            "entries.0.weight.width_multiplayer: unknown field; did you mean 'width_multiplier'?",
        ),
    ],
)
def test_a_faulty_file_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**parameter_table(sequential, 64, 16).as_json(), **change}))
    with refuses(f"{path}: {message}"):
        ParameterTable.load(path)


# Groups


class Wrapper(nn.Module):
    """Hold a model the way DDP does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


TUNED = Hyperparameters(lr=0.1, weight_decay=0.5, huber_c=2.0, betas=(0.8, 0.9))


def settings_for(entry: ParameterEntry) -> KindSettings:
    decay = 0.5 if entry.kind == "matrix" else 0.0
    return KindSettings(lr=0.1 / entry.width_multiplier, weight_decay=decay, eps=1e-8)


def compiled(model: nn.Module) -> nn.Module:
    # Nothing is run, so that any back end will do: the default's import warns.
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda model: model,
    "DDP's prefix": Wrapper,
    "compiled": compiled,
    "compiled DDP": lambda model: compiled(Wrapper(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_every_parameter_is_in_one_group_of_its_kind_and_multiplier(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = sequential(64)
    table = parameter_table(sequential, width=64, base_width=16)
    groups = parameter_groups(wrap(model), table, settings_for, TUNED)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {group["name"]: [names[parameter] for parameter in group["params"]] for group in groups}
    assert found == {
        "embedding x4": ["0.weight"],
        "matrix x4": ["2.weight"],
        "bias x4": ["2.bias"],
        "readout x4": ["4.weight"],
        "bias x1": ["4.bias"],
    }
    for group in groups:
        del group["params"]
    shared = {"betas": (0.8, 0.9), "decay": "huber", "huber_c": 2.0, "threshold": "mean"}
    vector = {**shared, "lr": 0.025, "max_lr": 0.025, "weight_decay": 0.0, "eps": 1e-8, "corrected": False}
    assert groups == [
        {**vector, "name": "embedding x4", "kind": "embedding"},
        {**vector, "name": "matrix x4", "kind": "matrix", "weight_decay": 0.5, "corrected": True},
        {**vector, "name": "bias x4", "kind": "bias"},
        {**vector, "name": "readout x4", "kind": "readout"},
        {**vector, "name": "bias x1", "kind": "bias", "lr": 0.1, "max_lr": 0.1},
    ]


def test_a_copys_groups_hold_the_copys_parameters() -> None:
    table = parameter_table(sequential, width=64, base_width=16)
    model = sequential(64)
    copied = copy.deepcopy(model)
    groups = parameter_groups(copied, table, settings_for, TUNED)
    assert {id(one) for group in groups for one in group["params"]} == set(map(id, copied.parameters()))


# torch's word on drawing in shards: complete on GPUs alone.
@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")
@pytest.mark.usefixtures("one_process")
def test_a_sharded_model_is_grouped_and_initialised_by_name() -> None:
    table = parameter_table(sequential, width=64, base_width=16)
    config = GPTConfig(width=64, embedding_std=0.5, matrix_std=2.0, readout_std=0.25)
    whole, sharded = sequential(64), sequential(64)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    for model in (whole, sharded):
        torch.manual_seed(0)
        initialise(model, table, config)
    for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
        assert isinstance(other, DTensor)
        assert torch.equal(one, other.to_local())
    groups = parameter_groups(sharded, table, settings_for, TUNED)
    assert {id(one) for group in groups for one in group["params"]} == set(map(id, sharded.parameters()))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_model_of_another_width_than_the_tables_is_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    table = parameter_table(sequential, width=64, base_width=16)
    model = wrap(sequential(256))
    before = [one.clone() for one in model.parameters()]
    rule = "must have the shapes of the table, which is of width 64"
    message = f"model: {rule}; '0.weight' is (5, 64) there, got (5, 256)"
    with refuses(message):
        parameter_groups(model, table, settings_for, TUNED)
    with refuses(message):
        initialise(model, table, GPTConfig())
    assert all(map(torch.equal, before, model.parameters()))


@pytest.fixture
def _one_process_of_two() -> Iterator[None]:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process_of_two")
def test_parameters_that_sharding_has_flattened_have_no_shapes_to_compare() -> None:
    table = parameter_table(sequential, width=64, base_width=16)
    model = FullyShardedDataParallel(sequential(64), use_orig_params=True, device_id=torch.device("cpu"))
    assert {parameter.ndim for parameter in model.parameters()} == {1}
    groups = parameter_groups(model, table, settings_for, TUNED)
    assert {id(one) for group in groups for one in group["params"]} == set(map(id, model.parameters()))


# The initialisation


def test_weights_are_drawn_by_kind_and_fan_in() -> None:
    table = parameter_table(convolutions, width=512, base_width=16)
    model = convolutions(512)
    kept = {name: one.clone() for name, one in model.named_parameters() if table[name].kind == "gain"}
    torch.manual_seed(0)
    initialise(model, table, GPTConfig(width=512, embedding_std=0.5, matrix_std=2.0, readout_std=0.25))
    found = dict(model.named_parameters())
    for name, std in {"0.weight": 0.5, "2.weight": 2 / (9 * 512) ** 0.5, "5.weight": 0.25}.items():
        # The standard error of a standard deviation of n values is 1/√2n.
        assert found[name].std().item() == pytest.approx(std, rel=4 / (2 * found[name].numel()) ** 0.5)
    for name, one in found.items():
        assert table[name].kind != "bias" or not one.any()
        assert name not in kept or torch.equal(one, kept[name])


def test_what_is_frozen_is_not_drawn_and_what_is_nowhere_cannot_be() -> None:
    table = parameter_table(sequential, width=64, base_width=16)
    model = sequential(64)
    kept = model[0].requires_grad_(False).weight.clone()
    initialise(model, table, GPTConfig())
    assert torch.equal(model[0].weight, kept)
    with refuses("model: must have its weights, but they are on the meta device"):
        initialise(model.to("meta"), table, GPTConfig())


# What cannot be grouped


def test_without_the_correction_no_group_has_it() -> None:
    table = parameter_table(gpt(), width=64, base_width=16)
    groups = parameter_groups(gpt()(64), table, settings_for, TUNED.model_copy(update={"corrected": False}))
    assert [group["corrected"] for group in groups] == [False] * 3


def test_a_models_own_module_named_module_is_no_wrapper() -> None:
    table = parameter_table(lambda width: Wrapper(sequential(width)), width=64, base_width=16)
    assert next(iter(table)) == "module.0.weight"
    groups = parameter_groups(Wrapper(sequential(64)), table, settings_for, TUNED)
    assert sum(len(group["params"]) for group in groups) == len(table)


class OneInside(nn.Module):
    """Have two weights whose names differ in a part that wrappers have too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))
        self.module = nn.Linear(width, width, bias=False)


def test_no_parameter_is_lost_to_another_of_almost_its_name() -> None:
    table = parameter_table(OneInside, width=64, base_width=16)
    model = OneInside(64)
    (group,) = parameter_groups(model, table, settings_for, TUNED)
    assert [id(parameter) for parameter in group["params"]] == [id(model.weight), id(model.module.weight)]
    message = (
        "table: names must differ without the parts _checkpoint_wrapped_module, _fsdp_wrapped_module, _orig_mod, "
        "module, got 'weight' twice"
    )
    with refuses(message):
        parameter_groups(Wrapper(model), table, settings_for, TUNED)


def test_a_tied_weight_is_in_one_group() -> None:
    build = gpt(tied=True)
    model = build(64)
    groups = parameter_groups(model, parameter_table(build, 64, 16), settings_for, TUNED)
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = sequential(64)
    model[0].requires_grad_(False)
    table = parameter_table(sequential, width=64, base_width=16)
    groups = parameter_groups(model, table, settings_for, TUNED)
    assert [group["name"] for group in groups] == ["matrix x4", "bias x4", "readout x4", "bias x1"]


def test_a_table_of_another_model_is_refused() -> None:
    table = parameter_table(sequential, width=64, base_width=16)
    message = (
        "table: its names must be the model's; only the model has '6.bias', '6.weight', "
        "only the table has '4.bias', '4.weight'"
    )
    other = nn.Sequential(*sequential(64)[:4], nn.ReLU(), nn.ReLU(), nn.Linear(64, 3))
    with refuses(message):
        parameter_groups(other, table, settings_for, TUNED)
    larger = sequential(64).append(nn.Linear(3, 3))
    with refuses("table: its names must be the model's; only the model has '5.bias', '5.weight'"):
        parameter_groups(larger, table, settings_for, TUNED)
