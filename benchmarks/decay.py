"""Two experiments on weight decay, with the diagnostics of the runs themselves; figures and data beside each other.

    python benchmarks/decay.py correction    # does AdamC's correction keep the gradient norm from rising?
    python benchmarks/decay.py huber         # is Huber decay more than less decay?

`correction` trains with l2 decay, λ constant and λ·η_t/η_max, while η falls to zero, and compares gradients and
updates with what the laws of `widthwise.proxies.diagnostics` predict. `huber` trains with Huber decay, takes κ̂ from
its diagnostics, and trains AdamW with λ·κ̂: the same amount of decay, differently shared out among the weights.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters, RunOptions
from widthwise.proxies.outcome import SAMPLED_STEPS, Metrics
from widthwise.proxies.runs import RunSpec, base_settings, run
from widthwise.proxies.schedule import schedule

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "decay"
SEEDS = (0, 1, 2)
BATCH_TOKENS = 1024

Row = dict[str, Any]


def linear(steps: int) -> Horizon:
    return Horizon(batch_tokens=BATCH_TOKENS, tokens=steps * BATCH_TOKENS, schedule="linear")


def trained(
    tuned: Hyperparameters, horizon: Horizon, *, width: int, evaluations: int, seed: int
) -> list[Metrics]:
    """Train a proxy with diagnostics; return its history."""
    spec = RunSpec(
        model=GPTConfig(width=width, depth=2, head_dim=16, context=64),
        base_width=width,
        horizon=horizon,
        hyperparameters=tuned,
        settings=base_settings(tuned),
        data="python",
    )
    result = run(spec, RunOptions(seed=seed, evaluations=evaluations, diagnostics=True))
    print(f"seed {seed}: {result.status}, loss {result.loss:.4f}, {result.seconds:.0f} s", flush=True)
    return result.history


# AdamC's correction


def correction() -> list[Row]:
    """Return a row per run and evaluation."""
    rows, horizon = [], linear(1500)
    for corrected, seed in product((False, True), SEEDS):
        tuned = Hyperparameters(lr=0.02, weight_decay=1.0, decay="l2", corrected=corrected)
        history = trained(tuned, horizon, width=64, evaluations=75, seed=seed)
        rows += [{"corrected": corrected, "seed": seed, **_gradients(tuned, horizon, one)} for one in history]
    return rows


def _gradients(tuned: Hyperparameters, horizon: Horizon, metrics: Metrics) -> Row:
    """Return what the matrices tell at one evaluation; ratios of updates are divided by η, which leaves those of u.

    η is the mean over the sampled steps, as the ratios are.
    """
    measured = metrics.diagnostics
    assert measured is not None
    matrices = [one for one in measured.parameters.values() if one.kind == "matrix"]
    size = sum(one.size for one in matrices)
    factor = mean(schedule(horizon, step) for step in range(metrics.step - SAMPLED_STEPS, metrics.step))
    lr = tuned.lr * factor

    def average(name: str) -> float:
        return math.fsum(getattr(one, name) * one.size for one in matrices) / size

    strength = tuned.weight_decay * (factor if tuned.corrected else 1.0)
    return {
        "step": metrics.step,
        "loss": metrics.loss,
        "lr": lr,
        "gradient_norm": measured.gradient_norm,
        "gradient_to_weight": average("gradient_to_weight"),
        "rms": average("rms"),
        "rms_law": average("rms_law"),
        "update_to_weight": average("update_ratio") / lr,
        "update_to_weight_law": average("update_ratio_law") / lr,
        "update_to_weight_equilibrium": math.sqrt(
            2 * strength / lr * (1 - tuned.betas[0]) / (1 + tuned.betas[0])
        ),
    }


def draw_correction(rows: list[Row]) -> None:
    """Draw the mean over seeds, and predictions as broken lines."""
    panels = {
        "gradient_norm": "gradient norm ‖g‖, whole model",
        "gradient_to_weight": "‖g‖ / ‖θ‖, matrices",
        "update_to_weight": "‖u‖ / ‖θ‖, matrices",
        "rms": "rms θ, matrices",
    }
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.8), layout="constrained")
    for (name, title), axis in zip(panels.items(), axes, strict=True):
        for corrected, colour in ((False, "tab:red"), (True, "tab:blue")):
            label = "AdamC" if corrected else "AdamW"
            _line(axis, rows, corrected, name, color=colour, label=label)
            if f"{name}_law" in rows[0]:
                _line(
                    axis, rows, corrected, f"{name}_law", color=colour, linestyle="--", label=f"{label}, law"
                )
            if f"{name}_equilibrium" in rows[0]:
                _line(
                    axis,
                    rows,
                    corrected,
                    f"{name}_equilibrium",
                    color=colour,
                    linestyle=":",
                    label=f"{label}, equilibrium",
                )
        axis.set(title=title, xlabel="step", yscale="log")
    axes[2].legend(fontsize=8)
    _save(figure, "correction")


def _line(axis: Any, rows: list[Row], corrected: bool, name: str, **style: Any) -> None:
    mine = [row for row in rows if row["corrected"] == corrected]
    steps = sorted({row["step"] for row in mine})
    axis.plot(steps, [mean(row[name] for row in mine if row["step"] == step) for step in steps], **style)


# Huber's gift


def huber() -> list[Row]:
    """Return a row per (c, λ, seed): the loss with Huber decay, κ̂, and AdamW's loss at λ times the mean κ̂."""
    rows, horizon = [], linear(400)
    for huber_c, weight_decay in product((1.0, 2.0), (1.0, 2.0, 4.0, 8.0)):
        tuned = Hyperparameters(lr=0.04, weight_decay=weight_decay, huber_c=huber_c)
        histories = [trained(tuned, horizon, width=32, evaluations=10, seed=seed) for seed in SEEDS]
        kappa = mean(map(_kappa, histories))
        matched = tuned.model_copy(
            update={"decay": "l2", "huber_c": None, "weight_decay": kappa * weight_decay}
        )
        plain = [trained(matched, horizon, width=32, evaluations=10, seed=seed) for seed in SEEDS]
        rows += [
            {
                "huber_c": huber_c,
                "weight_decay": weight_decay,
                "kappa": _kappa(one),
                "matched_weight_decay": kappa * weight_decay,
                "seed": seed,
                "huber_loss": one[-1].loss,
                "adamw_loss": other[-1].loss,
            }
            for seed, one, other in zip(SEEDS, histories, plain, strict=True)
        ]
    return rows


def _kappa(history: Iterable[Metrics]) -> float:
    """Return the matrices' κ̂ over the run, weighted by how much decay there was: η_t², as it is corrected."""
    pairs = [
        (one.diagnostics.kinds["matrix"].kappa, one.lr_factor**2)
        for one in history
        if one.diagnostics is not None
    ]
    return sum(kappa * weight for kappa, weight in pairs) / sum(weight for _, weight in pairs)


def draw_huber(rows: list[Row]) -> None:
    """Draw the losses against the effective decay, a panel per c, with the standard deviation over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for huber_c, axis in zip((1.0, 2.0), axes, strict=True):
        points = sorted({row["matched_weight_decay"] for row in rows if row["huber_c"] == huber_c})
        for name in ("huber_loss", "adamw_loss"):
            losses = [[row[name] for row in rows if row["matched_weight_decay"] == point] for point in points]
            label = f"Huber, c = {huber_c:g}" if name == "huber_loss" else "AdamW"
            axis.errorbar(
                points, [mean(one) for one in losses], [stdev(one) for one in losses], capsize=3, label=label
            )
        axis.set(xscale="log", xlabel="effective decay λ·κ̂", title=f"c = {huber_c:g}")
        axis.legend()
    axes[0].set_ylabel("validation loss, nats per byte")
    _save(figure, "huber")


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _save(figure: Any, name: str) -> None:
    figure.savefig(RESULTS / f"{name}.png", dpi=90)


EXPERIMENTS: dict[str, tuple[Callable[[], list[Row]], Callable[[list[Row]], None]]] = {
    "correction": (correction, draw_correction),
    "huber": (huber, draw_huber),
}


def main() -> None:
    """Train, unless only to draw, and write the rows and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--draw", action="store_true", help="only draw the rows of the last time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    train, draw = EXPERIMENTS[arguments.experiment]
    path = RESULTS / f"{arguments.experiment}.json"
    if not arguments.draw:
        lines = [json.dumps({name: _rounded(value) for name, value in row.items()}) for row in train()]
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    draw(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
