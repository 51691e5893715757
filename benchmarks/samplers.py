"""What samplers, stopping and the fitted minimum are worth, on real sweeps of a small proxy.

    python benchmarks/samplers.py sweep TEXT OUT [WAY…]  # sweeps by WAYS over SEEDS, resumable, a folder each
    python benchmarks/samplers.py judge TEXT OUT RESULTS  # what each recommends, trained with fresh seeds; a plot
    python benchmarks/samplers.py fit OUT  # the fitted minimum of each, and its luckiest trial
    python benchmarks/samplers.py replay OUT  # ASHA by other rules, on the curves of what nothing stopped

Results: docs/results/search/samplers.md.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np

from widthwise.proxies import GPTConfig, Horizon
from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.runs import RunSpec, base_settings
from widthwise.search import SweepConfig, sweep
from widthwise.search.fitting import Fit, Tried, fit_minimum
from widthwise.search.grid import Placement, Run, run_all
from widthwise.transfer import Recipe

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MODEL = GPTConfig(width=32, context=64)
HORIZON = Horizon(batch_tokens=1024, tokens=1024 * 150)
SEEDS, FRESH = range(5), (900_001, 900_002, 900_003)
WAYS: dict[str, dict[str, Any]] = {
    "grid": {"sampler": "grid", "trials": 24, "prune": False},
    "random": {"sampler": "random", "trials": 24, "prune": False},
    "tpe": {"sampler": "tpe", "trials": 24, "prune": False},
    "tpe-asha": {"sampler": "tpe", "trials": 24, "prune": True},
    # About as many tokens as the others take, which nothing stops.
    "tpe-asha-34": {"sampler": "tpe", "trials": 34, "prune": True},
}
# Orders in which the trials of a sweep are replayed.
ORDERS = 20
SEARCHED = ("lr", "weight_decay", "decay", "huber_c")

Record = Mapping[str, Any]


def run_sweeps(text: str, out: Path, ways: Sequence[str]) -> None:
    for seed, way in product(SEEDS, ways):
        config = SweepConfig(
            model=MODEL,
            horizon=HORIZON,
            data=text,
            finalists=2,
            seeds=2,
            seed=1000 * seed,
            concurrency=2,
            evaluations=15,
            validation_batches=4,
            **WAYS[way],
        )
        folder = out / f"{way}-{seed}"
        result = sweep(config, folder, resume=(folder / "study.db").exists(), show_progress=False)
        if not result.finished:
            sys.exit(130)
        Recipe.from_sweep(result).save(folder / "recipe.json")
        print(f"{way} {seed}: {result.best.score:.4f} nats, {spent(folder):,} tokens", flush=True)


def records(folder: Path) -> list[Record]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def proposals(folder: Path) -> list[Record]:
    return [one for one in records(folder) if one["confirms"] is None and not one["fitted"]]


def spent(folder: Path) -> int:
    """Return the tokens that a sweep trained on, confirmations included."""
    return sum(one["tokens"] for one in records(folder))


def is_fitted(folder: Path) -> bool:
    """Return whether a sweep recommends the minimum of its quadratic."""
    evidence = Recipe.load(folder / "recipe.json").evidence
    assert evidence is not None
    return bool(evidence["finalists"][0]["fitted"])


def fitted(trials: Sequence[Record]) -> tuple[Fit, Record]:
    """Return the fit through the trials that completed, and the luckiest of them."""
    completed = [one for one in trials if one["status"] == "completed"]
    fit = fit_minimum([Tried(loss=one["loss"], **one["hyperparameters"]) for one in completed])
    return fit, min(completed, key=lambda one: one["loss"])


def show_fits(out: Path) -> None:
    for folder in sorted(out.glob("*-[0-9]")):
        fit, luckiest = fitted(proposals(folder))
        found = fit.problem or (fit.parameters(), fit.lr_interval, fit.weight_decay_interval, fit.residual)
        print(folder.name, fit.trials, found, "luckiest:", luckiest["hyperparameters"], luckiest["loss"])


def judge(text: str, out: Path, results: Path) -> None:
    """Train what every sweep recommends with seeds that none has seen; beside a fitted minimum its luckiest trial."""
    folders = sorted(path.parent for path in out.glob("*-[0-9]/recipe.json"))
    points: dict[str, dict[str, Any]] = {}
    for folder in folders:
        best = Recipe.load(folder / "recipe.json").hyperparameters
        points[f"{folder.name}-recommended"] = best.model_dump(include=set(SEARCHED))
        if is_fitted(folder):
            points[f"{folder.name}-luckiest"] = fitted(proposals(folder))[1]["hyperparameters"]
    runs = [fresh_run(name, point, seed) for name, point in points.items() for seed in FRESH]
    outcomes = run_all(
        lambda _: runs,
        out / "judged",
        # The runs themselves grow with the sweeps that have ended.
        config={"seeds": [*FRESH]},
        data=text,
        resume=(out / "judged" / "runs.db").exists(),
        placement=Placement(concurrency=2),
        show_progress=False,
    )

    def loss(name: str) -> float | None:
        if name not in points:
            return None
        losses = (outcomes[f"{name}-{seed}"].loss for seed in FRESH)
        return fmean(np.inf if one is None else one for one in losses)

    judged = [
        {
            "way": folder.name[:-2],
            "seed": int(folder.name[-1]),
            "tokens": spent(folder),
            "point": points[f"{folder.name}-recommended"],
            "fitted": is_fitted(folder),
            "recommended": loss(f"{folder.name}-recommended"),
            "luckiest": loss(f"{folder.name}-luckiest"),
        }
        for folder in folders
    ]
    (results / "samplers.json").write_text(json.dumps(judged, indent=1) + "\n")
    plot(judged, results / "samplers.png")
    tell(judged)


def tell(judged: Sequence[Record]) -> None:
    """Print the losses and tokens by way, and what fitted minima gain over the luckiest trials of their sweeps."""
    for way in WAYS:
        of = sorted((one for one in judged if one["way"] == way), key=lambda one: one["seed"])
        losses, tokens = [one["recommended"] for one in of], [one["tokens"] for one in of]
        if of:
            print(
                way,
                *(f"{loss:.4f}" for loss in losses),
                f"mean {fmean(losses):.4f}, {fmean(tokens):,.0f} tokens",
            )
    gains = [one["luckiest"] - one["recommended"] for one in judged if one["fitted"]]
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    print(
        f"fitted over luckiest: {fmean(gains):.4f} ± {error:.4f}, better in {sum(g > 0 for g in gains)} of {len(gains)}"
    )


def plot(judged: Sequence[Record], path: Path) -> None:
    """Draw the loss of what was recommended over the tokens spent: a dot per sweep, a cross per way's mean."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for way in (way for way in WAYS if any(one["way"] == way for one in judged)):
        of = [one for one in judged if one["way"] == way]
        tokens, losses = [one["tokens"] / 1e6 for one in of], [one["recommended"] for one in of]
        dots = axes.scatter(tokens, losses, s=18, alpha=0.6)
        error = np.std(losses, ddof=1) / np.sqrt(len(losses))
        axes.errorbar(
            fmean(tokens),
            fmean(losses),
            yerr=error,
            color=dots.get_facecolor()[0][:3],
            marker="x",
            markersize=9,
            capsize=3,
            label=f"{way}: {fmean(losses):.4f} ± {error:.4f}",
        )
    axes.set_xlabel("tokens of the whole sweep, millions")
    axes.set_ylabel("validation loss of the recommended point,\nthree fresh seeds, nats per byte")
    axes.legend(title="mean over sweeps ± standard error")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def fresh_run(name: str, point: dict[str, Any], seed: int) -> Run:
    hyperparameters = Hyperparameters(**point, clip_norm=1.0)
    spec = RunSpec(
        model=MODEL,
        base_width=MODEL.width,
        horizon=HORIZON,
        hyperparameters=hyperparameters,
        settings=base_settings(hyperparameters),
        data="",
    )
    options = {"evaluations": 1, "validation_batches": 4}
    return Run(key=f"{name}-{seed}", spec=spec, seed=seed, options=options)


def replay(
    trials: Sequence[Record], first: float, reduction: int, spared: int, apart: bool
) -> tuple[int, list[Record]]:
    """Return the tokens that ASHA would have spent, and the trials that it would not have stopped.

    Args:
        trials: in their order; each is told before the next begins.
        first: the first rung, a share of the steps; the others follow by `reduction`.
        reduction: one in so many goes on from a rung.
        spared: trials of each form of decay that are never stopped.
        apart: whether trials are compared with those of their own form of decay alone.
    """
    rungs: dict[Any, list[float]] = {}
    tokens, kept = 0, []
    for trial in trials:
        decay = trial["hyperparameters"]["decay"]
        free = sum(one["hyperparameters"]["decay"] == decay for one in kept) < spared
        share, rung = 1.0, first
        for step, loss in trial["curve"]:
            if step < rung * HORIZON.steps or step >= HORIZON.steps or trial["status"] == "diverged":
                continue
            others = rungs.setdefault((rung, decay if apart else None), [])
            others.append(loss)
            rung *= reduction
            if loss > sorted(others)[max(len(others) // reduction - 1, 0)] and not free:
                share = step / HORIZON.steps
                break
        tokens += round(share * trial["tokens"])
        if share == 1 and trial["status"] == "completed":
            kept.append(trial)
    return tokens, kept


def show_replays(out: Path) -> None:
    folders = [folder for way in ("random", "tpe") for folder in sorted(out.glob(f"{way}-[0-9]"))]
    sweeps = [proposals(folder) for folder in folders]
    generator = np.random.default_rng(0)
    print(
        "first rung | reduction | spared | forms apart | tokens | regret, mean and worst | best kept"
        " | completed | of the rarer form"
    )
    for apart, reduction, spared, first in product(
        (False, True), (2, 3), (0, 3), (1 / 8, 1 / 4, 1 / 3, 1 / 2)
    ):
        rows = []
        for trials in sweeps:
            best = min(one["loss"] for one in trials if one["status"] == "completed")
            whole = sum(one["tokens"] for one in trials)
            for _ in range(ORDERS):
                order = [trials[index] for index in generator.permutation(len(trials))]
                tokens, kept = replay(order, first, reduction, spared, apart)
                regret = min(one["loss"] for one in kept) - best
                forms = [
                    sum(one["hyperparameters"]["decay"] == form for one in kept) for form in ("huber", "l2")
                ]
                rows.append((tokens / whole, regret, float(regret == 0), len(kept), min(forms)))
        share, regret, same, completed, rarer = np.mean(rows, axis=0)
        worst = max(row[1] for row in rows)
        print(
            f"{first:.3f} | {reduction} | {spared} | {apart} | {share:.2f} | {regret:.4f}, {worst:.3f}"
            f" | {same:.2f} | {completed:.1f} | {rarer:.1f}"
        )


def main() -> None:
    match sys.argv[1:]:
        case ["sweep", text, out, *ways]:
            run_sweeps(text, Path(out), ways or list(WAYS))
        case ["fit", out]:
            show_fits(Path(out))
        case ["judge", text, out, results]:
            judge(text, Path(out), Path(results))
        case ["replay", out]:
            show_replays(Path(out))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
