"""A decoder-only GPT as people train it today, whose every width-dependent constant is a plain float.

Pre-norm, rotary positions, QK-norm, grouped-query attention, SwiGLU / GELU / ReLU² feed-forward, tied or
untied readout. µP's parts (Yang et al., arXiv 2203.03466): attention logits over head_dim instead of its
root, a readout multiplier, and matrices initialised with standard deviation ∝ 1/√fan_in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widthwise.proxies.config import GPTConfig


class Attention(nn.Module):
    """Causal self-attention with rotary positions; key-value heads are shared by groups of query heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.width // config.group_size
        self.query = nn.Linear(config.width, config.width, bias=config.bias)
        self.key = nn.Linear(config.width, kv_width, bias=config.bias)
        self.value = nn.Linear(config.width, kv_width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x_btd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        config = self.config
        q, k, v = (self._heads(layer(x_btd)) for layer in (self.query, self.key, self.value))
        if config.qk_norm:
            q, k = F.rms_norm(q, (config.head_dim,)), F.rms_norm(k, (config.head_dim,))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        y_bhte = F.scaled_dot_product_attention(
            q,
            k,
            v,
            is_causal=True,
            enable_gqa=config.group_size > 1,
            scale=config.attention_multiplier / config.head_dim,
        )
        out: Tensor = self.out(y_bhte.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.reshape(*x_btd.shape[:2], -1, self.config.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (gated, three matrices), GELU or ReLU² (two matrices)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.mlp
        self.up = nn.Linear(config.width, config.hidden, bias=config.bias)
        gated = config.mlp == "swiglu"
        self.gate = nn.Linear(config.width, config.hidden, bias=config.bias) if gated else None
        self.down = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        hidden = self.up(x_btd)
        if self.gate is not None:
            hidden = F.silu(self.gate(x_btd)) * hidden
        elif self.activation == "gelu":
            hidden = F.gelu(hidden)
        else:
            hidden = F.relu(hidden).square()
        out: Tensor = self.down(hidden)
        return out


class Block(nn.Module):
    """x + a·attention(norm(x)), then x + a·feed_forward(norm(x)), with a the residual multiplier."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.residual_multiplier = config.residual_multiplier
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x_btd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_btd = x_btd + self.residual_multiplier * self.attention(self.attention_norm(x_btd), cos, sin)
        x_btd = x_btd + self.residual_multiplier * self.feed_forward(self.feed_forward_norm(x_btd))
        return x_btd


class GPT(nn.Module):
    """Tokens (batch, time) int64 to logits (batch, time, vocab_size).

    The initialisation draws from torch's global generator: seed it first, or pass `seed`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, *, seed: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = _norm(config)
        self.readout = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.readout.weight = self.embedding.weight
        cos, sin = _rotary(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise(seed)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        time = tokens_bt.shape[1]
        x_btd = self.embedding(tokens_bt)
        for block in self.blocks:
            x_btd = block(x_btd, self.cos[:time], self.sin[:time])
        logits: Tensor = self.readout(self.norm(x_btd)) * self.config.readout_multiplier
        return logits

    @torch.no_grad()
    def initialise(self, seed: int | None = None) -> None:
        """Draw every weight anew, from `seed` where one is given; biases are zero and gains one."""
        config = self.config
        if self.embedding.weight.is_meta:
            return
        generator = None
        if seed is not None:
            generator = torch.Generator(self.embedding.weight.device).manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.readout:
                std = config.matrix_std / module.in_features**0.5
                module.weight.normal_(0.0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
        self.embedding.weight.normal_(0.0, config.embedding_std, generator=generator)
        if not config.tied:
            self.readout.weight.normal_(0.0, config.readout_std, generator=generator)

    def flops_per_token(self) -> float:
        """Floating-point operations of one token's forward and backward pass: 6 per matrix weight, and attention.

        The embedding's look-up is free; a tied readout is counted once (PaLM, arXiv 2204.02311, appendix B).
        """
        config = self.config
        weights = sum(p.numel() for p in self.parameters() if p.ndim == 2)
        if not config.tied:
            weights -= self.embedding.weight.numel()
        return 6.0 * weights + 12.0 * config.depth * config.width * config.context


def _norm(config: GPTConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.width, elementwise_affine=config.norm_gain, bias=config.bias)
    return nn.RMSNorm(config.width, elementwise_affine=config.norm_gain)


def _rotary(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of shape (context, head_dim / 2)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32), config.rope_base**-exponents)
    return angles.cos(), angles.sin()


def _rotate(x_bhte: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head by the position's angles (RoFormer, arXiv 2104.09864)."""
    first, second = x_bhte.chunk(2, dim=-1)
    cos, sin = cos.to(x_bhte.dtype), sin.to(x_bhte.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
