"""torchtitan (0.3): an optimizer group per kind, by patterns over its decoders' parameter names."""

from widthwise.proxies.config import Kind
from widthwise.transfer.exporting.export import (
    Export,
    attention,
    commented,
    decay,
    joined,
    kinds_of,
    multipliers,
    not_adamw,
    warmup_steps,
)
from widthwise.transfer.plan import Plan

# First match wins, and a pattern without a match is an error there.
_PATTERNS: dict[Kind, str] = {
    "embedding": r"^tok_embeddings\.",
    "readout": r"^lm_head\.",
    "bias": r"\.bias$",
    "gain": r"norm\.weight$",
    "matrix": r".*",
}


def torchtitan(plan: Plan) -> Export:
    """Return Python with ``optimizer``, ``lr_scheduler`` and ``training`` for a ``Trainer.Config``."""
    missing = joined(
        not_adamw(plan), multipliers(plan, logits=True, residual=True, initial=True), attention(plan)
    )
    horizon, tuned = plan.horizon, plan.hyperparameters
    # torchtitan always clips.
    clip = 1e9 if tuned.clip_norm is None else tuned.clip_norm
    style = "cosine" if horizon.schedule == "cosine" else "linear"
    ratio = horizon.decay_fraction if horizon.schedule == "wsd" else None
    present = kinds_of(plan)
    groups = "".join(_group(plan, kind) for kind in _PATTERNS if kind in present)
    text = f"""{commented(plan, "torchtitan", missing)}\
# For a Trainer.Config: optimizer=optimizer, lr_scheduler=lr_scheduler, training=training.
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig
from torchtitan.config import TrainingConfig

optimizer = OptimizersContainer.Config(
    param_groups=[
{groups}    ]
)
lr_scheduler = LRSchedulersContainer.Config(
    warmup_steps={warmup_steps(plan)},
    decay_ratio={ratio!r},
    decay_type={style!r},
    min_lr_factor={horizon.final_fraction!r},
)
training = TrainingConfig(
    global_batch_size={horizon.sequences(plan.model.context)},
    seq_len={plan.model.context},
    steps={horizon.steps},
    max_norm={clip!r},
)
"""
    return Export(text=text, missing=missing)


def _group(plan: Plan, kind: Kind) -> str:
    planned = plan.kinds[kind]
    options = {
        "lr": planned.lr,
        "weight_decay": decay(plan, kind),
        "eps": planned.eps,
        "betas": plan.betas,
    }
    return (
        f"        # {kind}\n"
        f'        ParamGroupConfig(pattern=r"{_PATTERNS[kind]}", optimizer_name="AdamW", '
        f"optimizer_kwargs={options!r}),\n"
    )
