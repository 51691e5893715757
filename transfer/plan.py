"""The plan: a recipe at a target, with every multiplier, every value and the reason for each, per kind."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters, Kind, KindSettings
from widthwise.proxies.schedule import decay_horizon
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.horizons import combined
from widthwise.transfer.multipliers import Multipliers, Ratios, Scaled, without_decay
from widthwise.transfer.recipe import Recipe

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from widthwise.proxies.table import ParameterEntry, ParameterTable

# 95 % of the initial variance is forgotten when Ση·λ reaches 1.5: exp(-2 · 1.5) = 0.05.
ENOUGH_DECAY = 1.5


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
        horizon_rule: name of the horizon rule.
        decay_kinds: the kinds that decay.
        ratios: target divided by proxy.
        model: the target's configuration, its initialisation and its forward multipliers scaled.
        horizon: the target's batch size, tokens and schedule.
        kinds: the settings of each parameter kind.
        betas: Adam's β1 and β2.
        residual_multiplier: the rule's factor on ``model.residual_multiplier``, target / proxy.
    """

    recipe: Recipe
    rule: str
    horizon_rule: str
    decay_kinds: tuple[Kind, ...]
    ratios: Ratios
    model: GPTConfig
    horizon: Horizon
    kinds: dict[Kind, PlannedKind]
    betas: tuple[float, float]
    residual_multiplier: float

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The recipe's hyperparameters with the plan's betas."""
        return self.recipe.hyperparameters.model_copy(update={"betas": self.betas})

    def settings(self, kind: Kind, width_multiplier: float | None = None) -> KindSettings:
        """Return η, λ and ε of a kind, or of one parameter whose width grew by its own factor.

        Args:
            kind: the parameter's kind.
            width_multiplier: the parameter's fan-in divided by that at the base width; None is the plan's.
        """
        if width_multiplier is None:
            found = self.kinds[kind]
        else:
            found = planned_kind(
                kind, self.outcome(width_multiplier), self.recipe.hyperparameters, self.decay_kinds
            )
        return KindSettings(lr=found.lr, weight_decay=found.weight_decay, eps=found.eps)

    def outcome(self, width_multiplier: float | None = None) -> Scaled:
        """Return what the rules yield at the plan's ratios, or for a width that grew by its own factor."""
        width = self.ratios.width if width_multiplier is None else width_multiplier
        return combined(self.recipe.find_rule(self.rule), self.horizon_rule, self.ratios, width)

    def parameter_groups(self, model: "nn.Module", table: "ParameterTable") -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups for a model of the target's width: all options but clip_norm.

        Args:
            model: the target, also after ``fully_shard`` or ``torch.compile``: matched by name.
            table: ``parameter_table(build, width=target, base_width=proxy)``.

        Raises:
            ConfigError: the table was made for other widths or another model, or the model's readout is tied and the
                rule scales it otherwise than the embedding.
        """
        from widthwise.proxies.table import parameter_groups

        self.require_table(table)

        def settings_for(entry: "ParameterEntry") -> KindSettings:
            return self.settings(entry.kind, entry.width_multiplier)

        return parameter_groups(model, table, settings_for, self.hyperparameters)

    def initialise(self, model: "nn.Module", table: "ParameterTable") -> None:
        """Draw a model's weights as the proxy's were drawn, scaled by the rule; from torch's global generator.

        Normal with the standard deviations ``embedding_std``, ``matrix_std`` / √fan-in and ``readout_std`` of the
        plan's `model`; biases are zero; gains and what needs no gradient stay as they are.

        Args:
            model: the target, on its device, also after ``fully_shard`` or ``torch.compile``: matched by name.
            table: ``parameter_table(build, width=target, base_width=proxy)``.

        Raises:
            ConfigError: the table was made for other widths or another model, or the model's readout is tied and the
                rule scales it otherwise than the embedding.
        """
        from widthwise.proxies.table import initialise

        self.require_table(table)
        initialise(model, table, self.model)

    def require_table(self, table: "ParameterTable") -> None:
        """Refuse a table that was made for other widths, or of a tied model that the rule cannot scale.

        Raises:
            ConfigError: naming what the table must have.
        """
        width, base = self.model.width, self.recipe.proxy.width
        if table.width != width:
            raise ConfigError(f"table.width: must be the plan's width = {width}, got {table.width}")
        if table.base_width != base:
            raise ConfigError(f"table.base_width: must be the proxy's width = {base}, got {table.base_width}")
        # With nothing else to read out by, the embedding's weight does: a tied one has one row.
        kinds = {entry.kind for entry in table.values()}
        if "embedding" in kinds and "readout" not in kinds and parts_tied(self.outcome()):
            raise ConfigError(
                f"table: must have a readout of its own for rule {self.rule!r}, {PARTS_TIED}; a tied one has none"
            )

    @property
    def decay_horizon(self) -> float:
        """How many decay times 1/(ηλ) the matrices see: Σ_t η_t·λ (times r_t where corrected), to 1 %."""
        return self._decay_times("matrix")

    def independent_weight_decay(self, kind: Kind, *, with_schedule: bool = True) -> float:
        """Return a kind's λ as trainers count it whose decay does not multiply by the peak learning rate.

        "Independent" means two things in the field. With the schedule, the peak is dropped and the shape kept,
        θ ← θ - λ·(η_t/η_max)·θ: this λ is ηλ. Without, every step decays alike, θ ← θ - λ·θ: this λ is the
        mean over the run, the same decay in sum.
        """
        if with_schedule:
            return self.kinds[kind].lr * self.kinds[kind].weight_decay
        return self._decay_times(kind) / self.horizon.steps

    def _decay_times(self, kind: Kind) -> float:
        steps = self.horizon.steps
        # The schedule keeps its shape, so that a thousand steps stand for a million in less time.
        coarse = self.horizon.model_copy(update={"tokens": min(steps, 1000) * self.horizon.batch_tokens})
        planned = self.kinds[kind]
        # AdamC corrects what a normalisation follows: the matrices.
        corrected = self.recipe.hyperparameters.corrected and kind == "matrix"
        times = decay_horizon(coarse, planned.lr, planned.weight_decay, corrected=corrected)
        return times * steps / coarse.steps

    def notes(self) -> list[str]:
        """Return what to know about the plan besides its values, a line each: the reasons, the horizon."""
        from widthwise.transfer.plan_notes import notes

        return notes(self)

    def as_json(self) -> dict[str, Any]:
        """Return the document that ``widthwise scale --json`` prints.

        ``hyperparameters`` holds what every kind shares, and η, λ and ε before their multipliers; ``decay_horizon``
        is Σηλ of the matrices; ``notes`` say what to beware of.
        """
        from widthwise.transfer.plan_notes import caveats

        return {**self._values(), "decay_horizon": self.decay_horizon, "notes": caveats(self)}

    def _values(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "horizon_rule": self.horizon_rule,
            "ratios": asdict(self.ratios),
            "kinds": {kind: asdict(planned) for kind, planned in self.kinds.items()},
            "hyperparameters": self.hyperparameters.model_dump(mode="json"),
            "horizon": self.horizon.model_dump(mode="json"),
            "residual_multiplier": self.residual_multiplier,
            "decay_kinds": list(self.decay_kinds),
            "independent_weight_decay": {
                name: {
                    kind: self.independent_weight_decay(kind, with_schedule=scheduled) for kind in self.kinds
                }
                for name, scheduled in (("with_schedule", True), ("without_schedule", False))
            },
        }

    def document(self) -> dict[str, Any]:
        """Return what a target run's ``plan.json`` holds: the values of `as_json`, and the target's model."""
        return {
            **self._values(),
            "base_width": self.recipe.proxy.width,
            "model": self.model.model_dump(mode="json"),
        }

    def table(self) -> "Table":
        """Return the plan as a rich table: a row per kind, multipliers in brackets where they are not 1."""
        from widthwise.transfer.plan_tables import plan_table

        return plan_table(self)


PARTS_TIED = "which scales a readout's η or initial std otherwise than an embedding's"


def parts_tied(outcome: Scaled) -> bool:
    """Tell whether a tied readout, which is one parameter with the embedding, would have to be two."""
    embedding, readout = outcome.kinds["embedding"], outcome.kinds["readout"]
    return (embedding.lr, embedding.init_std) != (readout.lr, readout.init_std)


def planned_kind(
    kind: Kind, outcome: Scaled, tuned: Hyperparameters, decay_kinds: tuple[Kind, ...]
) -> PlannedKind:
    """Return a kind's settings at the target: what was tuned, times what the rules yield."""
    factors, why = outcome.kinds[kind], outcome.why.get(kind, "")
    if kind not in decay_kinds:
        factors, why = replace(factors, weight_decay=0.0), without_decay(why)
    return PlannedKind(
        lr=tuned.lr * factors.lr,
        weight_decay=tuned.weight_decay * factors.weight_decay,
        eps=tuned.eps * factors.eps,
        multipliers=factors,
        why=why,
    )
