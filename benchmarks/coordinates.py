"""The coordinate check of a recipe by itself: how each layer's change in the first steps follows the width.

    python benchmarks/coordinates.py recipe.json --widths 32,64,128,256 --rule fan-sqrt --data tinyshakespeare.txt

It is what `widthwise check` measures in its first runs. `--starts` and `--warm-up` say how many starts each seed has,
and over how many steps they warm up at least, to see what that is good for.
"""

import argparse
from collections.abc import Mapping
from math import log2
from statistics import fmean

import torch

from widthwise.proxies import runs
from widthwise.proxies.config import KINDS
from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.runs import RunSpec, coordinate_deltas
from widthwise.transfer import Recipe
from widthwise.transfer.checking.fitting import slope
from widthwise.transfer.checking.tables import interval

Changes = Mapping[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument(
        "--widths", required=True, type=lambda text: [int(width) for width in text.split(",")]
    )
    parser.add_argument("--rule", default="fan-sqrt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="python")
    parser.add_argument("--starts", type=int, default=runs.STARTS)
    parser.add_argument("--warm-up", type=int, default=runs.WARMUP_STEPS)
    arguments = parser.parse_args()
    runs.STARTS, runs.WARMUP_STEPS = arguments.starts, arguments.warm_up
    torch.set_num_threads(1)
    recipe = Recipe.load(arguments.recipe)
    changes = [
        (width, followed(recipe, width, arguments.rule, seed, arguments.data))
        for width in arguments.widths
        for seed in range(arguments.seeds)
    ]
    layers = changes[0][1]
    for layer in layers:
        # The layers share the confidence, as in the check.
        print(f"{layer}: width^{exponent(changes, layer, 1 - 0.05 / len(layers))}")


def followed(recipe: Recipe, width: int, rule: str, seed: int, data: str) -> Changes:
    plan = recipe.at(width=width, rule=rule)
    spec = RunSpec(
        model=plan.model,
        base_width=recipe.proxy.width,
        horizon=plan.horizon,
        hyperparameters=plan.hyperparameters,
        settings={kind: plan.settings(kind) for kind in KINDS},
        data=data,
    )
    deltas = coordinate_deltas(spec, RunOptions(seed=seed))
    if deltas is None:
        raise SystemExit(f"a start diverged at width {width}")
    return deltas


def exponent(changes: list[tuple[int, Changes]], layer: str, confidence: float) -> str:
    # A layer behind a readout that starts at zero does not move in the first step.
    heights = [fmean(log2(change) for change in deltas[layer] if change) for _, deltas in changes]
    found = slope([log2(width) for width, _ in changes], heights, confidence)
    return "–" if found is None else interval(found)


if __name__ == "__main__":
    main()
