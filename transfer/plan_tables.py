"""Plans as tables to read and as CSV: one plan by kind, or several side by side."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from rich.table import Table

from widthwise.transfer.plan import Plan
from widthwise.transfer.plan_notes import change, is_changed


def plan_table(plan: Plan) -> Table:
    """Return a row per kind, multipliers in brackets where they are not 1."""
    proxy, model = plan.recipe.proxy, plan.model
    sizes = f"width {proxy.width} → {model.width}, depth {proxy.depth} → {model.depth}"
    # The reasons are sentences, too long for a column of an ordinary terminal: `Plan.notes` has them.
    table = Table(
        "kind", "η", "λ", "ε", "init std", "forward", title=", ".join([f"{plan.rule}: {sizes}", *_run(plan)])
    )
    for kind, planned in plan.kinds.items():
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


def _run(plan: Plan) -> list[str]:
    """Return what a title says of batch size and tokens: what changed, and the horizon rule."""
    changed = [change(plan.ratios, name) for name in ("batch", "tokens") if is_changed(plan.ratios, name)]
    return changed if plan.horizon_rule == "none" else [*changed, f"horizon rule {plan.horizon_rule}"]


def _valued(value: float, multiplier: float) -> str:
    return f"{value:.4g}" if multiplier == 1 else f"{value:.4g} (×{multiplier:.4g})"


def comparison_table(plans: Sequence[Plan]) -> Table:
    """Return a row per plan: what differs most between rules and widths. CSV and JSON have the rest."""
    first = plans[0]
    names = {
        "rule": [plan.rule for plan in plans],
        "width": [str(plan.model.width) for plan in plans],
    }
    # What all plans share stands above them, once.
    shared = {name: column[0] for name, column in names.items() if len(set(column)) == 1}
    proxy, depth = first.recipe.proxy, first.model.depth
    above = [f"{name} {value}" for name, value in shared.items()]
    title = ", ".join([*above, f"from width {proxy.width}, depth {proxy.depth} → {depth}", *_run(first)])
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    for name in (name for name in names if name not in shared):
        table.add_column(name, no_wrap=True)
    for name in ("η matrix", "λ matrix", "η embed", "η readout", "logits", "residual", "Σηλ"):
        table.add_column(name.replace(" ", "\n"))
    for plan, *labels in zip(plans, *(names[name] for name in names if name not in shared), strict=True):
        table.add_row(*labels, *_summary(plan))
    return table


def _summary(plan: Plan) -> list[str]:
    matrix, readout = plan.kinds["matrix"], plan.kinds["readout"]
    values = (matrix.lr, matrix.weight_decay, plan.kinds["embedding"].lr, readout.lr)
    factors = (readout.multipliers.forward, plan.residual_multiplier)
    return [
        *(f"{value:.3g}" for value in values),
        *(f"×{factor:.3g}" for factor in factors),
        f"{plan.decay_horizon:.3g}",
    ]


def plans_csv(plans: Sequence[Plan]) -> str:
    """Return a line per plan and kind, every number at full precision."""
    rows = [row for plan in plans for row in _rows(plan)]
    out = StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _rows(plan: Plan) -> list[dict[str, Any]]:
    target = {
        "rule": plan.rule,
        "horizon_rule": plan.horizon_rule,
        "width": plan.model.width,
        "depth": plan.model.depth,
        "batch_tokens": plan.horizon.batch_tokens,
        "tokens": plan.horizon.tokens,
    }
    tuned, horizon = plan.hyperparameters, plan.horizon
    shared = ("decay", "huber_c", "threshold", "corrected", "clip_norm")
    run = {
        "residual_multiplier": plan.residual_multiplier,
        "beta1": tuned.betas[0],
        "beta2": tuned.betas[1],
        **{name: getattr(tuned, name) for name in shared},
        **horizon.model_dump(include={"schedule", "warmup_fraction", "final_fraction", "decay_fraction"}),
    }
    rows = []
    for kind, planned in plan.kinds.items():
        values = {"lr": planned.lr, "weight_decay": planned.weight_decay, "eps": planned.eps}
        multipliers = {f"{name}_multiplier": factor for name, factor in asdict(planned.multipliers).items()}
        rows.append({**target, "kind": kind, **values, **multipliers, **run})
    return rows
