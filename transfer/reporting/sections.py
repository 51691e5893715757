"""The report's sections, in the order in which a reader asks: swept, tuned, planned, trained, how again."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from widthwise.transfer.recipe import Recipe, evidence_notes
from widthwise.transfer.reporting import charts
from widthwise.transfer.reporting.checks import checked, same_settings
from widthwise.transfer.reporting.formats import PlanFile, PlanKind
from widthwise.transfer.reporting.fronts import against_tokens
from widthwise.transfer.reporting.markup import Html, pairs, section, table, tag
from widthwise.transfer.reporting.reading import Contents, RunFolder, SweepFolder
from widthwise.transfer.reporting.reproducing import commands
from widthwise.transfer.reporting.summary import finalists, nats, number, plural
from widthwise.transfer.reporting.watch_panels import watch_panels
from widthwise.transfer.reporting.watched import watched
from widthwise.transfer.reporting.weight_panels import run_panels


def sections(contents: Contents) -> list[Html]:
    """Return all sections that the folder has material for."""
    several = len(contents.sweeps) > 1
    found = [_sweep(sweep, index, several) for index, sweep in enumerate(contents.sweeps)]
    recipes = _recipes(contents)
    found += [section("recipe", "Recipe", *map(_recipe, recipes))] if recipes else []
    plans = [(run, run.plan) for run in contents.runs if run.plan]
    found += [section("plan", "Plan", *(_plan(run, plan) for run, plan in plans))] if plans else []
    found += [checked(check, index) for index, check in enumerate(contents.checks)]
    found += [_targets(contents.runs)] if contents.runs else []
    found.append(section("reproduce", "How to reproduce", *commands(contents)))
    found += [_provenance(recipes)] if any(recipe.provenance for _, recipe in recipes) else []
    return found


def _sweep(sweep: SweepFolder, index: int, several: bool) -> Html:
    title = f"Sweep: {sweep.name}" if several else "Sweep"
    anchor = f"sweep-{index + 1}" if index else "sweep"
    counts = Counter(trial.status for trial in sweep.trials)
    endings = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    state = "" if sweep.recipe else " The sweep has no recipe yet: it is in progress, or was interrupted."
    widths = sorted({trial.width for trial in sweep.trials if trial.width})
    where = f" at width {', '.join(map(str, widths))}" if widths else ""
    again = len(sweep.trials) - len(sweep.proposals)
    repeats = f", {again} of them to confirm the best" if again else ""
    text = f"{plural(len(sweep.trials), 'trial')}{where}{': ' if endings else ''}{endings}{repeats}.{state}"
    content = [tag("p", text)]
    if sweep.proposals:
        content += _landscape(sweep, index)
    content += against_tokens(sweep)
    if finalists(sweep):
        content += _finalists(sweep, index)
    if any(trial.curve for trial in sweep.trials):
        content += [
            tag("h3", "Learning curves of the trials"),
            tag("p", "Validation loss at every evaluation. Stopped trials fell behind the others at a rung."),
            charts.chart(charts.curves(sweep.trials, sweep.best), f"curves-{index + 1}"),
        ]
    return section(anchor, title, *content)


def _landscape(sweep: SweepFolder, index: int) -> list[Html]:
    hidden = [t for t in sweep.whole if not (t.hyperparameters.lr and t.hyperparameters.weight_decay)]
    note = (
        "Dark is better. Open symbols are trials that were stopped early: their loss is that of fewer tokens."
    )
    if hidden:
        note += f" {plural(len(hidden), 'trial')} without a learning rate or weight decay above 0 not shown."
    content = [
        tag("h3", "Landscape"),
        tag("p", note),
        charts.chart(charts.landscape(sweep.whole, finalists(sweep)), f"landscape-{index + 1}"),
    ]
    if any(trial.loss is not None for trial in sweep.whole):
        content.append(tag("h3", "Loss against each hyperparameter"))
        content.append(charts.chart(charts.slices(sweep.whole), f"slices-{index + 1}"))
    return content


def _finalists(sweep: SweepFolder, index: int) -> list[Html]:
    leading = finalists(sweep)
    rows = [
        (
            f"{finalist.number} (fitted)" if finalist.fitted else finalist.number,
            finalist.hyperparameters.decay or "–",
            number(finalist.hyperparameters.lr),
            number(finalist.hyperparameters.weight_decay),
            number(finalist.hyperparameters.huber_c),
            ", ".join(f"{nats(loss)} (seed {seed})" for seed, loss in finalist.losses.items()),
            nats(finalist.mean),
            nats(finalist.confirmed),
            nats(finalist.spread),
        )
        for finalist in leading
    ]
    text = (
        "The best settings, trained again with other seeds. Confirmed is the mean over these: the seed that a "
        "setting was chosen on flatters it. The recommended one first, then "
        "by it; the spread is the standard deviation over all seeds."
    )
    head = ("trial", "decay", "η", "λ", "c", "losses (nats per token)", "mean", "confirmed", "spread")
    drawn = [charts.chart(charts.seeds(leading), f"finalists-{index + 1}")]
    evidence, space = sweep.evidence, sweep.config.space if sweep.config else None
    notes = evidence_notes(evidence.best_by_decay, evidence.at_edge, space, evidence.fit)
    said = [tag("p", f"{note[0].upper()}{note[1:]}.") for note in notes]
    return [tag("h3", "Finalists"), tag("p", text), *drawn, table(head, rows), *said]


def _recipes(contents: Contents) -> list[tuple[str, Recipe]]:
    """Return the different recipes and whose they are: usually one, that of the sweep and of all runs."""
    found: list[tuple[str, Recipe]] = []
    places: list[SweepFolder | RunFolder] = [*contents.sweeps, *contents.runs]
    for place in places:
        if place.recipe and all(place.recipe != known for _, known in found):
            found.append((place.name, place.recipe))
    # What a check keeps of its recipe is the settings alone.
    for check in contents.checks:
        if not any(same_settings(check.recipe, known) for _, known in found):
            found.append((check.name, check.recipe))
    return found


def _recipe(named: tuple[str, Recipe]) -> Html:
    name, recipe = named
    tuned, horizon = recipe.hyperparameters, recipe.horizon
    rows: list[tuple[object, object]] = [
        ("learning rate η", number(tuned.lr)),
        ("weight decay λ", number(tuned.weight_decay)),
        ("form of the decay", tuned.decay),
        ("Huber coefficient c", number(tuned.huber_c)),
        ("threshold δ", tuned.threshold),
        ("corrected (AdamC)", "yes" if tuned.corrected else "no"),
        ("betas, ε", f"{tuned.betas[0]:g}, {tuned.betas[1]:g}, {tuned.eps:g}"),
        ("gradient clipping", number(tuned.clip_norm)),
        ("proxy", f"width {recipe.proxy.width}, depth {recipe.proxy.depth}, context {recipe.proxy.context}"),
        (
            "horizon",
            f"{horizon.tokens:,} tokens in {plural(horizon.steps, 'step')} of {horizon.batch_tokens:,}",
        ),
        ("schedule", f"{horizon.schedule}, warm-up over {horizon.warmup_fraction:.0%} of the steps"),
    ]
    return tag("div", tag("h3", f"From {name}"), pairs(rows))


def _plan(run: RunFolder, plan: PlanFile) -> Html:
    ratios = ", ".join(f"{name} ×{number(ratio)}" for name, ratio in plan.ratios.items())
    rows = [(kind, *_planned(planned), planned.why or "–") for kind, planned in plan.kinds.items()]
    text = (
        f"Rule {plan.rule}; target ÷ proxy: {ratios}; residual branches ×{number(plan.residual_multiplier)}."
    )
    head = ("kind", "η", "λ", "ε", "initial std", "forward", "why")
    return tag(
        "div", tag("h3", f"{run.name}: width {run.width or 'unknown'}"), tag("p", text), table(head, rows)
    )


def _planned(planned: PlanKind) -> list[str]:
    factors = planned.multipliers
    values = [(getattr(planned, name), factors.get(name, 1.0)) for name in ("lr", "weight_decay", "eps")]
    cells = [
        number(value) + (f" (×{number(factor)})" if value and factor != 1 else "") for value, factor in values
    ]
    return cells + [f"×{number(factors.get(name, 1.0))}" for name in ("init_std", "forward")]


def _targets(runs: list[RunFolder]) -> Html:
    head = (
        "run",
        "rule",
        "width",
        "status",
        "loss (nats per token)",
        "tokens",
        "steps",
        "seconds",
        "tokens per second",
    )
    content = [table(head, [_result(run) for run in runs])]
    if any(run.metrics for run in runs):
        drawn = charts.chart(charts.targets([run for run in runs if run.metrics]), "targets")
        text = "Validation loss at every evaluation, and the training loss as its mean since the evaluation before."
        content += [tag("h3", "Loss over the tokens"), tag("p", text), drawn]
    for run in runs:
        content += watched(run)
    for panel in run_panels(runs) + watch_panels(runs):
        drawn = charts.chart(charts.panel_chart(panel), f"weights-{panel.name}")
        content += [tag("h3", f"{panel.title[0].upper()}{panel.title[1:]}"), drawn]
    return section("target", "Target runs" if len(runs) > 1 else "Target run", *content)


def _result(run: RunFolder) -> tuple[str, ...]:
    last = run.metrics[-1] if run.metrics else None
    steps = run.result.steps if run.result else last.step if last else 0
    seconds = f"{run.result.seconds:,.1f}" if run.result else "–"
    speed = f"{last.tokens_per_second:,.0f}" if last and last.tokens_per_second else "–"
    width = str(run.width or "–")
    return (
        run.name,
        run.rule,
        width,
        run.status,
        nats(run.loss),
        f"{run.tokens:,}",
        f"{steps:,}",
        seconds,
        speed,
    )


def _provenance(recipes: list[tuple[str, Recipe]]) -> Html:
    content = []
    for name, recipe in recipes:
        if recipe.provenance:
            # The configuration is what the commands above are made of.
            shown = {key: value for key, value in recipe.provenance.items() if key != "config"}
            content += [tag("h3", f"Of the recipe from {name}"), pairs(_flat(shown))]
    return section("provenance", "Provenance", *content)


def _flat(document: Mapping[str, Any], head: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in document.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{head}{key}.")
        else:
            rows.append(
                (f"{head}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            )
    return rows
