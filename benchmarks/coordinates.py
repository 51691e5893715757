"""The coordinate check of a recipe by itself: how each layer's change in the first steps follows the width.

    python benchmarks/coordinates.py recipe.json --widths 32,64,128,256 --rule fan-sqrt --data tinyshakespeare.txt
    python benchmarks/coordinates.py check.json --data tinyshakespeare.txt

It is what `widthwise check` measures in its first runs. `--starts` and `--warm-up` say how many starts each seed has,
and over how many steps they warm up at least, to see what that is good for. Of a check's own file, the coordinates of
its runs are taken anew and the file is written again with them, their exponents and the verdict; all else stays.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from math import log2
from pathlib import Path
from statistics import fmean

import torch

from widthwise.proxies import runs
from widthwise.proxies.config import KINDS
from widthwise.proxies.files import write_json
from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.runs import RunSpec, coordinate_deltas
from widthwise.transfer import Recipe
from widthwise.transfer.checking.alternatives import better_rule
from widthwise.transfer.checking.estimates import slope
from widthwise.transfer.checking.judging import gate, judge
from widthwise.transfer.checking.measuring import measure
from widthwise.transfer.checking.recorded import read_check
from widthwise.transfer.checking.tables import interval

Changes = Mapping[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--widths", type=lambda text: [int(width) for width in text.split(",")])
    parser.add_argument("--rule", default="fan-sqrt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="python")
    parser.add_argument("--starts", type=int, default=runs.STARTS)
    parser.add_argument("--warm-up", type=int, default=runs.WARMUP_STEPS)
    arguments = parser.parse_args()
    runs.STARTS, runs.WARMUP_STEPS = arguments.starts, arguments.warm_up
    torch.set_num_threads(1)
    if arguments.widths is None:
        take_anew(Path(arguments.recipe), arguments.data)
        return
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


def take_anew(path: Path, data: str) -> None:
    before = read_check(path)
    assert before.measured is not None
    observations = tuple(
        replace(
            one,
            coordinates=followed(before.recipe, one.setting.width, before.rule, one.setting.seed, data),
        )
        if one.setting.is_transferred
        else one
        for one in before.observations
    )
    taken = measure(observations, base_width=before.measured.base_width)
    measured = replace(
        before.measured,
        coordinate_slopes=taken.coordinate_slopes,
        coordinate_slopes_alone=taken.coordinate_slopes_alone,
    )
    tokens = before.options.tokens or before.recipe.horizon.tokens
    verdict = gate(before.horizons, tokens) or judge(measured)
    verdict = verdict.beside(better_rule(before.alternatives))
    result = replace(before, observations=observations, measured=measured, verdict=verdict)
    write_json(path, result.as_json())
    for layer, found in taken.coordinate_slopes.items():
        print(f"{layer}: width^{interval(found)}")
    print(verdict.sentence)


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
