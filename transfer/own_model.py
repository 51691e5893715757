"""What a target run trains: the recipe's GPT, or a model of the user's own (``launch --model MODULE:FUNCTION``).

η, λ and ε reach an own model's optimizer by its parameter table. What the plan asks of the model itself, its
initialisation and its forward multipliers, is the user's to apply: `asked` says what it is.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from widthwise.proxies.building import Build, OwnModel, OwnParameter, find_build
from widthwise.proxies.config import Kind
from widthwise.proxies.footprint import Footprint, footprint
from widthwise.proxies.model import GPT
from widthwise.proxies.shapes import parameter_table
from widthwise.proxies.table import ParameterTable
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.plan import Plan

# What shapes without numbers cannot decide: only a run shows whether such a model works.
_UNTRACEABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


def build_of(plan: Plan, model: str | None) -> Build:
    """Return what builds the plan's GPT, or the user's ``MODULE:FUNCTION``, at any width.

    Raises:
        ConfigError: there is no such module or function.
    """
    if model is None:
        return lambda width: GPT(plan.model.model_copy(update={"width": width}))
    return find_build(model, Path.cwd())


def table_of(
    plan: Plan, build: Build, overrides: Mapping[str, Kind] | None = None, transposed: tuple[str, ...] = ()
) -> ParameterTable:
    """Return the parameter table of a model at the plan's width; `parameter_table` has the user's word on it."""
    base_width = plan.recipe.proxy.width
    table = parameter_table(build, plan.model.width, base_width, overrides=overrides, transposed=transposed)
    plan.require_table(table)
    return table


def trace(plan: Plan, build: Build, *, recompute: bool = False) -> Footprint | None:
    """Return a training step's cost under bf16, or None for a model that shapes alone cannot run.

    Args:
        plan: says width, context and vocabulary.
        build: returns the model of a width.
        recompute: whether its layers are computed again in the backward pass.

    Raises:
        ConfigError: the model does not map tokens to logits, or its own code fails.
    """
    config = plan.model
    try:
        return footprint(
            lambda: build(config.width),
            context=config.context,
            vocab_size=config.vocab_size,
            precision="bf16",
            recompute=recompute,
        )
    except ConfigError:
        raise
    except _UNTRACEABLE:
        return None
    except Exception as error:
        shape = (1, config.context)
        raise ConfigError(f"model: failed on tokens {shape}: {type(error).__name__}: {error}") from error


def own_model(
    plan: Plan, model: str, overrides: Mapping[str, Kind] | None = None, transposed: tuple[str, ...] = ()
) -> OwnModel:
    """Read the user's model: its parameter table, and the plan's η, λ and ε for every parameter.

    Args:
        plan: what to train.
        model: ``MODULE:FUNCTION``.
        overrides: kinds by name or glob pattern, where the shapes cannot tell.
        transposed: names or glob patterns of matrices that are kept (in, out).

    Raises:
        ConfigError: it cannot be found, built, tabled or run on tokens.
    """
    # Standard output is for the result alone, whatever the user's module prints.
    with redirect_stdout(sys.stderr):
        build = build_of(plan, model)
        table = table_of(plan, build, overrides, transposed)
        trace(plan, build)
    parameters = {
        name: OwnParameter(
            entry=entry,
            **plan.settings(entry.kind, entry.width_multiplier).model_dump(),
        )
        for name, entry in table.items()
    }
    return OwnModel(build=model, folder=str(Path.cwd()), parameters=parameters)


def asked(plan: Plan) -> str:
    """Say in one line what the plan asks of a model, besides what its optimizer's groups hold."""
    kinds: tuple[Kind, ...] = ("embedding", "matrix", "readout")
    stds = ", ".join(f"{kind} ×{plan.kinds[kind].multipliers.init_std:.4g}" for kind in kinds)
    logits = plan.kinds["readout"].multipliers.forward
    return (
        f"the model's own to apply: logits ×{logits:.4g}, residual branches ×{plan.residual_multiplier:.4g}, "
        f"initial standard deviations {stds} of the proxy's"
    )
