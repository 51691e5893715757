"""What all exports share: how much of a plan torch's AdamW and a plain transformer can say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from widthwise.proxies.config import Kind
from widthwise.transfer.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Export:
    """A file for another trainer.

    Attributes:
        text: its content.
        missing: what of the plan the trainer's options cannot say, a line each; stands in the file too.
    """

    text: str
    missing: tuple[str, ...]


def kinds_of(plan: Plan) -> list[Kind]:
    """Return the kinds that the plan's model has parameters of."""
    model = plan.model
    absent = {"bias"} if not model.bias else set()
    absent |= {"readout"} if model.tied else set()
    return [kind for kind in plan.kinds if kind not in absent]


def warmup_steps(plan: Plan) -> int:
    """Return the steps in which η rises."""
    return round(plan.horizon.warmup_fraction * plan.horizon.steps)


def decay_steps(plan: Plan) -> int:
    """Return the steps in which ``wsd`` decays."""
    return round(plan.horizon.decay_fraction * plan.horizon.steps)


def not_adamw(plan: Plan) -> list[str]:
    """Return what torch's AdamW does not do."""
    tuned, lines = plan.hyperparameters, []
    if tuned.decay.startswith("huber"):
        lines.append(
            f"decay {tuned.decay} with c = {tuned.huber_c:g}, threshold {tuned.threshold}: AdamW decays by the "
            "whole weight, for which this λ was not tuned"
        )
    if tuned.corrected and tuned.decay != "none":
        lines.append("AdamC's correction: the matrices' decay times η_t/η_max")
    return lines


def decay(plan: Plan, kind: Kind) -> float:
    """Return a kind's λ, which is 0 where the recipe does not decay at all."""
    return 0.0 if plan.hyperparameters.decay == "none" else plan.kinds[kind].weight_decay


def multipliers(plan: Plan, *, logits: bool, residual: bool, initial: bool) -> list[str]:
    """Return the plan's multipliers that the model must apply, of those asked for that are not 1."""
    lines = []
    factor = plan.kinds["readout"].multipliers.forward
    if logits and factor != 1:
        lines.append(f"logits times {factor:g}")
    if residual and plan.residual_multiplier != 1:
        lines.append(f"residual branches times {plan.residual_multiplier:g}")
    factors = {plan.kinds[kind].multipliers.init_std for kind in kinds_of(plan)}
    if initial and factors != {1.0}:
        lines.append(_initial(plan))
    return lines


def _initial(plan: Plan) -> str:
    """Return the line with the target's initial standard deviations, as the plan's own model is drawn."""
    model = plan.model
    stds = {
        "matrix": f"{model.matrix_std:.4g}/√fan_in ({model.matrix_std / model.width**0.5:.4g} from the width)",
        "embedding": f"{model.embedding_std:.4g}",
        "readout": f"{model.readout_std:.4g}",
    }
    told = ", ".join(f"{kind} {stds[kind]}" for kind in kinds_of(plan) if kind in stds)
    return f"initial standard deviations: {told}"


def attention(plan: Plan, power: float = 0.5) -> list[str]:
    """Return a line where the trainer's factor on q·k, head_dim to the power of -`power`, is not the plan's."""
    model = plan.model
    factor, expected = model.attention_multiplier / model.head_dim, model.head_dim**-power
    if abs(factor / expected - 1) < 1e-9:
        return []
    theirs = "1/√head_dim" if power == 0.5 else "1/head_dim"
    return [
        f"attention: q·k times {factor:.4g} ({model.attention_multiplier:.4g}/head_dim), "
        f"where the trainer's models take {expected:.4g} ({theirs})"
    ]


def differing(plan: Plan, name: str, expected: Mapping[Kind, float]) -> list[str]:
    """Return a line for each kind whose value of `name` is not what the trainer will use."""
    found = {
        kind: decay(plan, kind) if name == "weight_decay" else getattr(plan.kinds[kind], name)
        for kind in kinds_of(plan)
    }
    return [
        f"{name} of the {kind} parameters: {found[kind]:.6g}, where the trainer takes {expected[kind]:.6g}"
        for kind in found
        if abs(found[kind] - expected[kind]) > 1e-9 * abs(expected[kind])
    ]


def commented(plan: Plan, trainer: str, missing: Sequence[str]) -> str:
    """Return the head of a file whose comments begin with ``#``: where it comes from, what it lacks."""
    proxy, model = plan.recipe.proxy, plan.model
    lines = [
        f"{trainer}, by widthwise: rule {plan.rule}, width {proxy.width} -> {model.width}, depth {model.depth}, "
        f"{plan.horizon.steps} steps of {plan.horizon.batch_tokens} tokens",
        *(f"NOT EXPRESSED: {line}" for line in missing),
    ]
    return "".join(f"# {line}\n" for line in lines)


def assignments(values: Mapping[str, Any], *, separator: str = " = ") -> str:
    """Return a line ``name = value`` each, as Python writes values."""
    return "".join(f"{name}{separator}{value!r}\n" for name, value in values.items())


def joined(*parts: Iterable[str]) -> tuple[str, ...]:
    """Return all the lines in one tuple."""
    return tuple(line for part in parts for line in part)
