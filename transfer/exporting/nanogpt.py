"""nanoGPT: a configuration file; its µP fork (EleutherAI/nanoGPT-mup) where the plan's learning rates are µP's."""

from typing import Any

from widthwise.proxies.config import Kind
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.exporting.export import (
    Export,
    assignments,
    attention,
    commented,
    decay,
    differing,
    joined,
    kinds_of,
    multipliers,
    not_adamw,
    warmup_steps,
)
from widthwise.transfer.plan import Plan

ADAM_EPS = 1e-8


def nanogpt(plan: Plan) -> Export:
    """Return a file for ``python train.py FILE``.

    Raises:
        ConfigError: the rule's learning rates are neither all alike nor those of the fork.
    """
    kinds, ratio = plan.kinds, plan.ratios.width
    rates = {kind: kinds[kind].lr for kind in kinds_of(plan)}
    hidden, rest = rates.pop("matrix"), set(rates.values())
    mup = ratio != 1 and len(rest) == 1 and abs(hidden * ratio / max(rest) - 1) < 1e-9
    if not mup and rest != {hidden}:
        raise ConfigError(
            "to: nanogpt has one η for all, or one for matrices divided by the ratio of widths; "
            f"rule {plan.rule!r} asks for something else"
        )
    head = "nanoGPT-mup" if mup else "nanoGPT"
    missing = joined(
        not_adamw(plan),
        multipliers(plan, logits=not mup, residual=True, initial=True),
        _logits(plan) if mup else [],
        attention(plan, 1.0 if mup else 0.5),
        _shape(plan),
        differing(plan, "weight_decay", _decayed(plan)),
        differing(plan, "eps", dict.fromkeys(kinds_of(plan), ADAM_EPS)),
        _schedule(plan),
    )
    text = commented(plan, head, missing) + assignments(_options(plan, max(rest), mup=mup))
    return Export(text=text, missing=missing)


def _options(plan: Plan, lr: float, *, mup: bool) -> dict[str, Any]:
    model, horizon = plan.model, plan.horizon
    options: dict[str, Any] = {
        "n_layer": model.depth,
        "n_head": model.width // model.head_dim,
        "n_embd": model.width,
        "block_size": model.context,
        "bias": model.bias,
        "batch_size": 1,
        "gradient_accumulation_steps": horizon.sequences(model.context),
        "learning_rate": lr,
        "weight_decay": decay(plan, "matrix"),
        "beta1": plan.betas[0],
        "beta2": plan.betas[1],
        "grad_clip": plan.hyperparameters.clip_norm or 0.0,
        "decay_lr": True,
        "max_iters": horizon.steps,
        "lr_decay_iters": horizon.steps,
        "warmup_iters": warmup_steps(plan),
        "min_lr": lr * horizon.final_fraction,
    }
    if mup:
        options |= {"mup_enabled": True, "mup_width_multiplier": plan.ratios.width}
    return options


def _shape(plan: Plan) -> list[str]:
    """Return a line with what both trainers' one architecture, GPT-2's, does not have."""
    model = plan.model
    differ = {
        f"mlp {model.mlp}, {model.mlp_ratio:g} times the width (gelu, 4 times)": (model.mlp, model.mlp_ratio)
        != ("gelu", 4),
        f"{model.norm} (layernorm)": model.norm != "layernorm",
        "norms without a gain (with one)": not model.norm_gain,
        "rotary positions (learned ones)": True,
        "qk_norm (none)": model.qk_norm,
        f"{model.group_size} query heads per key-value head (1)": model.group_size > 1,
        "an untied readout (a tied one)": not model.tied,
    }
    told = ", ".join(name for name, differs in differ.items() if differs)
    return [f"the model's shape, with the trainer's in brackets: {told}"]


def _logits(plan: Plan) -> list[str]:
    """Return a line where the fork's logits, divided by the ratio of widths, are not the plan's."""
    factor, expected = plan.kinds["readout"].multipliers.forward, 1 / plan.ratios.width
    if abs(factor / expected - 1) < 1e-9:
        return []
    return [f"logits times {factor:g}, where the trainer takes {expected:g}"]


def _decayed(plan: Plan) -> dict[Kind, float]:
    decayed = decay(plan, "matrix")
    return {kind: 0.0 if kind in ("gain", "bias") else decayed for kind in kinds_of(plan)}


def _schedule(plan: Plan) -> list[str]:
    name = plan.horizon.schedule
    return [] if name == "cosine" else [f"schedule {name}, where the trainer takes cosine"]
