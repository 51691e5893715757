"""Sound and broken targets against their proxies' bands: how many raise alarms, which, and with what cause.

    python benchmarks/watching.py watching --shakespeare tinyshakespeare.txt --wikitext wikitext2_valid.txt

Trains what the folder lacks (a JSON file per run; half an hour on a core), and prints docs/results/watching.md's
tables. ``--only PREFIX`` trains and judges the runs whose names begin so.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.outcome import Metrics, RunOptions, course
from widthwise.proxies.runs import RunSpec, run
from widthwise.transfer import Plan, Recipe
from widthwise.transfer.watching.alarms import Alarm, Watcher, measured, watch_of
from widthwise.transfer.watching.bands import bands_of

WIDTH, STEPS, EVALUATIONS = 32, 128, 8
HORIZON = Horizon(batch_tokens=1024, tokens=1024 * STEPS)
RECIPES = {
    # Huber decay, corrected, cosine, no gains: on Shakespeare.
    "huber": Recipe(
        hyperparameters=Hyperparameters(lr=0.03, weight_decay=1.5, huber_c=2.0, clip_norm=1.0),
        proxy=GPTConfig(width=WIDTH, context=64),
        horizon=HORIZON,
    ),
    # Three times the decay, longer steps, three blocks.
    "strong": Recipe(
        hyperparameters=Hyperparameters(lr=0.04, weight_decay=5.0, huber_c=1.5, clip_norm=1.0),
        proxy=GPTConfig(width=WIDTH, depth=3, context=64),
        horizon=HORIZON,
    ),
    # AdamW, linear, gains and biases, GELU: on WikiText.
    "adamw": Recipe(
        hyperparameters=Hyperparameters(
            lr=0.02, weight_decay=1.5, decay="l2", corrected=False, clip_norm=1.0
        ),
        proxy=GPTConfig(width=WIDTH, context=64, norm_gain=True, bias=True, mlp="gelu"),
        horizon=HORIZON.model_copy(update={"schedule": "linear"}),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A way to train a target: the plan that it is told, and what is done otherwise behind the plan's back."""

    rule: str = "fan-sqrt"
    decays: bool = True
    tokens: float = 1.0
    depth: int = 1
    std: float = 1.0
    lr: float = 1.0
    model: dict[str, float] | None = None
    corrected: bool | None = None
    decay: float = 1.0


TARGETS = {
    "sound": Target(),
    "longer": Target(tokens=2.0),
    "deeper": Target(depth=2),
    "sp": Target(rule="sp"),
    "coupled": Target(rule="mup-coupled"),
    "independent": Target(rule="mup-independent"),
    "undecayed": Target(decays=False),
    "silently-undecayed": Target(decay=0.0),
    "uncorrected": Target(corrected=False),
    "init4": Target(std=4.0),
    "init0.25": Target(std=0.25),
    "lr4": Target(lr=4.0),
    "noreadoutmult": Target(model={"readout_multiplier": 1.0}),
    "embed0.1": Target(model={"embedding_std": 0.02}),
}


def plan_of(recipe: Recipe, width: int, target: Target) -> Plan:
    """Return the plan that a target is told."""
    return recipe.at(
        width=width,
        depth=recipe.proxy.depth * target.depth,
        tokens=int(recipe.horizon.tokens * target.tokens),
        rule=target.rule,
        decay_kinds=None if target.decays else (),
    )


def spec_of(plan: Plan, target: Target, data: str) -> RunSpec:
    """Return what is trained: the plan, but for the target's faults."""
    settings = {kind: plan.settings(kind) for kind in plan.kinds}
    matrix = settings["matrix"]
    change = {"lr": matrix.lr * target.lr, "weight_decay": matrix.weight_decay * target.decay}
    settings["matrix"] = matrix.model_copy(update=change)
    tuned = plan.hyperparameters
    if target.corrected is not None:
        tuned = tuned.model_copy(update={"corrected": target.corrected})
    changes = {"matrix_std": plan.model.matrix_std * target.std, **(target.model or {})}
    return RunSpec(
        model=plan.model.model_copy(update=changes),
        base_width=plan.recipe.proxy.width,
        horizon=plan.horizon,
        hyperparameters=tuned,
        settings=settings,
        data=data,
    )


@dataclass(frozen=True, kw_only=True)
class Name:
    """A run: its recipe, width, target and seed."""

    recipe: str
    width: int
    target: str
    seed: int

    def __str__(self) -> str:
        return "-".join(map(str, asdict(self).values()))


def wanted() -> Iterator[Name]:
    """Yield all runs, the proxies first."""
    for recipe in RECIPES:
        yield from (Name(recipe=recipe, width=WIDTH, target="sound", seed=seed) for seed in range(4))
        for target in TARGETS:
            faulty = target not in ("sound", "longer", "deeper", "independent")
            if recipe != "huber" and target not in ("sound", "sp", "undecayed", "init4"):
                continue
            widths = (128,) if faulty else (64, 128) if target == "sound" else (64,)
            for width in widths:
                seeds = 4 if target == "sound" and width == 128 else 2
                yield from (Name(recipe=recipe, width=width, target=target, seed=s) for s in range(seeds))
    yield from (Name(recipe="huber", width=256, target=target, seed=0) for target in ("sound", "sp"))


def trained(name: Name, folder: Path, data: dict[str, str]) -> list[Metrics]:
    """Return a run's history, trained where the folder does not have it."""
    path = folder / f"{name}.json"
    if not path.exists():
        target = TARGETS[name.target]
        plan = plan_of(RECIPES[name.recipe], name.width, target)
        options = RunOptions(seed=name.seed, evaluations=EVALUATIONS, validation_batches=4, diagnostics=True)
        result = run(spec_of(plan, target, data[name.recipe]), options)
        document = {"status": result.status, "history": [asdict(one) for one in result.history]}
        path.write_text(json.dumps(document))
    return TypeAdapter(list[Metrics]).validate_python(json.loads(path.read_text())["history"])


def judge(recipe: Recipe, name: Name, history: list[Metrics]) -> list[Alarm]:
    """Return a run's alarms."""
    plan = plan_of(recipe, name.width, TARGETS[name.target])
    watch = watch_of(plan, evaluations=EVALUATIONS, same_data=True)
    assert watch is not None
    watcher = Watcher(watch)
    return [alarm for one in history for alarm in watcher.look(one.step, one.tokens, measured(one))]


def promised(recipe: str, histories: dict[Name, list[Metrics]], without: int | None = None) -> Recipe:
    """Return a recipe with the bands of its proxies, of all seeds but one."""
    proxies = {
        name.seed: course(history)
        for name, history in histories.items()
        if (name.recipe, name.width, name.target) == (recipe, WIDTH, "sound") and name.seed != without
    }
    bands = bands_of(proxies, STEPS)
    assert bands is not None
    return RECIPES[recipe].model_copy(update={"evidence": {"bands": bands.model_dump(mode="json")}})


def table(histories: dict[Name, list[Metrics]]) -> str:
    """Return a row per recipe, width and target, as Markdown."""
    groups: dict[tuple[str, int, str], dict[Name, list[Alarm]]] = {}
    for name, history in histories.items():
        left_out = name.seed if (name.width, name.target) == (WIDTH, "sound") else None
        recipe = promised(name.recipe, histories, left_out)
        alarms = judge(recipe, name, history)
        groups.setdefault((name.recipe, name.width, name.target), {})[name] = alarms
    head = (
        "recipe",
        "width",
        "target",
        "runs",
        "with alarms",
        "first at step",
        "what leaves its band",
        "causes",
    )
    lines = [head, ["---"] * len(head), *(_row(group, runs) for group, runs in groups.items())]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def _row(group: tuple[str, int, str], runs: dict[Name, list[Alarm]]) -> list[object]:
    raised = [alarms for alarms in runs.values() if alarms]
    first = ", ".join(str(alarms[0].step) for alarms in raised) or "–"
    what = Counter(f"{one.quantity} ({one.kind})" for alarms in raised for one in alarms)
    causes = Counter(one.cause for alarms in raised for one in alarms)
    told = "; ".join(f"{cause} ×{count}" for cause, count in causes.most_common(3)) or "–"
    return [
        *group,
        len(runs),
        len(raised),
        first,
        ", ".join(f"{n} ×{c}" for n, c in what.most_common(5)) or "–",
        told,
    ]


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shakespeare", required=True)
    parser.add_argument("--wikitext", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--cached", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(exist_ok=True)
    data = {name: arguments.shakespeare for name in RECIPES} | {"adamw": arguments.wikitext}
    names = [
        name
        for name in wanted()
        if (str(name).startswith(arguments.only) or name.width == WIDTH)
        and (not arguments.cached or (arguments.folder / f"{name}.json").exists())
    ]
    print(table({name: trained(name, arguments.folder, data) for name in names}), end="")


if __name__ == "__main__":
    main()
