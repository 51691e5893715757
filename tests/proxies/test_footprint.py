"""A step's cost from shapes alone: equal to what real tensors keep, and to the model's own count of FLOPs."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from widthwise.proxies import GPT, GPTConfig
from widthwise.proxies.footprint import footprint, kept_bytes
from widthwise.proxies.validation import ConfigError

CONFIG = GPTConfig(width=32, depth=2, context=64, group_size=2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_traced_is_what_real_tensors_keep(precision: Literal["fp32", "bf16"]) -> None:
    traced = footprint(lambda: GPT(CONFIG), context=64, vocab_size=256, precision=precision)
    for sequences in (1, 3, 8):
        real = kept_bytes(GPT(CONFIG), sequences, context=64, vocab_size=256, precision=precision)
        assert traced.activation_bytes(sequences) == real


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_layers_keep_their_inputs_and_one_layers_own(precision: Literal["fp32", "bf16"]) -> None:
    def traced(depth: int, *, recompute: bool) -> int:
        config = CONFIG.model_copy(update={"depth": depth})
        found = footprint(
            lambda: GPT(config), context=64, vocab_size=256, precision=precision, recompute=recompute
        )
        assert len(found.layers) == depth
        return found.sequence_bytes

    residual = 64 * 32 * 4  # fp32, under autocast too
    assert traced(4, recompute=True) - traced(3, recompute=True) == pytest.approx(residual, rel=0.05)
    per_layer = traced(4, recompute=False) - traced(3, recompute=False)
    assert traced(4, recompute=True) == pytest.approx(
        traced(4, recompute=False) - 3 * (per_layer - residual), rel=0.05
    )


def test_what_fsdp_gathers_by_hand() -> None:
    found = footprint(lambda: GPT(CONFIG), context=64, vocab_size=256, precision="bf16")
    # Grouped queries: 3 d² of attention, 9 d² of SwiGLU in each block; embedding and readout in none.
    assert found.layers == (12 * 32 * 32,) * 2
    assert found.gathered == 2 * 256 * 32 + 2 * 12 * 32 * 32


def test_a_linear_layers_bytes_by_hand() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.readout = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.readout(self.embedding(tokens))
            return logits

    found = footprint(Model, context=6, vocab_size=10, precision="fp32")
    assert found.sizes == {"embedding.weight": 40, "readout.weight": 40}
    assert found.parameters == 80
    # Per token: its id (8 bytes), its embedding (4 numbers), its log-probabilities (10 numbers). The ids are
    # the targets too; beside them, the loss keeps the sum of the targets' weights.
    assert found.sequence_bytes == 6 * (8 + 4 * 4 + 10 * 4)
    assert found.fixed_bytes == 4
    # Two operations per weight and token forwards, four backwards; a look-up is free.
    assert found.flops_per_token == 6 * 40


def test_counted_flops_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told = footprint(lambda: GPT(CONFIG), context=64, vocab_size=256, precision="bf16").flops_per_token
    monkeypatch.delattr(GPT, "flops_per_token")
    counted = footprint(lambda: GPT(CONFIG), context=64, vocab_size=256, precision="bf16").flops_per_token
    assert counted == told


class Wrong(nn.Module):
    def __init__(self, found: object) -> None:
        super().__init__()
        self.found = found

    def forward(self, tokens: Tensor) -> object:
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.zeros(1, 6, 9), "(1, 6, 9)"),
        ((torch.zeros(1, 6, 10), None), "tuple"),
    ],
)
def test_a_model_that_returns_no_logits_is_refused(found: object, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kept_bytes(Wrong(found), 1, context=6, vocab_size=10, precision="fp32")
    assert str(refused.value) == f"model: must map tokens (1, 6) to logits (1, 6, 10), got {message}"
