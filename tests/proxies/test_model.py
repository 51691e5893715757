"""The GPT: causality, attention against its formula, positions, initialisation, and the cost of a token."""

from math import log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from widthwise.proxies import GPT, GPTConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu": {"mlp": "gelu"},
    "relu2": {"mlp": "relu2"},
    "layernorm": {"norm": "layernorm"},
    "layernorm with gain and bias": {"norm": "layernorm", "norm_gain": True, "bias": True},
    "gain": {"norm_gain": True},
    "bias": {"bias": True},
    "no qk-norm": {"qk_norm": False},
    "grouped queries": {"group_size": 2},
    "tied": {"tied": True},
}


def config(**fields: Any) -> GPTConfig:
    smallest = {"width": 32, "head_dim": 8, "depth": 2, "context": 12, "vocab_size": 50, "readout_std": 0.5}
    return GPTConfig(**{**smallest, **fields})


def some_tokens(rows: int = 3, time: int = 12) -> Tensor:
    return torch.randint(50, (rows, time), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_logits_and_a_gradient_to_every_parameter(variant: str) -> None:
    model = GPT(config(**VARIANTS[variant]), seed=1)
    tokens = some_tokens()
    logits = model(tokens)
    assert logits.shape == (3, 12, 50)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("position", [1, 6, 11])
def test_no_token_changes_an_earlier_prediction(variant: str, position: int) -> None:
    model = GPT(config(**VARIANTS[variant]), seed=1)
    tokens = some_tokens()
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % 50
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=0)
    assert (after[:, position:] - before[:, position:]).abs().amax(-1).gt(1e-4).all()


def test_a_shorter_sequence_gets_the_predictions_of_its_beginning() -> None:
    model, tokens = GPT(config(), seed=1), some_tokens()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5])


# Attention


@pytest.mark.parametrize("group_size", [1, 2, 4])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_attention_is_its_formula(group_size: int, qk_norm: bool) -> None:
    shape = config(group_size=group_size, qk_norm=qk_norm, attention_multiplier=3.0)
    model = GPT(shape, seed=1).double()
    x_btd = torch.randn(2, 12, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    attention = model.blocks[0].attention
    expected = explicit_attention(attention, x_btd, shape)
    # The model keeps its angles in fp32, as it does under autocast.
    torch.testing.assert_close(attention(x_btd, *angles(shape, 12)), expected, rtol=1e-10, atol=1e-12)


def explicit_attention(attention: nn.Module, x_btd: Tensor, shape: GPTConfig) -> Tensor:
    """Compute attention a head and a position at a time."""
    cos, sin = angles(shape, x_btd.shape[1])
    heads, e = shape.width // shape.head_dim, shape.head_dim
    q, k, v = (layer(x_btd) for layer in (attention.query, attention.key, attention.value))
    mixed = torch.zeros_like(x_btd)
    for head in range(heads):
        mine, shared = slice(head * e, head * e + e), head // shape.group_size
        theirs = slice(shared * e, shared * e + e)
        for row in range(len(x_btd)):
            queries, keys = q[row, :, mine], k[row, :, theirs]
            if shape.qk_norm:
                queries, keys = rms_normalised(queries), rms_normalised(keys)
            for time in range(x_btd.shape[1]):
                query = rotated(queries[time], cos[time], sin[time])
                logits = [rotated(keys[past], cos[past], sin[past]) @ query for past in range(time + 1)]
                weights = torch.softmax(torch.stack(logits) * shape.attention_multiplier / e, dim=0)
                mixed[row, time, mine] = weights @ v[row, : time + 1, theirs]
    return mixed @ attention.out.weight.T


def angles(shape: GPTConfig, time: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of position × wavelength, as the definition of rotary positions has them."""
    pairs = range(0, shape.head_dim, 2)
    wavelengths = torch.tensor([shape.rope_base ** (-i / shape.head_dim) for i in pairs], dtype=torch.float64)
    turned = torch.arange(time, dtype=torch.float64)[:, None] * wavelengths
    return turned.cos(), turned.sin()


def rms_normalised(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def rotated(x_e: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + e/2), as complex numbers."""
    first, second = x_e.chunk(2)
    turned = torch.complex(first, second) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag))


def test_the_models_own_angles_are_rotary_positions() -> None:
    shape = config(rope_base=500.0)
    model = GPT(shape)
    for found, expected in zip((model.cos, model.sin), angles(shape, 12), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_attention_sees_distances_not_positions() -> None:
    shape = config(depth=1)
    attention = GPT(shape, seed=1).double().blocks[0].attention
    x_btd = torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    cos, sin = angles(shape, 12)
    here, later = attention(x_btd, cos[:9], sin[:9]), attention(x_btd, cos[3:], sin[3:])
    torch.testing.assert_close(later, here, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(attention(x_btd, cos[:9] * 0 + 1, sin[:9] * 0), here)


# Multipliers and initialisation


def test_the_multipliers_are_factors_of_branches_and_logits() -> None:
    tokens = some_tokens()
    model = GPT(config(readout_multiplier=0.25, residual_multiplier=0.5), seed=1)
    plain = GPT(config(), seed=1)
    with torch.no_grad():
        for block in plain.blocks:
            block.attention.out.weight *= 0.5
            block.feed_forward.down.weight *= 0.5
        torch.testing.assert_close(model(tokens), 0.25 * plain(tokens))


def test_the_seed_decides_every_weight() -> None:
    one, same, other = (GPT(config(), seed=seed).state_dict() for seed in (1, 1, 2))
    for name in one:
        assert torch.equal(one[name], same[name]), name
        assert not torch.equal(one[name], other[name]), name


def test_without_a_seed_the_global_generator_decides() -> None:
    torch.manual_seed(5)
    one = GPT(config())
    torch.manual_seed(5)
    torch.testing.assert_close(GPT(config()).state_dict(), one.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["plain", "layernorm with gain and bias", "gain", "tied"])
def test_initialising_again_forgets_everything(variant: str) -> None:
    model, fresh = (GPT(config(**VARIANTS[variant]), seed=1) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    model.initialise(seed=1)
    torch.testing.assert_close(model.state_dict(), fresh.state_dict(), rtol=0, atol=0)


def test_weights_begin_with_their_standard_deviations() -> None:
    stds = {"embedding_std": 0.7, "matrix_std": 1.5, "readout_std": 0.3}
    model = GPT(config(width=256, depth=1, vocab_size=1000, norm_gain=True, bias=True, **stds), seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            special = {"embedding.weight": 0.7, "readout.weight": 0.3}
            expected = special.get(name, 1.5 / sqrt(parameter.shape[1]))
            # The standard error of the standard deviation of n draws is 1/√(2n) of it: five of them.
            tolerance = 5 / sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=tolerance), name
            assert abs(parameter.mean().item()) < 5 * expected / sqrt(parameter.numel()), name


def test_a_zero_readout_predicts_every_token_alike() -> None:
    with torch.no_grad():
        logits = GPT(config(readout_std=0.0), seed=1)(some_tokens())
    loss = F.cross_entropy(logits.flatten(0, 1), some_tokens().flatten())
    assert loss.item() == pytest.approx(log(50), abs=1e-6)


def test_a_tied_readout_is_the_embedding() -> None:
    model = GPT(config(tied=True), seed=1)
    assert model.readout.weight is model.embedding.weight
    assert "readout.weight" not in dict(model.named_parameters())
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.1)


def test_on_the_meta_device_it_costs_nothing() -> None:
    with torch.device("meta"):
        model = GPT(config(width=2**16), seed=1)
    assert all(parameter.is_meta for parameter in model.parameters())


# The cost of a token: per block 4 d² in attention (of them k and v shared by groups), 3 or 2 · d · 3d in the mlp


@pytest.mark.parametrize(
    ("fields", "matrix_weights"),
    [
        ({}, 2 * (4 * 32 * 32 + 3 * 32 * 96) + 50 * 32),
        ({"mlp": "gelu", "mlp_ratio": 4.0}, 2 * (4 * 32 * 32 + 2 * 32 * 128) + 50 * 32),
        ({"group_size": 2}, 2 * (3 * 32 * 32 + 3 * 32 * 96) + 50 * 32),
        ({"tied": True}, 2 * (4 * 32 * 32 + 3 * 32 * 96) + 50 * 32),
        ({"norm_gain": True, "bias": True}, 2 * (4 * 32 * 32 + 3 * 32 * 96) + 50 * 32),
    ],
)
def test_flops_are_six_per_weight_and_twelve_per_attended_value(
    fields: dict[str, Any], matrix_weights: int
) -> None:
    attention = 12 * 2 * 32 * 12  # 12 · depth · width · context
    assert GPT(config(**fields)).flops_per_token() == 6 * matrix_weights + attention
