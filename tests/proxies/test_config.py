"""The records: their defaults' arithmetic, and one line for every impossible value."""

import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from widthwise.proxies.config import KINDS, GPTConfig, Horizon, Hyperparameters, KindSettings
from widthwise.proxies.validation import ConfigError, Record
from widthwise.search import SweepConfig

TUNED = {"lr": 0.02, "weight_decay": 0.4, "huber_c": 2.0}


def test_kinds_are_the_five_of_the_table() -> None:
    assert KINDS == ("matrix", "embedding", "readout", "gain", "bias")


def test_the_feed_forward_has_mlp_ratio_times_the_width() -> None:
    assert GPTConfig(width=96, mlp_ratio=2.5).hidden == 240
    assert GPTConfig(width=384, mlp_ratio=8 / 3).hidden == 1024


def test_a_tied_readout_is_scaled_down_unless_told_otherwise() -> None:
    assert GPTConfig(width=256).readout_multiplier == 1.0
    tied = GPTConfig(width=256, tied=True)
    assert tied.readout_multiplier == 4 / 256
    # A number in JSON: a wider copy keeps the proxy's, which the plan scales.
    assert GPTConfig.parse({**tied.model_dump(mode="json"), "width": 512}).readout_multiplier == 4 / 256
    assert GPTConfig(tied=True, readout_multiplier=1.0).readout_multiplier == 1.0


def test_steps_are_whole_batches_and_batches_whole_sequences() -> None:
    horizon = Horizon(batch_tokens=96, tokens=1000)
    assert horizon.steps == 10
    assert horizon.sequences(context=32) == 3
    message = "batch_tokens: must be a multiple of context = 40, got 96"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        horizon.sequences(context=40)


def test_an_unclipped_adamw_needs_no_huber_coefficient() -> None:
    tuned = Hyperparameters(lr=0.1, weight_decay=0.0, decay="l2")
    assert (tuned.huber_c, tuned.clip_norm, tuned.betas) == (None, None, (0.9, 0.95))


@pytest.mark.parametrize(
    "record", [GPTConfig(), Horizon(), Hyperparameters(**TUNED), KindSettings(lr=0, weight_decay=0, eps=0)]
)
def test_records_are_frozen_and_survive_json(record: Record) -> None:
    name = next(iter(type(record).model_fields))
    with pytest.raises(ValidationError, match="Instance is frozen"):
        setattr(record, name, 1)
    assert type(record).parse(record.model_dump(mode="json")) == record


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        (GPTConfig, {"width": 0}, "width: must be >= 1, got 0"),
        (GPTConfig, {"width": 72}, "width: must be a multiple of head_dim = 16, got 72"),
        (
            GPTConfig,
            {"width": 48, "group_size": 2},
            "width: must be a multiple of head_dim * group_size = 32, got 48",
        ),
        (
            GPTConfig,
            {"width": 15, "head_dim": 5},
            "head_dim: must be even for rotary positions, got 5",
        ),
        (
            GPTConfig,
            {"mlp_ratio": 2.01},
            "mlp_ratio: mlp_ratio * width must be a whole number, got 2.01 * 64",
        ),
        (GPTConfig, {"depth": 2.5}, "depth: must be a whole number, got 2.5"),
        (GPTConfig, {"vocab_size": 1}, "vocab_size: must be >= 2, got 1"),
        (GPTConfig, {"rope_base": 1}, "rope_base: must be > 1, got 1"),
        (GPTConfig, {"readout_multiplier": 0.0}, "readout_multiplier: must be > 0, got 0.0"),
        (GPTConfig, {"width": 0, "tied": True}, "width: must be >= 1, got 0"),
        (
            GPTConfig,
            {"norm": "rms"},
            "norm: must be 'rmsnorm' or 'layernorm', got 'rms'; did you mean 'rmsnorm'?",
        ),
        (Horizon, {"warmup_fraction": 1.0}, "warmup_fraction: must be < 1, got 1.0"),
        (Horizon, {"final_fraction": 1.5}, "final_fraction: must be <= 1, got 1.5"),
        (
            Horizon,
            {"batch_tokens": 64, "tokens": 63},
            "tokens: must be >= batch_tokens = 64, got 63",
        ),
        (
            Horizon,
            {"schedule": "cosin"},
            "schedule: must be 'cosine', 'linear' or 'wsd', got 'cosin'; did you mean 'cosine'?",
        ),
        (Hyperparameters, {**TUNED, "lr": 0}, "lr: must be > 0, got 0"),
        (Hyperparameters, {**TUNED, "lr": float("nan")}, "lr: must be finite, got nan"),
        (Hyperparameters, {**TUNED, "weight_decay": -0.1}, "weight_decay: must be >= 0, got -0.1"),
        (
            Hyperparameters,
            {**TUNED, "huber_c": None},
            "huber_c: is required where decay is 'huber'",
        ),
        (
            Hyperparameters,
            {**TUNED, "huber_c": None, "decay": "huber-prox"},
            "huber_c: is required where decay is 'huber-prox'",
        ),
        (Hyperparameters, {**TUNED, "huber_c": float("inf")}, "huber_c: must be finite, got inf"),
        (Hyperparameters, {**TUNED, "betas": [0.9, 1.0]}, "betas.1: must be in [0, 1), got 1.0"),
        (Hyperparameters, {**TUNED, "betas": [-0.1, 0.9]}, "betas.0: must be in [0, 1), got -0.1"),
        (Hyperparameters, {**TUNED, "betas": [0.9]}, "betas.1: is required"),
        (Hyperparameters, {**TUNED, "clip_norm": 0}, "clip_norm: must be > 0, got 0"),
        (SweepConfig, {"betas": [1.5, 0.9]}, "betas.0: must be in [0, 1), got 1.5"),
        (KindSettings, {"lr": -1, "weight_decay": 0, "eps": 0}, "lr: must be >= 0, got -1"),
    ],
)
def test_impossible_values_are_refused(record: type[Record], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        record.parse(fields)


def test_the_records_import_neither_torch_nor_mup() -> None:
    code = "import sys, widthwise.proxies.config; print({'torch', 'mup', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
