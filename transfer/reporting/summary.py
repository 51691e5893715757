"""What a report says first: the outcome in one sentence with its numbers, better or worse."""

import math

from widthwise.transfer.reporting.formats import FinalistLine, TrialLine
from widthwise.transfer.reporting.reading import BASELINE_RULE, CheckFolder, Contents, RunFolder, SweepFolder


def number(value: float | None, digits: int = 4) -> str:
    """Return a number to `digits` significant digits, a dash for None."""
    return "–" if value is None else f"{value:.{digits}g}"


def nats(value: float | None) -> str:
    """Return a loss with four decimals, a dash for None."""
    return "–" if value is None else f"{value:.4f}"


def plural(count: int, noun: str) -> str:
    """Return ``1 trial``, ``2 trials``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def finalists(sweep: SweepFolder) -> list[FinalistLine]:
    """Return the finalists, best first: as the recipe has them, or from the trials run so far."""
    if sweep.evidence.finalists:
        return list(sweep.evidence.finalists)
    # The sweep's own rule, in particular of seeds that diverged; it brings Optuna and torch along.
    from widthwise.search.sweeping import SeedLosses

    confirmed = {trial.confirms for trial in sweep.trials}
    found = []
    for origin in (t for t in sweep.trials if t.number in confirmed and _ending(t) is not None):
        repeats = [trial for trial in sweep.trials if trial.confirms == origin.number]
        endings = {one.seed: _ending(one) for one in (origin, *repeats)}
        losses = SeedLosses(losses={seed: loss for seed, loss in endings.items() if loss is not None})
        line = FinalistLine(
            number=origin.number,
            fitted=origin.fitted,
            hyperparameters=origin.hyperparameters,
            **losses.as_json(),
        )
        found.append((losses.score, next(iter(losses.losses.values())), origin.number, line))
    return [line for *_, line in sorted(found, key=lambda one: one[:3])]


def _ending(trial: TrialLine) -> float | None:
    """Return a trial's loss as finalists are compared by: infinite where it diverged, None where it failed."""
    if trial.status == "diverged":
        return math.inf
    return trial.loss if trial.status == "completed" else None


def headline(contents: Contents) -> str:
    """Return the outcome in one sentence: of the checks, and of the target runs, or else of the sweeps."""
    checked = [_checked(check) for check in contents.checks]
    rest = _trained(contents)
    return "; ".join([*checked, rest] if rest else checked)


def _checked(check: CheckFolder) -> str:
    verdict = check.result.verdict.sentence
    said = verdict if not verdict.startswith("inconclusive") else f"is {verdict}"
    return f"the transfer by {check.result.rule} {said}"


def _trained(contents: Contents) -> str:
    if not contents.runs:
        return "; ".join(_swept(sweep) for sweep in contents.sweeps)
    plan, baseline = comparison(contents.runs)
    if plan is None or baseline is None:
        return "; ".join(_ran(run) for run in contents.runs)
    return _compared(plan, baseline)


def caveat(contents: Contents) -> str:
    """Return how far the headline may be trusted: the seeds, and their spread where it was measured."""
    plan, baseline = comparison(contents.runs)
    if plan is None or baseline is None or plan.loss is None or baseline.loss is None:
        return "One seed each." if contents.runs else ""
    spreads = [s.evidence.seed_spread for s in contents.sweeps if s.evidence.seed_spread is not None]
    if not spreads:
        return "One seed each; how much a seed matters was not measured."
    spread, gain = max(spreads), abs(baseline.loss - plan.loss)
    said = f"the difference is {gain / spread:.1f} times that" if spread else "the difference is not 0"
    # Two runs of one setting differ by √2 standard deviations of a single one.
    if gain <= 2 * math.sqrt(2) * spread:
        said = "two runs may differ as much by chance: too close to call"
    return f"One seed each. From seed to seed the proxy's loss varies by {spread:.4f} (standard deviation); {said}."


def comparison(runs: list[RunFolder]) -> tuple[RunFolder | None, RunFolder | None]:
    """Return a finished run by a plan and the baseline to compare it with: as wide, as many tokens, or None."""
    baselines = [run for run in runs if run.rule == BASELINE_RULE and run.result]
    for plan in runs:
        if plan.rule == BASELINE_RULE or not plan.result:
            continue
        for baseline in baselines:
            # A diverged baseline stopped early: its tokens are fewer, and the comparison stands.
            if plan.width == baseline.width and (
                plan.tokens == baseline.tokens or None in (plan.loss, baseline.loss)
            ):
                return plan, baseline
    return None, None


def _compared(plan: RunFolder, baseline: RunFolder) -> str:
    start = (
        f"target at width {plan.width}: {_outcome(plan)} with the plan ({plan.rule}), {_outcome(baseline)} "
        f"with the proxy's values carried over ({baseline.rule})"
    )
    if plan.loss is None or baseline.loss is None:
        return start
    gain = baseline.loss - plan.loss
    verdict = (
        f"{abs(gain):.4f} nats per token {'better' if gain > 0 else 'worse'}"
        if gain
        else "no better and no worse"
    )
    return f"{start}: the plan is {verdict}"


def _outcome(run: RunFolder) -> str:
    return run.status if run.loss is None else nats(run.loss)


def _ran(run: RunFolder) -> str:
    where = f"target at width {run.width or 'unknown'} ({run.rule})"
    if run.result and run.loss is None:
        return f"{where}: {run.status} after {plural(run.tokens, 'token')}"
    if run.loss is None:
        return f"{where}: {run.status}, not evaluated yet"
    status = "" if run.status == "completed" else f" ({run.status})"
    return f"{where}: {nats(run.loss)} nats per token after {plural(run.tokens, 'token')}{status}"


def _swept(sweep: SweepFolder) -> str:
    trials = plural(len(sweep.trials), "trial")
    leading = finalists(sweep)
    if leading and leading[0].mean is not None:
        seeds = plural(sum(loss is not None for loss in leading[0].losses.values()), "seed")
        loss, drawn = f"{nats(leading[0].mean)} nats per token over {seeds}", leading[0].hyperparameters
    elif sweep.best:
        loss, drawn = f"{nats(sweep.best.loss)} nats per token in one seed", sweep.best.hyperparameters
    else:
        return f"sweep of {trials}{_progress(sweep)}: none completed"
    return f"sweep of {trials}{_progress(sweep)}: best {loss}, η = {number(drawn.lr)}, λ = {number(drawn.weight_decay)}"


def _progress(sweep: SweepFolder) -> str:
    return "" if sweep.recipe else " so far"
