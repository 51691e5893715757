"""The check itself: proxies at several widths through the search's machinery, measured and judged."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from widthwise.proxies.config import KINDS
from widthwise.proxies.files import write_json
from widthwise.proxies.runs import RunSpec
from widthwise.proxies.validation import ConfigError
from widthwise.search.executing import Placement
from widthwise.search.grid import Outcome, Run, kept_outcomes, run_all
from widthwise.search.storage import Storage
from widthwise.transfer.checking.alternatives import Alternative, alternatives, better_rule
from widthwise.transfer.checking.findings import Measured
from widthwise.transfer.checking.judging import Verdict, gate, judge
from widthwise.transfer.checking.measuring import measure
from widthwise.transfer.checking.observing import Observation, Setting, observed
from widthwise.transfer.checking.options import CheckOptions
from widthwise.transfer.checking.rounds import Design, wanted
from widthwise.transfer.plan import Plan
from widthwise.transfer.recipe import Recipe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA: Literal["widthwise/check/1"] = "widthwise/check/1"

# Two evaluations: the last one is the result, and the one before it shows that a run is alive.
_EVALUATIONS = 2


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check found.

    Attributes:
        recipe: what was checked.
        options: how.
        rule: name of the rule that was checked.
        verdict: holds, fails or inconclusive, and why.
        horizons: width → Σ_t η_t·λ·r_t of the matrices.
        measured: all numbers; None where the horizon gate kept the check from training.
        alternatives: other rules' λ at the largest width, by rule, and what it would change in the loss there.
        observations: every run, in the order of the settings.
    """

    recipe: Recipe
    options: CheckOptions
    rule: str
    verdict: Verdict
    horizons: Mapping[int, float]
    measured: Measured | None
    alternatives: Mapping[str, Alternative]
    observations: tuple[Observation, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the document that ``check.json`` holds."""
        own = self.recipe.rule
        kept = {} if own is None else {"own_rule": own.model_dump(mode="json")}
        return {
            "schema": SCHEMA,
            "verdict": {"sentence": self.verdict.sentence, **plain(self.verdict)},
            "rule": self.rule,
            "recipe": {**_identity(self.recipe, self.rule), **kept},
            "options": self.options.model_dump(mode="json"),
            "horizons": {str(width): reach for width, reach in self.horizons.items()},
            "measured": None if self.measured is None else plain(self.measured),
            "alternatives": {name: plain(one) for name, one in self.alternatives.items()},
            "observations": [plain(one) for one in self.observations],
        }


def check(
    recipe: Recipe,
    out: Path,
    options: CheckOptions | None = None,
    *,
    resume: bool = False,
    storage: Storage | None = None,
    placement: Placement | None = None,
    show_progress: bool = True,
) -> CheckResult:
    """Train proxies at several widths and say whether a recipe's transfer by a rule holds.

    Args:
        recipe: what is transferred.
        out: folder for ``check.json`` and the runs' records.
        options: what is compared.
        resume: go on with the check in `out`, also with more seeds, other widths or more points.
        storage: the database for the study, as for `sweep`.
        placement: the Ray cluster and how many runs at a time; None is a local Ray, one per core or GPU.
        show_progress: draw a progress bar on standard error.

    Raises:
        ConfigError: for a user's mistake, before anything is trained.
        RunError: where runs keep failing or cannot go on, as of `sweep`; those that ended are kept.
        KeyboardInterrupt: after Ctrl-C; what ended is kept, and `resume` goes on.
    """
    study = _Study(recipe, options or CheckOptions())
    early = gate(study.horizons, study.tokens)
    if early and not study.options.full:
        seen = study.kept(out, resume=resume, storage=storage)
    else:
        seen = study.run(
            out, resume=resume, storage=storage, placement=placement, show_progress=show_progress
        )
    result = study.result(seen, early)
    write_json(out / "check.json", result.as_json())
    return result


class _Study:
    """A recipe, the rule and the design of its check."""

    def __init__(self, recipe: Recipe, options: CheckOptions) -> None:
        base = recipe.proxy.width
        widths = tuple(sorted(set(options.widths or (base, 2 * base, 4 * base))))
        if base not in widths:
            raise ConfigError(f"widths: must include the recipe's own width {base}, got {list(widths)}")
        self.recipe, self.options = recipe, options
        self.plans = {width: self.plan(Setting(width=width, seed=options.seed)) for width in widths}
        self.rule = self.plans[base].rule
        self.tokens = self.plans[base].horizon.tokens
        self.horizons = {width: plan.decay_horizon for width, plan in self.plans.items()}
        self.design = Design(
            base_width=base,
            widths=widths,
            seeds=tuple(range(options.seed, options.seed + options.seeds)),
            steps={"lr": options.lr_octaves, "decay": options.decay_octaves},
            points=options.points,
            full=options.full,
        )

    def plan(self, setting: Setting) -> Plan:
        """Return the plan at a setting: the recipe's η and λ so many octaves off, at the setting's width."""
        tuned = self.recipe.hyperparameters
        moved = {
            "lr": tuned.lr * 2**setting.lr_octaves,
            "weight_decay": tuned.weight_decay * 2**setting.decay_octaves,
        }
        recipe = self.recipe.model_copy(update={"hyperparameters": tuned.model_copy(update=moved)})
        return recipe.at(width=setting.width, tokens=self.options.tokens, rule=self.options.rule)

    def run(self, out: Path, **options: Any) -> dict[Setting, Observation]:
        """Train what the design wants, with `run_all`'s options, and return what came of it."""
        outcomes = run_all(
            lambda outcomes: [self._run(setting) for setting in wanted(self.design, self.seen(outcomes))],
            out,
            config=self.identity(),
            data=self.options.data,
            what="check",
            **options,
        )
        return self.seen(outcomes)

    def kept(self, out: Path, *, resume: bool, storage: Storage | None) -> dict[Setting, Observation]:
        """Make the folder for a verdict that needs no runs, and return what is there of earlier ones."""
        outcomes = kept_outcomes(out, config=self.identity(), what="check", resume=resume, storage=storage)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: {out} cannot be written ({error.strerror})") from None
        seen = self.seen(outcomes)
        base = (one for one in seen if one.is_transferred and one.width == self.design.base_width)
        return seen if any(base) else {}  # no other width can be measured without that one

    def identity(self) -> dict[str, Any]:
        """Return what a resumed check's runs must share, whatever their seeds, widths and grids.

        A rule is known by what it does: a recipe's own keeps its name where it is calibrated anew.
        """
        wider = self.plan(Setting(width=2 * self.design.base_width, seed=0))
        return {
            **_identity(self.recipe, self.rule),
            "tokens": self.tokens,
            "validation_batches": self.options.validation_batches,
            "rule_at_twice_the_width": {
                kind: wider.settings(kind).model_dump(mode="json") for kind in wider.kinds
            },
        }

    def seen(self, outcomes: Mapping[str, Outcome]) -> dict[Setting, Observation]:
        """Return the observations that belong to this design; a folder may hold more."""
        read = ((Setting.of(key), outcome) for key, outcome in outcomes.items())
        return {
            setting: self._observed(setting, outcome)
            for setting, outcome in sorted(read, key=lambda pair: pair[0])
            if setting.width in self.plans and setting.seed in self.design.seeds
        }

    def result(self, seen: Mapping[Setting, Observation], early: Verdict | None) -> CheckResult:
        """Judge what was seen."""
        observations = list(seen.values())
        measured = measure(observations, base_width=self.design.base_width) if seen else None
        others = alternatives(self.plans[max(self.plans)], observations) if seen else {}
        verdict = early
        if verdict is None:
            assert measured is not None
            verdict = judge(measured)
        return CheckResult(
            recipe=self.recipe,
            options=self.options,
            rule=self.rule,
            verdict=verdict.beside(better_rule(others)),
            horizons=self.horizons,
            measured=measured,
            alternatives=others,
            observations=tuple(observations),
        )

    def _run(self, setting: Setting) -> Run:
        plan = self.plan(setting)
        spec = RunSpec(
            model=plan.model,
            base_width=self.recipe.proxy.width,
            horizon=plan.horizon,
            hyperparameters=plan.hyperparameters,
            settings={kind: plan.settings(kind) for kind in KINDS},
            data=self.options.data,
        )
        options = {"evaluations": _EVALUATIONS, "validation_batches": self.options.validation_batches}
        # The runs off the rule's own point say nothing but their loss.
        measuring = dict.fromkeys(("diagnostics", "coordinates"), setting.is_transferred)
        return Run(key=setting.key, spec=spec, seed=setting.seed, options={**options, **measuring})

    def _observed(self, setting: Setting, outcome: Outcome) -> Observation:
        matrix = self.plan(setting).kinds["matrix"]
        return observed(setting, matrix.lr, matrix.weight_decay, outcome.loss, outcome.measured)


def _identity(recipe: Recipe, rule: str) -> dict[str, Any]:
    """Return what was checked."""
    parts = recipe.model_dump(mode="json", include={"hyperparameters", "proxy", "horizon"})
    return {**parts, "rule": rule}


def plain(record: "DataclassInstance") -> dict[str, Any]:
    """Return a record as JSON has it: None for what is infinite."""
    document: dict[str, Any] = _finite(asdict(record))
    return document


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
