"""What to know about a plan besides its values, a line each: the reasons, what is shared, what to beware of."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import isclose

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.horizons import LAWS_OF_DECAY, find_horizon_rule
from widthwise.transfer.multipliers import Ratios
from widthwise.transfer.plan import ENOUGH_DECAY, Plan


def notes(plan: Plan) -> list[str]:
    """Return a plan's notes, the reasons first."""
    return [
        *(f"{kind}: {planned.why}" for kind, planned in plan.kinds.items() if planned.why),
        _trained_with(plan),
        *_changes(plan),
        *cautions(plan),
        *_decay(plan),
        *_too_short(plan),
    ]


def caveats(plan: Plan) -> list[str]:
    """Return those of a plan's notes that say what to beware of, as JSON has them."""
    return [note.removeprefix("note: ") for note in (*cautions(plan), *_too_short(plan))]


def common_cautions(plans: Iterable[Plan]) -> Iterator[str]:
    """Yield what to beware of in several plans, each thing once, with the rules that it is said of."""
    said: dict[str, dict[str, None]] = {}
    for plan in plans:
        for note in cautions(plan, rule=_RULES):
            said.setdefault(note, {})[plan.rule] = None
    for note, rules in said.items():
        yield note.replace(_RULES, ", ".join(rules))


_RULES = "\0"  # in no rule's name, nor in a user's words on one


def cautions(plan: Plan, rule: str | None = None) -> Iterator[str]:
    """Yield what the plan rests on and what was not tuned, its rule called by its name unless another is given."""
    rule = rule or plan.rule
    own = plan.recipe.rule
    if own is not None and own.name == plan.rule:
        yield f"note: {own.basis()}"
    yield from _uncovered(plan, rule)
    yield from _law(plan, rule)
    if set(plan.decay_kinds) != {"matrix"}:
        named = ", ".join(plan.decay_kinds) or "nothing"
        yield f"note: decay on {named}; λ was tuned on proxies whose matrices alone decay"
    yield from _turning(plan, rule)


def _turning(plan: Plan, rule: str) -> Iterator[str]:
    """Yield where a step's decay is larger than the weight; the proximal step never is, whatever ηλ."""
    if plan.hyperparameters.decay not in ("l2", "huber"):
        return
    for kind in plan.decay_kinds:
        step = plan.independent_weight_decay(kind)
        if step >= 1:
            turned = "from 1 on, a step's decay turns weights' signs"
            yield f"note: ηλ of kind {kind} reaches {step:.3g} at width {plan.model.width} with {rule}: {turned}"


def _uncovered(plan: Plan, rule: str) -> Iterator[str]:
    """Yield which of the changes from proxy to target nothing in the plan follows."""
    if not _follows(plan, "depth"):
        yield f"note: {change(plan.ratios, 'depth')} is not followed by {rule}"
    if plan.horizon_rule == "none":
        ignored = [change(plan.ratios, name) for name in ("batch", "tokens") if not _follows(plan, name)]
        if ignored:
            yield f"note: horizon rule none: nothing is changed for {', '.join(ignored)}"


def change(ratios: Ratios, name: str) -> str:
    """Return ``depth ×4``."""
    return f"{name} ×{getattr(ratios, name):.4g}"


def is_changed(ratios: Ratios, name: str) -> bool:
    """Tell whether a ratio is another than 1, as far as it is shown."""
    return not isclose(getattr(ratios, name), 1, rel_tol=1e-4)


def _follows(plan: Plan, name: str) -> bool:
    """Tell whether a ratio is 1 or the plan's scaling rule yields something else for it than for 1."""
    if not is_changed(plan.ratios, name):
        return True
    rule = plan.recipe.find_rule(plan.rule)
    try:
        found, unchanged = rule(plan.ratios), rule(replace(plan.ratios, **{name: 1.0}))
    except ConfigError:
        return True  # a rule that knows some ratios alone knows of this one
    return replace(found, why={}) != replace(unchanged, why={})


def _law(plan: Plan, rule: str) -> Iterator[str]:
    """Yield that a law of ηλ stands on a rule that does not keep it."""
    if plan.horizon_rule not in LAWS_OF_DECAY or not _matrices_decay(plan):
        return
    sized = replace(plan.ratios, batch=1.0, tokens=1.0)
    matrix = plan.recipe.find_rule(plan.rule)(sized).kinds["matrix"]
    factor = matrix.lr * matrix.weight_decay
    if not isclose(factor, 1):
        yield (
            f"note: {plan.horizon_rule} is a law of ηλ, which is multiplied by {factor:.4g} besides by {rule}: it "
            "holds with a rule that keeps ηλ, such as mup-independent"
        )


def _trained_with(plan: Plan) -> str:
    """Return what every kind shares: the form of the decay, the betas, the clipping and the schedule."""
    tuned, horizon = plan.hyperparameters, plan.horizon
    form: str = tuned.decay
    if form.startswith("huber"):
        form += f" with c = {tuned.huber_c:.6g}, threshold {tuned.threshold}"
    clipping = "no clipping" if tuned.clip_norm is None else f"gradients clipped to norm {tuned.clip_norm:g}"
    end = f" to {horizon.final_fraction:g} of the peak"
    if horizon.schedule == "wsd":
        end += f" over the last {horizon.decay_fraction:.4g} of the steps"
    return "; ".join(
        [
            f"optimizer: decay {form}",
            "corrected (AdamC) on matrices" if tuned.corrected else "not corrected",
            _betas(plan),
            clipping,
            f"{horizon.steps} steps of {horizon.batch_tokens} tokens",
            f"schedule {horizon.schedule}{end}, warm-up {horizon.warmup_fraction:.4g} of the steps",
        ]
    )


def _betas(plan: Plan) -> str:
    own, before = plan.betas, plan.recipe.hyperparameters.betas
    said = f"β1 and β2 {own[0]:.6g} and {own[1]:.6g}"
    return said if own == before else f"{said}, tuned at {before[0]:.6g} and {before[1]:.6g}"


def _changes(plan: Plan) -> Iterator[str]:
    """Yield what the rules change besides the kinds' own values."""
    if plan.horizon_rule != "none":
        yield f"horizon rule {plan.horizon_rule}: {find_horizon_rule(plan.horizon_rule).summary}"
    if plan.residual_multiplier != 1:
        yield f"residual branches: ×{plan.residual_multiplier:.4g}"


def _decay(plan: Plan) -> Iterator[str]:
    """Yield how far the matrices decay, and their λ in other conventions."""
    if not _matrices_decay(plan):
        return
    scheduled, constant = (
        plan.independent_weight_decay("matrix", with_schedule=scheduled) for scheduled in (True, False)
    )
    yield f"independent λ of the matrices: {scheduled:.4g} with the schedule, {constant:.4g} without"
    yield f"horizon Σηλ of the matrices over {plan.horizon.steps} steps: {plan.decay_horizon:.3g}"


def _too_short(plan: Plan) -> Iterator[str]:
    """Yield that the matrices' decay has little time."""
    if _matrices_decay(plan) and plan.decay_horizon < ENOUGH_DECAY:
        yield f"note: Σηλ is below {ENOUGH_DECAY}: weight decay has little time to act"


def _matrices_decay(plan: Plan) -> bool:
    return "matrix" in plan.decay_kinds and plan.hyperparameters.decay != "none"
