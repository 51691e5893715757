"""What a proxy is, how long it trains and with what: validated records that import neither torch nor mup."""

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from widthwise.proxies.validation import ConfigError, Record

Kind = Literal["matrix", "embedding", "readout", "gain", "bias"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Decay = Literal["none", "l2", "huber", "huber-prox"]
Threshold = Literal["mean", "ema"]
Schedule = Literal["cosine", "linear", "wsd"]
Assign = Literal["linear", "sqrt", "log2", "sigmoid"]
"""How AlphaDecay makes multipliers of α; see `widthwise.proxies.spectra.assigned`."""


def require_range(low: float, high: float) -> None:
    """Raise a ConfigError unless 0 <= low <= high, high > 0 and both are finite."""
    if not (0 <= low <= high < math.inf and high > 0):
        raise ConfigError(f"low: 0 <= low <= high must hold, and high > 0, got low={low}, high={high}")


def _below_one(betas: tuple[float, float]) -> tuple[float, float]:
    for index, beta in enumerate(betas):
        if not 0 <= beta < 1:
            raise ValueError(f"{index}: must be in [0, 1), got {beta}")
    return betas


# What torch, numpy and the sampler all take.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Betas = Annotated[tuple[float, float], AfterValidator(_below_one)]
"""Adam's β1 and β2."""


def _readout_multiplier(fields: dict[str, Any]) -> float:
    # Measured at widths 32 to 256: 4 starts 2 to 5 % above ln(vocab_size) on random bytes. Without it: 35 nats.
    return 4.0 / fields["width"] if fields["tied"] else 1.0


class GPTConfig(Record):
    """The shape of a decoder-only GPT and the constants of its initialisation.

    Everything that a scaling rule changes with width or depth is a plain float here
    (``*_std``, ``*_multiplier``), so that a sharded, compiled or copied model keeps it.

    Attributes:
        width: residual stream size d; a multiple of ``head_dim * group_size``.
        depth: number of blocks.
        head_dim: size of one attention head; fixed while the width grows.
        context: tokens per sequence.
        vocab_size: number of token ids.
        group_size: query heads per key-value head (grouped-query attention); the count of
            key-value heads is ``width / (head_dim * group_size)`` and grows with the width.
        norm: the pre-normalisation.
        norm_gain: whether the norms have a learnable gain.
        qk_norm: whether queries and keys are normalised (RMS, per head).
        mlp: the feed-forward's activation.
        mlp_ratio: feed-forward size divided by the width.
        bias: whether linear layers have a bias.
        tied: whether the readout shares the embedding's weight.
        rope_base: base of the rotary positions' wavelengths.
        attention_multiplier: logits are ``attention_multiplier * q.k / head_dim`` (µP: 1/d, not 1/√d);
            4 equals the usual 1/√d at head_dim 16.
        readout_multiplier: factor on the logits (µP: 1 at the base width, 1/w at the target). Where the
            readout is tied, 4 / `width` unless given: a token's embedding and the state that it is still a
            part of have a product of about the width.
        residual_multiplier: factor on every branch before it joins the residual stream.
        embedding_std: standard deviation of the embedding.
        matrix_std: standard deviation of matrices, in units of 1/√fan_in.
        readout_std: standard deviation of an untied readout; 0 starts from uniform predictions.
    """

    width: int = Field(64, ge=1)
    depth: int = Field(2, ge=1)
    head_dim: int = Field(16, ge=2)
    context: int = Field(128, ge=1)
    vocab_size: int = Field(256, ge=2)
    group_size: int = Field(1, ge=1)
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_gain: bool = False
    qk_norm: bool = True
    mlp: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    mlp_ratio: float = Field(3.0, gt=0)
    bias: bool = False
    tied: bool = False
    rope_base: float = Field(10000.0, gt=1)
    attention_multiplier: float = Field(4.0, gt=0)
    readout_multiplier: float = Field(default_factory=_readout_multiplier, gt=0)
    residual_multiplier: float = Field(1.0, gt=0)
    embedding_std: float = Field(1.0, gt=0)
    matrix_std: float = Field(1.0, gt=0)
    readout_std: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _divisible(self) -> "GPTConfig":
        if self.head_dim % 2:
            raise ValueError(f"head_dim: must be even for rotary positions, got {self.head_dim}")
        step = self.head_dim * self.group_size
        if self.width % step:
            unit = f"head_dim * group_size = {step}" if self.group_size > 1 else f"head_dim = {step}"
            raise ValueError(f"width: must be a multiple of {unit}, got {self.width}")
        if (self.mlp_ratio * self.width) % 1:
            product = f"{self.mlp_ratio} * {self.width}"
            raise ValueError(f"mlp_ratio: mlp_ratio * width must be a whole number, got {product}")
        return self

    @property
    def hidden(self) -> int:
        """Feed-forward size."""
        return int(self.mlp_ratio * self.width)


class Horizon(Record):
    """How long a run is and how its learning rate moves.

    Attributes:
        batch_tokens: tokens per optimizer step, over all workers.
        tokens: tokens in all.
        warmup_fraction: share of the steps in which η rises linearly to its peak.
        schedule: ``cosine`` or ``linear`` to `final_fraction`, or ``wsd`` (warm-up, stable, then
            linear over the last `decay_fraction` of the steps).
        final_fraction: η at the end divided by its peak.
        decay_fraction: share of the steps in which ``wsd`` decays.
    """

    batch_tokens: int = Field(2048, ge=1)
    tokens: int = Field(409_600, ge=1)
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    schedule: Schedule = "cosine"
    final_fraction: float = Field(0.0, ge=0, le=1)
    decay_fraction: float = Field(0.2, gt=0, le=1)

    @model_validator(mode="after")
    def _at_least_one_step(self) -> "Horizon":
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens: must be >= batch_tokens = {self.batch_tokens}, got {self.tokens}")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps: tokens / batch_tokens, rounded down."""
        return self.tokens // self.batch_tokens

    def sequences(self, context: int) -> int:
        """Return the sequences of `context` tokens in a batch.

        Raises:
            ConfigError: where they are not a whole number.
        """
        if self.batch_tokens % context:
            raise ConfigError(
                f"batch_tokens: must be a multiple of context = {context}, got {self.batch_tokens}"
            )
        return self.batch_tokens // context


class Hyperparameters(Record):
    """The optimizer's settings at the base width, where every multiplier is 1.

    Attributes:
        lr: peak learning rate η.
        weight_decay: λ in torch's AdamW convention (θ ← θ - η(u + λθ)), of the kinds that decay.
        huber_c: Huber coefficient c; required by the Huber decays, None otherwise.
        betas: Adam's β1 and β2.
        eps: Adam's ε.
        decay: form of the weight decay.
        threshold: whether δ follows mean|θ| or its moving average.
        corrected: AdamC's correction on the normalised parameters.
        clip_norm: global gradient norm, or None for no clipping.
    """

    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    huber_c: float | None = Field(None, gt=0)
    betas: Betas = (0.9, 0.95)
    eps: float = Field(1e-8, ge=0)
    decay: Decay = "huber"
    threshold: Threshold = "mean"
    corrected: bool = True
    clip_norm: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "Hyperparameters":
        if self.decay.startswith("huber") and self.huber_c is None:
            raise ValueError(f"huber_c: is required where decay is {self.decay!r}")
        return self


class KindSettings(Record):
    """Peak learning rate, weight decay and ε of one parameter kind: what a rule's multipliers come to."""

    lr: float = Field(ge=0)
    weight_decay: float = Field(ge=0)
    eps: float = Field(ge=0)
