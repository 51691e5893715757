"""How a plan is made of a recipe: the target's ratios, the rules' outcome at them, and all that follows from it."""

from collections.abc import Iterable
from math import sqrt
from typing import TypeVar

from widthwise.proxies.config import KINDS, GPTConfig, Horizon, Kind
from widthwise.proxies.validation import ConfigError, look_up
from widthwise.transfer.horizons import combined, scaled_betas
from widthwise.transfer.multipliers import Ratios, Scaled
from widthwise.transfer.plan import PARTS_TIED, Plan, parts_tied, planned_kind
from widthwise.transfer.recipe import Recipe

R = TypeVar("R", GPTConfig, Horizon)


def make_plan(
    recipe: Recipe,
    *,
    width: int,
    depth: int | None,
    batch_tokens: int | None,
    tokens: int | None,
    rule: str | None,
    horizon_rule: str,
    decay_kinds: Iterable[str] | None,
) -> Plan:
    """Return the plan of `recipe` at a target; `Recipe.at` has the arguments and the errors."""
    model = _replaced(recipe.proxy, width=width, depth=depth)
    horizon = _replaced(recipe.horizon, batch_tokens=batch_tokens, tokens=tokens)
    horizon.sequences(model.context)
    ratios = Ratios(
        width=model.width / recipe.proxy.width,
        depth=model.depth / recipe.proxy.depth,
        batch=horizon.batch_tokens / recipe.horizon.batch_tokens,
        tokens=horizon.tokens / recipe.horizon.tokens,
    )
    width_rule = recipe.find_rule(rule)
    outcome, name = combined(width_rule, horizon_rule, ratios, ratios.width), width_rule.name
    _require_tieable(model, outcome, name)
    decaying = outcome.decay_kinds if decay_kinds is None else _decaying(decay_kinds, outcome, name)
    return Plan(
        recipe=recipe,
        rule=name,
        horizon_rule=horizon_rule,
        decay_kinds=decaying,
        ratios=ratios,
        model=_initialised(model, outcome, ratios.width),
        horizon=horizon,
        kinds={kind: planned_kind(kind, outcome, recipe.hyperparameters, decaying) for kind in KINDS},
        betas=scaled_betas(recipe.hyperparameters.betas, outcome.one_minus_beta, name, horizon_rule),
        residual_multiplier=outcome.residual_multiplier,
    )


def _require_tieable(model: GPTConfig, outcome: Scaled, rule: str) -> None:
    """Refuse a tied readout to rules that treat it otherwise than the embedding: they are one parameter."""
    if model.tied and parts_tied(outcome):
        raise ConfigError(f"proxy.tied: must be false for rule {rule!r}, {PARTS_TIED}")


def _decaying(given: Iterable[str], outcome: Scaled, rule: str) -> tuple[Kind, ...]:
    """Return the user's choice of kinds in their usual order."""
    if isinstance(given, str):
        raise ConfigError(f"decay_kinds: must be a list of kinds, got {given!r}")
    known: dict[str, Kind] = {kind: kind for kind in KINDS}
    chosen = {look_up("decay_kinds", name, known) for name in given}
    for kind in chosen:
        if outcome.kinds[kind].weight_decay == 0:
            raise ConfigError(f"decay_kinds: rule {rule!r} multiplies the weight decay of {kind!r} by 0")
    return tuple(kind for kind in KINDS if kind in chosen)


def _replaced(record: R, **changes: int | None) -> R:
    """Return the record with the changes that are not None, validated again."""
    given = {name: value for name, value in changes.items() if value is not None}
    return type(record).parse({**record.model_dump(), **given})


def _initialised(model: GPTConfig, outcome: Scaled, width_ratio: float) -> GPTConfig:
    """Return the target's configuration with the rule's initialisation and forward multipliers."""
    kinds = outcome.kinds
    scaled = {
        "embedding_std": model.embedding_std * kinds["embedding"].init_std,
        # In units of 1/√fan_in, which falls by √w of itself.
        "matrix_std": model.matrix_std * kinds["matrix"].init_std * sqrt(width_ratio),
        "readout_std": model.readout_std * kinds["readout"].init_std,
        "readout_multiplier": model.readout_multiplier * kinds["readout"].forward,
        "residual_multiplier": model.residual_multiplier * outcome.residual_multiplier,
    }
    return GPTConfig.parse({**model.model_dump(), **scaled})
