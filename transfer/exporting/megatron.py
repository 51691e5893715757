"""Megatron-LM: command-line arguments; its own µP options where the plan's learning rates are µP's.

With ``--use-mup`` Megatron divides the hidden matrices' η and ε by the ratio of widths, and the logits by
``--mup-output-mult``, and its attention takes q·k/head_dim; ``--decoupled-lr`` holds for embedding and output layer.
"""

from typing import Any

from widthwise.proxies.config import Kind
from widthwise.proxies.validation import ConfigError
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


def megatron(plan: Plan) -> Export:
    """Return a file of arguments, to be given as ``$(grep -v '^#' FILE)``.

    Raises:
        ConfigError: the rule's learning rates or multipliers are not among those that Megatron can say.
    """
    mup = _is_mup(plan)
    ratio = plan.ratios.width if mup else 1.0
    kinds, horizon = plan.kinds, plan.horizon
    ends = kinds["embedding"].lr
    missing = joined(
        not_adamw(plan),
        multipliers(plan, logits=False, residual=True, initial=True),
        attention(plan, 1.0 if mup else 0.5),
        differing(plan, "weight_decay", _decayed(plan)),
        differing(plan, "eps", _eps(plan, ratio)),
    )
    options: dict[str, Any] = {
        "lr": kinds["gain"].lr,
        "min-lr": kinds["gain"].lr * horizon.final_fraction,
        "decoupled-lr": ends,
        "decoupled-min-lr": ends * horizon.final_fraction,
        "weight-decay": decay(plan, "matrix"),
        "adam-beta1": plan.betas[0],
        "adam-beta2": plan.betas[1],
        "adam-eps": kinds["gain"].eps,
        "clip-grad": plan.hyperparameters.clip_norm or 0.0,
        **_schedule(plan),
        **_shape(plan),
        **(_mup(plan) if mup else {}),
    }
    lines = "".join(f"--{name}{'' if value is True else f' {value}'}\n" for name, value in options.items())
    return Export(text=commented(plan, "Megatron-LM", missing) + lines, missing=missing)


def _is_mup(plan: Plan) -> bool:
    """Tell whether Megatron's µP says the plan, or else none of it; raise where neither does."""
    kinds, ratio = plan.kinds, plan.ratios.width
    matrices = kinds["matrix"].lr / kinds["gain"].lr
    logits = kinds["readout"].multipliers.forward
    if kinds["embedding"].lr != kinds["readout"].lr:
        raise _refused(plan, "one η for embedding and readout")
    if abs(matrices * ratio - 1) < 1e-9 and (ratio == 1 or logits != 1):
        return ratio != 1
    if abs(matrices - 1) < 1e-9 and logits == 1:
        return False
    raise _refused(plan, "η of matrices and logits divided by the ratio of widths, or neither")


def _refused(plan: Plan, rule: str) -> ConfigError:
    return ConfigError(f"to: megatron has options for {rule}; rule {plan.rule!r} asks for something else")


def _mup(plan: Plan) -> dict[str, Any]:
    return {
        "use-mup": True,
        "mup-base-hidden-size": plan.recipe.proxy.width,
        "mup-output-mult": plan.kinds["readout"].multipliers.forward,
    }


def _decayed(plan: Plan) -> dict[Kind, float]:
    """Return the λ that each kind gets: one for all but gains and biases."""
    decayed = decay(plan, "matrix")
    return {kind: 0.0 if kind in ("gain", "bias") else decayed for kind in kinds_of(plan)}


def _eps(plan: Plan, ratio: float) -> dict[Kind, float]:
    base = plan.kinds["gain"].eps
    return {kind: base / ratio if kind in ("matrix", "readout") else base for kind in kinds_of(plan)}


def _schedule(plan: Plan) -> dict[str, Any]:
    horizon = plan.horizon
    options: dict[str, Any] = {
        "train-iters": horizon.steps,
        "global-batch-size": horizon.sequences(plan.model.context),
        "lr-decay-iters": horizon.steps,
        "lr-warmup-iters": warmup_steps(plan),
        "lr-decay-style": horizon.schedule,
    }
    if horizon.schedule == "wsd":
        wsd = {
            "lr-decay-style": "WSD",
            "lr-wsd-decay-style": "linear",
            "lr-wsd-decay-iters": decay_steps(plan),
        }
        options |= wsd
    return options


def _shape(plan: Plan) -> dict[str, Any]:
    model = plan.model
    heads = model.width // model.head_dim
    options: dict[str, Any] = {
        "seq-length": model.context,
        "max-position-embeddings": model.context,
        "hidden-size": model.width,
        "num-layers": model.depth,
        "num-attention-heads": heads,
        "kv-channels": model.head_dim,
        "ffn-hidden-size": model.hidden,
        "position-embedding-type": "rope",
        "normalization": "RMSNorm" if model.norm == "rmsnorm" else "LayerNorm",
    }
    flags = {
        "qk-layernorm": model.qk_norm,
        "swiglu": model.mlp == "swiglu",
        "squared-relu": model.mlp == "relu2",
        "untie-embeddings-and-output-weights": not model.tied,
        "disable-bias-linear": not model.bias,
        "group-query-attention": model.group_size > 1,
    }
    if model.group_size > 1:
        options["num-query-groups"] = heads // model.group_size
    return options | {name: True for name, given in flags.items() if given}
