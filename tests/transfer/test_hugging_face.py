"""Hugging Face's models, from their configuration classes: tables, and µP in all it takes on a Llama."""

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widthwise.kernels import AdamHC
from widthwise.proxies import (
    GPTConfig,
    Horizon,
    Hyperparameters,
    ParameterTable,
    Tokens,
    open_tokens,
    parameter_table,
)
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Recipe

Build = Callable[[int], nn.Module]
WIDTHS = (32, 64, 128, 256)
STEPS = 5
RECIPE = Recipe(
    hyperparameters=Hyperparameters(lr=0.01, weight_decay=0.4, huber_c=2.0),
    proxy=GPTConfig(width=32, depth=2, head_dim=8, context=64),
    horizon=Horizon(batch_tokens=256, tokens=25_600),
)


def llama(hf: Any, **fields: Any) -> Build:
    """Return a Llama with grouped queries, its heads of a fixed size."""
    return lambda width: hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **{
                "vocab_size": 256,
                "hidden_size": width,
                "intermediate_size": 3 * width,
                "num_hidden_layers": 2,
                "num_attention_heads": width // 8,
                "num_key_value_heads": width // 16,
                "head_dim": 8,
                "max_position_embeddings": 64,
                **fields,
            }
        )
    )


def gpt2(hf: Any) -> Build:
    """Return a GPT-2 whose feed-forward grows more slowly than its width."""
    return lambda width: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=256,
            bos_token_id=0,
            eos_token_id=0,
            n_positions=64,
            n_embd=width,
            n_layer=1,
            n_head=width // 8,
            n_inner=96 + width,
        )
    )


def mixtral(hf: Any) -> Build:
    return lambda width: hf.MixtralForCausalLM(
        hf.MixtralConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=width // 8,
            num_key_value_heads=width // 16,
            head_dim=8,
            num_local_experts=4,
        )
    )


def rows(table: ParameterTable, layer: str = "layers.0.") -> dict[str, tuple[str, float, int | None]]:
    """Return a table's first block and what is outside of the blocks, by the ends of their names."""
    return {
        ".".join(name.split(".")[-2:]): (entry.kind, entry.width_multiplier, entry.fan_in)
        for name, entry in table.items()
        if layer in name or ".layers." not in name
    }


@pytest.mark.parametrize("tied", [False, True])
def test_the_table_of_a_llama(hugging_face: ModuleType, tied: bool) -> None:
    build = llama(hugging_face, tie_word_embeddings=tied)
    expected: dict[str, tuple[str, float, int | None]] = {
        "embed_tokens.weight": ("embedding", 4, None),
        **{f"{name}_proj.weight": ("matrix", 4, 128) for name in ("q", "k", "v", "o", "gate", "up")},
        "down_proj.weight": ("matrix", 4, 384),
        "input_layernorm.weight": ("gain", 4, None),
        "post_attention_layernorm.weight": ("gain", 4, None),
        "norm.weight": ("gain", 4, None),
        "lm_head.weight": ("readout", 4, None),
    }
    if tied:
        del expected["lm_head.weight"]
    assert rows(parameter_table(build, width=128, base_width=32)) == expected


def test_key_value_heads_of_a_fixed_number_are_refused(hugging_face: ModuleType) -> None:
    build = llama(hugging_face, num_key_value_heads=2)
    kept = [f"model.layers.*.self_attn.{name}_proj.weight" for name in "kv"]
    with pytest.raises(ConfigError) as caught:
        parameter_table(build, width=128, base_width=32)
    assert str(caught.value) == (
        f"build: cannot tell readouts from other layers from growing to fixed size, got '{kept[0]}', '{kept[1]}', "
        "'lm_head.weight'; let what is fixed, such as kv heads, grow with the width, or name each: 'matrix' divides η "
        "by the ratio of widths, for layers within the model, 'readout' keeps η, for its outputs; as in "
        f"overrides={{'{kept[0]}': 'matrix'}} (--override '{kept[0]}=matrix')"
    )
    table = parameter_table(build, width=128, base_width=32, overrides={"*.[kv]_proj.weight": "matrix"})
    assert rows(table)["k_proj.weight"] == ("matrix", 4, 128)


def test_the_table_of_a_gpt2_whose_matrices_are_kept_the_other_way_round(hugging_face: ModuleType) -> None:
    found = rows(parameter_table(gpt2(hugging_face), width=128, base_width=16), layer="h.0.mlp")
    assert {name: row for name, row in found.items() if name.startswith(("c_", "w"))} == {
        "wte.weight": ("embedding", 8, None),
        "wpe.weight": ("embedding", 8, None),
        "c_attn.weight": ("matrix", 8, 128),
        "c_attn.bias": ("bias", 8, None),
        "c_fc.weight": ("matrix", 8, 128),
        "c_fc.bias": ("bias", 2, None),
        # Attention's has the same name, and stands before it.
        "c_proj.weight": ("matrix", 2, 224),
        "c_proj.bias": ("bias", 8, None),
    }


def test_the_table_of_a_mixture_of_experts(hugging_face: ModuleType) -> None:
    build, router = mixtral(hugging_face), "model.layers.0.mlp.gate.weight"
    with pytest.raises(ConfigError) as caught:
        parameter_table(build, width=128, base_width=32)
    assert str(caught.value) == (
        f"build: cannot tell the kind of parameter '{router}' of shape (4, 128) in MixtralTopKRouter (1 growing "
        f"dimension); name it: overrides={{'{router}': 'embedding'}} (--override {router}=embedding) "
        "('matrix' for η/w, where it sums over the "
        "width)"
    )
    found = rows(parameter_table(build, width=128, base_width=32, overrides={"*.gate.weight": "matrix"}))
    assert {name: row for name, row in found.items() if name.startswith(("experts", "gate"))} == {
        "gate.weight": ("matrix", 4, 128),
        "experts.gate_up_proj": ("matrix", 4, 128),
        "experts.down_proj": ("matrix", 4, 256),
    }


def test_a_granites_configuration_says_what_hooks_say_on_a_llama(hugging_face: ModuleType) -> None:
    torch.manual_seed(0)
    hooked: Any = llama(hugging_face)(32)
    for layer in hooked.model.layers:
        multiply(layer.self_attn.o_proj, 0.5)
        multiply(layer.mlp.down_proj, 0.5)
    multiply(hooked.lm_head, 0.25)
    shape = {name: value for name, value in hooked.config.to_dict().items() if name != "model_type"}
    factors = {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 8**-0.5}
    granite = hugging_face.GraniteForCausalLM(hugging_face.GraniteConfig(**{**shape, **factors}))
    granite.load_state_dict(hooked.state_dict())
    tokens = torch.randint(256, (2, 8))
    torch.testing.assert_close(granite(tokens).logits, hooked(tokens).logits)


def multiply(layer: nn.Module, factor: float) -> None:
    layer.register_forward_hook(lambda _module, _inputs, output: output * factor)


# The coordinate check (Yang et al., arXiv 2203.03466, appendix D.1)


def prepared(build: Build, rule: str, width: int, *, applied: bool) -> tuple[nn.Module, AdamHC]:
    """Return a Llama with the plan's rates, and where `applied` its initialisation and readout multiplier."""
    plan = RECIPE.at(width=width, rule=rule)
    table = parameter_table(build, width=width, base_width=32)
    model: Any = build(width)
    if applied:
        plan.initialise(model, table)
        multiply(model.lm_head, plan.model.readout_multiplier)
    return model, AdamHC(plan.parameter_groups(model, table))


@cache
def python_tokens() -> Tokens:
    return open_tokens("python")


def movement(build: Build, rule: str, width: int, seed: int, *, applied: bool) -> list[list[float]]:
    """Return the rms changes since initialisation of the first block's output and of the logits, per step."""
    torch.manual_seed(seed)
    model, optimizer = prepared(build, rule, width, applied=applied)
    tokens = python_tokens()
    fixed, _ = tokens.batch(10**6, seed=seed, batch_size=4, context=64)
    start, moved = outputs(model, fixed), []
    for step in range(STEPS):
        x, y = tokens.batch(step, seed=seed, batch_size=4, context=64)
        F.cross_entropy(model(x, use_cache=False).logits.flatten(0, 1), y.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        found = zip(outputs(model, fixed), start, strict=True)
        moved.append([(now - before).square().mean().sqrt().item() for now, before in found])
    return moved


@torch.no_grad()
def outputs(model: nn.Module, tokens_bt: Tensor) -> tuple[Tensor, Tensor]:
    found = model(tokens_bt, output_hidden_states=True, use_cache=False)
    return found.hidden_states[1], found.logits


def slopes(build: Build, rule: str, seeds: range, *, applied: bool) -> np.ndarray:
    """Return the log-log slopes of the movement against the width: (steps, block or logits)."""
    runs = [[movement(build, rule, width, seed, applied=applied) for seed in seeds] for width in WIDTHS]
    logs = np.log(np.mean(runs, axis=1)).reshape(len(WIDTHS), -1)
    return np.polyfit(np.log(WIDTHS), logs, 1)[0].reshape(STEPS, 2)


@pytest.fixture
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
def test_with_the_plan_no_layer_of_a_llama_moves_more_or_less_in_a_wider_one(
    hugging_face: ModuleType,
) -> None:
    found = slopes(llama(hugging_face), "fan-sqrt", range(4), applied=True)
    # The readout starts at zero, so that the first step's gradient reaches nothing below it.
    assert np.abs(found[1:]).max() <= 0.1, found
    assert abs(found[0, 1]) <= 0.1, found


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(("rule", "applied"), [("sp", True), ("fan-sqrt", False)])
def test_without_the_whole_plan_the_check_fails(hugging_face: ModuleType, rule: str, applied: bool) -> None:
    found = slopes(llama(hugging_face), rule, range(1), applied=applied)
    assert np.abs(found[1:]).max() > 0.3, found
