"""What to know about a plan besides its values, a line each: the reasons, what is shared, what to beware of."""

from collections.abc import Iterator

from widthwise.transfer.horizons import find_horizon_rule
from widthwise.transfer.plan import ENOUGH_DECAY, Plan


def notes(plan: Plan) -> list[str]:
    """Return a plan's notes, the reasons first."""
    return [
        *(f"{kind}: {planned.why}" for kind, planned in plan.kinds.items() if planned.why),
        _trained_with(plan),
        *_changes(plan),
        *cautions(plan),
        *_decay(plan),
    ]


def cautions(plan: Plan) -> Iterator[str]:
    """Yield what the plan rests on and what was not tuned."""
    own = plan.recipe.rule
    if own is not None and own.name == plan.rule:
        yield f"note: {own.basis()}"
    if set(plan.decay_kinds) != {"matrix"}:
        named = ", ".join(plan.decay_kinds) or "nothing"
        yield f"note: decay on {named}; λ was tuned on proxies whose matrices alone decay"


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
            f"β1 and β2 {tuned.betas[0]:.6g} and {tuned.betas[1]:.6g}",
            clipping,
            f"{horizon.steps} steps of {horizon.batch_tokens} tokens",
            f"schedule {horizon.schedule}{end}, warm-up {horizon.warmup_fraction:.4g} of the steps",
        ]
    )


def _changes(plan: Plan) -> Iterator[str]:
    """Yield what the rules change besides the kinds' own values."""
    if plan.horizon_rule != "none":
        yield f"horizon rule {plan.horizon_rule}: {find_horizon_rule(plan.horizon_rule).summary}"
    if plan.betas != plan.recipe.hyperparameters.betas:
        yield f"betas: {plan.betas[0]:.6g}, {plan.betas[1]:.6g}"
    if plan.residual_multiplier != 1:
        yield f"residual branches: ×{plan.residual_multiplier:.4g}"


def _decay(plan: Plan) -> Iterator[str]:
    """Yield how far the matrices decay, and their λ in other conventions."""
    if "matrix" not in plan.decay_kinds:
        return
    scheduled, constant = (
        plan.independent_weight_decay("matrix", with_schedule=scheduled) for scheduled in (True, False)
    )
    reach = plan.decay_horizon
    yield f"independent λ of the matrices: {scheduled:.4g} with the schedule, {constant:.4g} without"
    yield f"horizon Σηλ of the matrices over {plan.horizon.steps} steps: {reach:.3g}"
    if reach < ENOUGH_DECAY:
        yield f"note: below {ENOUGH_DECAY}, weight decay has little time to act"
