"""The plan: a recipe at a target, with every multiplier, every value and the reason for each, per kind."""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, TypeVar

from widthwise.proxies.config import KINDS, GPTConfig, Horizon, Hyperparameters, Kind, KindSettings
from widthwise.proxies.schedule import decay_horizon
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.recipe import Recipe
from widthwise.transfer.scaling import Multipliers, Ratios, Scaled, find_rule

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from widthwise.proxies.shapes import ParameterEntry, ParameterTable

# 95 % of the initial variance is forgotten when Ση·λ reaches 1.5: exp(-2 · 1.5) = 0.05.
ENOUGH_DECAY = 1.5

R = TypeVar("R", GPTConfig, Horizon)


@dataclass(frozen=True, kw_only=True)
class PlannedKind:
    """One parameter kind at the target.

    Attributes:
        lr: peak learning rate η.
        weight_decay: λ in torch's AdamW convention.
        eps: Adam's ε.
        multipliers: what the recipe's values were multiplied by.
        why: the reason, in a few words.
    """

    lr: float
    weight_decay: float
    eps: float
    multipliers: Multipliers
    why: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe at a target; `Recipe.at` makes it.

    Attributes:
        recipe: what was tuned.
        rule: name of the scaling rule.
        ratios: target divided by proxy.
        model: the target's configuration, its initialisation and its forward multipliers scaled.
        horizon: the target's batch size, tokens and schedule.
        kinds: the settings of each parameter kind.
        residual_multiplier: the rule's factor on ``model.residual_multiplier``, target / proxy.
    """

    recipe: Recipe
    rule: str
    ratios: Ratios
    model: GPTConfig
    horizon: Horizon
    kinds: dict[Kind, PlannedKind]
    residual_multiplier: float

    def settings(self, kind: Kind, width_multiplier: float | None = None) -> KindSettings:
        """Return η, λ and ε of a kind, or of one parameter whose width grew by its own factor.

        Args:
            kind: the parameter's kind.
            width_multiplier: the parameter's fan-in divided by that at the base width; None is the plan's.
        """
        if width_multiplier is None:
            planned = self.kinds[kind]
        else:
            # The other ratios belong to the run, not to the parameter.
            ratios = Ratios(**{**asdict(self.ratios), "width": width_multiplier})
            planned = _planned(kind, find_rule(self.rule)(ratios), self.recipe.hyperparameters)
        return KindSettings(lr=planned.lr, weight_decay=planned.weight_decay, eps=planned.eps)

    def parameter_groups(self, model: "nn.Module", table: "ParameterTable") -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups for a model of the target's width.

        Args:
            model: the target, also after ``fully_shard`` or ``torch.compile``: matched by name.
            table: ``parameter_table(build, width=target, base_width=proxy)``.

        Raises:
            ConfigError: the table was made for other widths.
        """
        from widthwise.proxies.shapes import parameter_groups

        width, base = self.model.width, self.recipe.proxy.width
        if table.width != width:
            raise ConfigError(f"table.width: must be the plan's width = {width}, got {table.width}")
        if table.base_width != base:
            raise ConfigError(f"table.base_width: must be the proxy's width = {base}, got {table.base_width}")

        def settings_for(entry: "ParameterEntry") -> KindSettings:
            return self.settings(entry.kind, entry.width_multiplier)

        return parameter_groups(model, table, settings_for, corrected=self.recipe.hyperparameters.corrected)

    @property
    def decay_horizon(self) -> float:
        """How many decay times 1/(ηλ) the matrices see: Σ_t η_t·λ (times r_t where corrected), to 1 %."""
        steps = self.horizon.steps
        # The schedule keeps its shape, so that a thousand steps stand for a million in less time.
        coarse = self.horizon.model_copy(update={"tokens": min(steps, 1000) * self.horizon.batch_tokens})
        matrix, corrected = self.kinds["matrix"], self.recipe.hyperparameters.corrected
        times = decay_horizon(coarse, matrix.lr, matrix.weight_decay, corrected=corrected)
        return times * steps / coarse.steps

    def notes(self) -> list[str]:
        """Return what to know about the plan besides its values, a line each: the reasons, the horizon."""
        reach = self.decay_horizon
        lines = [f"{kind}: {planned.why}" for kind, planned in self.kinds.items() if planned.why]
        lines.append(f"horizon Σηλ of the matrices over {self.horizon.steps} steps: {reach:.3g}")
        if reach < ENOUGH_DECAY:
            lines.append(f"note: below {ENOUGH_DECAY}, weight decay has little time to act")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return the document that ``widthwise scale --json`` prints."""
        return {
            "rule": self.rule,
            "ratios": asdict(self.ratios),
            "kinds": {kind: asdict(planned) for kind, planned in self.kinds.items()},
            "residual_multiplier": self.residual_multiplier,
        }

    def document(self) -> dict[str, Any]:
        """Return what a target run's ``plan.json`` holds: `as_json`, and the target's model and horizon."""
        return {
            **self.as_json(),
            "base_width": self.recipe.proxy.width,
            "model": self.model.model_dump(mode="json"),
            "horizon": self.horizon.model_dump(mode="json"),
        }

    def table(self) -> "Table":
        """Return the plan as a rich table: a row per kind, multipliers in brackets where they are not 1."""
        from rich.table import Table

        proxy, model = self.recipe.proxy, self.model
        change = f"width {proxy.width} → {model.width}, depth {proxy.depth} → {model.depth}"
        # The reasons are sentences, too long for a column of an ordinary terminal: `notes` has them.
        table = Table("kind", "η", "λ", "ε", "init std", "forward", title=f"{self.rule}: {change}")
        for kind, planned in self.kinds.items():
            factors = planned.multipliers
            table.add_row(
                kind,
                _valued(planned.lr, factors.lr),
                _valued(planned.weight_decay, factors.weight_decay),
                _valued(planned.eps, factors.eps),
                f"×{factors.init_std:.4g}",
                f"×{factors.forward:.4g}",
            )
        return table


def _valued(value: float, multiplier: float) -> str:
    return f"{value:.4g}" if multiplier == 1 else f"{value:.4g} (×{multiplier:.4g})"


def make_plan(
    recipe: Recipe, *, width: int, depth: int | None, batch_tokens: int | None, tokens: int | None, rule: str
) -> Plan:
    """Return the plan of `recipe` at a target; `Recipe.at` has the arguments and the errors."""
    model = _replaced(recipe.proxy, width=width, depth=depth)
    horizon = _replaced(recipe.horizon, batch_tokens=batch_tokens, tokens=tokens)
    context, batch = model.context, horizon.batch_tokens
    if batch % context:
        raise ConfigError(f"batch_tokens: must be a multiple of context = {context}, got {batch}")
    ratios = Ratios(
        width=model.width / recipe.proxy.width,
        depth=model.depth / recipe.proxy.depth,
        batch=horizon.batch_tokens / recipe.horizon.batch_tokens,
        tokens=horizon.tokens / recipe.horizon.tokens,
    )
    outcome = find_rule(rule)(ratios)
    return Plan(
        recipe=recipe,
        rule=rule,
        ratios=ratios,
        model=_initialised(model, outcome, ratios.width),
        horizon=horizon,
        kinds={kind: _planned(kind, outcome, recipe.hyperparameters) for kind in KINDS},
        residual_multiplier=outcome.residual_multiplier,
    )


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


def _planned(kind: Kind, outcome: Scaled, tuned: Hyperparameters) -> PlannedKind:
    factors = outcome.kinds[kind]
    return PlannedKind(
        lr=tuned.lr * factors.lr,
        weight_decay=tuned.weight_decay * factors.weight_decay,
        eps=tuned.eps * factors.eps,
        multipliers=factors,
        why=outcome.why.get(kind, ""),
    )
