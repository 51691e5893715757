"""A run of a tiny GPT, for tests of what is measured on the way."""

from typing import Any

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.runs import RunSpec, base_settings


def tiny_run(steps: int, *, batch_tokens: int = 64, **tuned: Any) -> RunSpec:
    hyperparameters = Hyperparameters(**{"lr": 0.02, "weight_decay": 0.5, "huber_c": 1.0, **tuned})
    return RunSpec(
        model=GPTConfig(width=16, head_dim=8, depth=1, context=16),
        base_width=16,
        horizon=Horizon(batch_tokens=batch_tokens, tokens=batch_tokens * steps),
        hyperparameters=hyperparameters,
        settings=base_settings(hyperparameters),
        data="python",
    )
