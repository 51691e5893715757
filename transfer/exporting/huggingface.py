"""Hugging Face's Trainer: a file of ``TrainingArguments``, which know one learning rate for all parameters.

The Trainer takes an optimizer that it did not make: with the plan's groups, everything is expressed.
"""

from typing import Any

import yaml

from widthwise.transfer.exporting.export import (
    Export,
    attention,
    commented,
    decay,
    decay_steps,
    differing,
    joined,
    kinds_of,
    multipliers,
    not_adamw,
    warmup_steps,
)
from widthwise.transfer.plan import Plan

_GROUPS = (
    "pass the plan's groups, and all but the multipliers is expressed: "
    "Trainer(..., optimizers=(AdamHC(plan.parameter_groups(model, table)), None))"
)


def hf(plan: Plan) -> Export:
    """Return YAML for ``HfArgumentParser(TrainingArguments).parse_yaml_file``: the matrices' η, λ and ε."""
    matrix, horizon = plan.kinds["matrix"], plan.horizon
    kinds = kinds_of(plan)
    missing = joined(
        differing(plan, "lr", dict.fromkeys(kinds, matrix.lr)),
        # The Trainer leaves biases and normalisations out of the decay.
        differing(
            plan, "weight_decay", {k: 0.0 if k in ("gain", "bias") else decay(plan, "matrix") for k in kinds}
        ),
        differing(plan, "eps", dict.fromkeys(kinds, matrix.eps)),
        not_adamw(plan),
        multipliers(plan, logits=True, residual=True, initial=True),
        attention(plan),
        _inexact_schedule(plan),
    )
    options: dict[str, Any] = {
        "output_dir": "out",
        "learning_rate": matrix.lr,
        "weight_decay": decay(plan, "matrix"),
        "adam_beta1": plan.betas[0],
        "adam_beta2": plan.betas[1],
        "adam_epsilon": matrix.eps,
        "max_grad_norm": plan.hyperparameters.clip_norm or 0.0,
        "max_steps": horizon.steps,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": horizon.sequences(plan.model.context),
        "warmup_steps": warmup_steps(plan),
        **_schedule(plan),
    }
    note = f"# {_GROUPS}\n" if missing else ""
    text = commented(plan, "transformers.TrainingArguments", missing) + note
    return Export(text=text + yaml.safe_dump(options, sort_keys=False), missing=missing)


def _schedule(plan: Plan) -> dict[str, Any]:
    horizon = plan.horizon
    if horizon.schedule == "wsd":
        extra = {
            "num_decay_steps": decay_steps(plan),
            "decay_type": "linear",
            "min_lr_ratio": horizon.final_fraction,
        }
        return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": extra}
    if horizon.schedule == "cosine" and horizon.final_fraction:
        rate = {"min_lr_rate": horizon.final_fraction}
        return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": rate}
    return {"lr_scheduler_type": horizon.schedule}


def _inexact_schedule(plan: Plan) -> list[str]:
    final = plan.horizon.final_fraction
    if plan.horizon.schedule != "linear" or final == 0:
        return []
    return [f"schedule linear to {final:g} of the peak, where the trainer takes 0"]
