"""The panels of a target run's diagnostics: its matrices beside the laws and the steady state of weight decay."""

from collections.abc import Iterable, Iterator
from math import fsum, sqrt
from statistics import fmean

from widthwise.proxies.config import Horizon
from widthwise.proxies.outcome import SAMPLED_STEPS
from widthwise.proxies.schedule import schedule
from widthwise.transfer.reporting.formats import DiagnosticsLine, PlanFile
from widthwise.transfer.reporting.panels import Look, Panel, Series
from widthwise.transfer.reporting.reading import RunFolder


def run_panels(runs: Iterable[RunFolder]) -> list[Panel]:
    """Return what the diagnostics of target runs say of their matrices, a colour per run."""
    looked_at = [run for run in runs if any(one.diagnostics for one in run.metrics)]
    if not looked_at:
        return []
    rows = [_weights(run) for run in looked_at]
    labels = [f"{run.name} ({run.rule})" for run in looked_at]
    drawn = [
        _over_steps(labels, rows, *panel)
        for panel in (
            ("rms", "RMS of the matrices", "rms θ", ("rms", "rms_law")),
            (
                "updates",
                "preconditioned gradient to weight",
                "‖u‖/‖θ‖, matrices",
                ("updates", "updates_law", "updates_steady"),
            ),
            ("gradients", "gradient to weight", "‖g‖/‖θ‖, matrices", ("gradients",)),
        )
    ]
    return [panel for panel in drawn if panel.series]


Weights = dict[str, list[tuple[float, float]]]


def _weights(run: RunFolder) -> Weights:
    """Return name → (step, value) of a run's matrices; u is Adam's step before η.

    Noise brings ‖u‖/‖θ‖ to √(2λr_tκ̂/η_t·(1-β1)/(1+β1)), the update's steady state (arXiv 2305.17212) over η_t,
    which AdamC (arXiv 2506.02285) keeps constant.
    """
    found: Weights = {}
    for metrics in run.metrics:
        if metrics.diagnostics is None:
            continue
        for name, value in _at_evaluation(metrics.diagnostics, run.plan, metrics.step):
            if value:
                found.setdefault(name, []).append((float(metrics.step), value))
    return found


def _at_evaluation(
    measured: DiagnosticsLine, plan: PlanFile | None, step: int
) -> Iterator[tuple[str, float | None]]:
    yield "rms", _mean(measured, "rms")
    yield "rms_law", _mean(measured, "rms_law")
    yield "gradients", _mean(measured, "gradient_to_weight")
    if plan is None or plan.hyperparameters is None or plan.horizon.tokens is None:
        return
    matrix, tuned = plan.kinds["matrix"], plan.hyperparameters
    factor = _lr_factor(plan, step)
    lr = matrix.lr * factor
    if not lr:
        return
    for name, source in (("updates", "update_ratio"), ("updates_law", "update_ratio_law")):
        value = _mean(measured, source)
        yield name, None if value is None else value / lr
    kappa = _mean(measured, "kappa") or 0.0
    strength = matrix.weight_decay * (factor if tuned.corrected else 1.0) * kappa
    yield "updates_steady", sqrt(2 * strength / lr * (1 - tuned.betas[0]) / (1 + tuned.betas[0]))


def _lr_factor(plan: PlanFile, step: int) -> float:
    """Return the mean of η over its peak in the steps that an evaluation's ratios are means of."""
    horizon = Horizon.parse(plan.horizon.model_dump(exclude_none=True))
    return fmean(schedule(horizon, one) for one in range(max(0, step - SAMPLED_STEPS), step))


def _mean(measured: DiagnosticsLine, name: str) -> float | None:
    """Return the mean over the matrices, weighted by their sizes, of those that have the quantity."""
    known = [
        (value, one.size)
        for one in measured.parameters.values()
        if one.kind == "matrix" and (value := getattr(one, name)) is not None
    ]
    total = sum(size for _, size in known)
    return fsum(value * size for value, size in known) / total if total else None


def _over_steps(
    labels: list[str], rows: list[Weights], name: str, title: str, y_label: str, names: tuple[str, ...]
) -> Panel:
    looks: tuple[tuple[Look, str], ...] = (("line", ""), ("dashed", ", law"), ("dotted", ", steady state"))
    series = [
        Series(
            label=label + suffix,
            x=[step for step, _ in found[quantity]],
            y=[value for _, value in found[quantity]],
            look=look,
            colour=colour,
        )
        for colour, (label, found) in enumerate(zip(labels, rows, strict=True))
        for quantity, (look, suffix) in zip(names, looks, strict=False)
        if quantity in found
    ]
    return Panel(
        what="diagnostics",
        name=name,
        title=title,
        x_label="step",
        y_label=y_label,
        series=tuple(series),
        log="y",
    )
