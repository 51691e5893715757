"""The recipe: tuned hyperparameters, the proxy they were tuned on, the horizon, and the evidence."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.files import read_json, require_schema, write_json
from widthwise.proxies.storage import Place
from widthwise.proxies.validation import ConfigError, Record
from widthwise.transfer.custom_rule import CustomRule
from widthwise.transfer.rulebook import Rule, find_rule
from widthwise.transfer.scaling import rules

if TYPE_CHECKING:
    from widthwise.search import SearchSpace, SweepResult
    from widthwise.transfer.plan import Plan

DEFAULT_RULE = "fan-sqrt"
SCHEMA: Literal["widthwise/recipe/1"] = "widthwise/recipe/1"

# Ratios are taken to these, so that a file must state them; every other field has a default.
_STATED = {
    "proxy": ("width", "depth", "head_dim", "context", "vocab_size"),
    "horizon": ("batch_tokens", "tokens"),
}


_SYMBOLS = {"lr": "η", "weight_decay": "λ", "huber_c": "c"}


def evidence_notes(
    best_by_decay: Mapping[str, float | None],
    at_edge: Iterable[str],
    space: "SearchSpace | None",
    fit: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return what a sweep's evidence says besides its losses, a line each.

    The forms of decay, the quadratic through the best trials, the ranges' ends.
    """
    losses = [
        f"{name} {'none completed' if loss is None else f'{loss:.4f}'}"
        for name, loss in best_by_decay.items()
    ]
    lines = [f"best loss by form of decay, one seed each: {', '.join(losses)}"] if losses else []
    if fit:
        lines.append(_fitted(fit))
    for name in at_edge:
        ends = getattr(space, name, None)
        span = "" if ends is None else f" [{ends[0]:g}, {ends[1]:g}]"
        how = f"with [space] {name} = [LOW, HIGH] in --config FILE.toml, and --warm-start this one's folder"
        lines.append(
            f"note: {_SYMBOLS.get(name, name)} is at the edge of its range{span}: widen it in a new sweep, {how}"
        )
    return lines


def _fitted(fit: Mapping[str, Any]) -> str:
    """Return what the quadratic through the best trials says."""
    if fit["problem"] is not None:
        return f"no fitted minimum: {fit['problem']}; the best finalist is recommended"
    parts = []
    for name in ("lr", "weight_decay"):
        low, high = fit[f"{name}_interval"]
        parts.append(f"{_SYMBOLS[name]} {fit[name]:.3g} [{low:.3g}, {high:.3g}]")
    return f"fitted minimum of {fit['trials']} trials, with 95 % intervals: {', '.join(parts)}"


class Recipe(Record):
    """What a proxy sweep ends with, and what a plan at any width is made from; one JSON file.

    Attributes:
        schema_: the file's format, ``"schema"`` in JSON.
        hyperparameters: the tuned settings, at the proxy's width.
        proxy: the model they were tuned on; its width is the base width, where all multipliers are 1.
        horizon: how long it trained: batch size, tokens and schedule.
        rule: a scaling rule of its own, which ``widthwise check --calibrate`` measures, or None.
        evidence: what a sweep or a check measured, or None.
        provenance: what produced the recipe (the sweep's configuration, versions, time), or None.
    """

    schema_: Literal["widthwise/recipe/1"] = Field(SCHEMA, alias="schema")
    hyperparameters: Hyperparameters
    proxy: GPTConfig
    horizon: Horizon
    rule: CustomRule | None = None
    evidence: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a recipe file.

        Raises:
            ConfigError: it is missing, unreadable, not JSON, of another schema, or holds an unknown
                field, a wrong type or an impossible value; the message names the file and the field.
        """
        document = read_json(path, "a recipe")
        require_schema(document, SCHEMA, path)
        recipe = cls.parse(document, where=str(path))
        for part, names in _STATED.items():
            for name in names:
                if name not in document[part]:
                    raise ConfigError(f"{path}: {part}.{name}: is required")
        return recipe

    @classmethod
    def from_sweep(cls, result: "SweepResult") -> Self:
        """Make a recipe of a sweep's best finalist, with the evidence for it and where it came from."""
        from collections import Counter

        from widthwise.transfer.watching.bands import bands_of

        best = result.best
        bands = bands_of(best.courses, result.config.horizon.steps)
        evidence = {
            "loss": best.mean,
            "confirmed": best.confirmed,
            "seed_spread": best.spread,
            "best_by_decay": result.best_by_decay,
            "at_edge": result.at_edge,
            "fit": result.fit.as_json(),
            "luckiest": result.luckiest,
            "finalists": [finalist.as_json() for finalist in result.finalists],
            "trials": dict(Counter(record["status"] for record in result.records)),
        }
        if result.front is not None:
            evidence["front"] = result.front
        if bands is not None:
            evidence["bands"] = bands.model_dump(mode="json")
        return cls(
            schema=SCHEMA,
            hyperparameters=best.hyperparameters,
            proxy=result.config.model,
            horizon=result.config.horizon,
            evidence=evidence,
            provenance=result.provenance(),
        )

    def save(self, path: str | Place) -> None:
        """Write the recipe, atomically, with every field in it, defaults too.

        Raises:
            ValueError: evidence or provenance holds NaN or infinity (write null instead).
            OSError: the folder is missing or cannot be written to.
        """
        write_json(path, self.model_dump(mode="python", by_alias=True))

    @property
    def rules(self) -> dict[str, Rule]:
        """Every rule that the recipe can be scaled by: its own first, then the registered ones."""
        own = {} if self.rule is None else {self.rule.name: self.rule.as_rule()}
        return {**own, **rules}

    def find_rule(self, name: str | None = None) -> Rule:
        """Return the rule `name`; None is the recipe's own, or `DEFAULT_RULE` where it has none.

        Raises:
            ConfigError: no rule has this name, or ``MODULE:FUNCTION`` names none.
        """
        if name is None:
            name = DEFAULT_RULE if self.rule is None else self.rule.name
        return find_rule(name, self.rules)

    def at(
        self,
        *,
        width: int,
        depth: int | None = None,
        batch_tokens: int | None = None,
        tokens: int | None = None,
        rule: str | None = None,
        horizon_rule: str = "none",
        decay_kinds: Iterable[str] | None = None,
    ) -> "Plan":
        """Return the plan of this recipe at a target.

        Args:
            width: the target's width, a multiple of ``head_dim * group_size``.
            depth: its number of blocks; None is the proxy's.
            batch_tokens: tokens per step, a multiple of the context; None is the proxy's.
            tokens: tokens in all; None is the proxy's.
            rule: name of a scaling rule, or ``MODULE:FUNCTION`` for one of your own; None is the recipe's own, or
                `DEFAULT_RULE` where it has none.
            horizon_rule: name of a horizon rule: what another batch size or more tokens change. One other than
                ``none`` stands in place of what the scaling rule itself does with batch size and tokens.
            decay_kinds: the kinds that decay, with the recipe's λ times the rule's multiplier of that kind; None
                is the rule's word.

        Raises:
            ConfigError: a value is impossible, no rule or kind has this name, or the proxy's readout is tied and the
                rule scales it otherwise than the embedding.
        """
        from widthwise.transfer.planning import make_plan

        return make_plan(
            self,
            width=width,
            depth=depth,
            batch_tokens=batch_tokens,
            tokens=tokens,
            rule=rule,
            horizon_rule=horizon_rule,
            decay_kinds=decay_kinds,
        )
