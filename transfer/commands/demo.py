"""``widthwise demo``: the whole chain, small, on this machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widthwise.proxies.config import GPTConfig
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.commands.options import Flag

if TYPE_CHECKING:
    from rich.console import Console

    from widthwise.search import SweepConfig
    from widthwise.transfer.recipe import Recipe

# The folder of each target run, and the rule that scales it.
RUNS = {"target": "fan-sqrt", "baseline": "sp"}
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the whole chain on this machine: sweep, recipe, plan, two target runs, report."""

    out: Path = Path("widthwise-demo")
    """Folder for everything; a demo that was interrupted goes on in it."""
    data: str = "python"
    """'python' (this machine's Python source), a text file, a .bin shard or a folder of them."""
    width: int = 64
    """Width of the proxy."""
    target_width: int = 256
    """Width of the target."""
    trials: int = 16
    """Trials of the sweep."""
    tokens: int = 307_200
    """Tokens per trial and per target run."""
    seed: int = 0
    """Seed of everything random."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Sweep, plan, train both targets, report; print the losses whichever wins."""
        from rich.console import Console

        from widthwise.transfer.reporting import report

        config = self._config()
        console = Console(stderr=self.json)
        recipe = self._sweep(config, console)
        console.rule(f"2/4 plan at width {self.target_width}")
        console.print(recipe.at(width=self.target_width).table())
        results = {name: self._launch(recipe, name, console) for name in RUNS}
        page = report(self.out)
        console.rule("4/4 result")
        if self.json:
            print(json.dumps({"results": results, "report": str(page)}))
        else:
            console.print(conclusion(results, recipe), highlight=False, markup=False, soft_wrap=True)
            console.print(f"files: {', '.join(self._files())}", highlight=False, soft_wrap=True)
        return 0

    def _config(self) -> "SweepConfig":
        """Return what to sweep, having looked at everything that the target runs will refuse after it."""
        from widthwise.proxies.data import open_tokens
        from widthwise.search import SweepConfig

        tokens = open_tokens(self.data)
        config = SweepConfig.parse(
            {
                "model": {"width": self.width, "vocab_size": tokens.vocab_size},
                "horizon": {"tokens": self.tokens},
                "data": self.data,
                "trials": self.trials,
                "seed": self.seed,
            }
        )
        try:
            GPTConfig.parse({**config.model.model_dump(), "width": self.target_width})
        except ConfigError as error:
            # Of a valid proxy, the width alone can be wrong with the target.
            raise ConfigError(f"target_{error}") from None
        sequences = config.horizon.sequences(config.model.context)
        tokens.require(config.model.context, sequences)
        assert sequences % WORKERS == 0, f"{WORKERS} workers must divide the {sequences} sequences of a batch"
        return config

    def _sweep(self, config: "SweepConfig", console: "Console") -> "Recipe":
        from widthwise.search import sweep
        from widthwise.transfer.commands.sweep import save_recipe, show

        console.rule(f"1/4 sweep at width {self.width}: η, λ and c on {self.data!r}")
        folder = self.out / "sweep"
        result = sweep(config, folder, resume=(folder / "study.db").exists())
        if not result.finished:
            raise KeyboardInterrupt
        show(result, folder, console)
        return save_recipe(result, folder)

    def _launch(self, recipe: "Recipe", name: str, console: "Console") -> dict[str, Any]:
        from widthwise.transfer.launch_options import LaunchOptions
        from widthwise.transfer.launching import launch

        console.rule(f"3/4 {name} at width {self.target_width}, rule {RUNS[name]}, {WORKERS} workers")
        plan = recipe.at(width=self.target_width, rule=RUNS[name])
        folder = self.out / name
        resume = (folder / "plan.json").exists()
        options = LaunchOptions(data=self.data, seed=self.seed, workers=WORKERS)
        return launch(plan, folder, options, resume=resume)

    def _files(self) -> list[str]:
        names = ("sweep/recipe.json", "sweep/trials.jsonl", "sweep/study.db", "target/result.json")
        return [str(self.out / name) for name in (*names, "baseline/result.json", "report.html")]


def conclusion(results: Mapping[str, Mapping[str, Any]], recipe: "Recipe") -> str:
    """Say what came out, in numbers, whichever run won."""
    evidence = recipe.evidence or {}
    lines = [
        f"proxy, width {recipe.proxy.width}: validation loss {evidence['loss']:.4f} nats per token (mean over seeds)"
    ]
    for name, result in results.items():
        loss = "diverged" if result["loss"] is None else f"{result['loss']:.4f}"
        lines.append(
            f"{name}, width {result['width']}, rule {result['rule']}: {loss}, {result['seconds']:.0f} s"
        )
    target, baseline = (results[name]["loss"] for name in RUNS)
    if target is not None and baseline is not None:
        verdict = "lower" if target < baseline else "higher"
        lines.append(f"with the plan the loss is {abs(target - baseline):.4f} {verdict} (one seed each)")
    spread = evidence.get("seed_spread")
    if spread is not None:
        lines.append(f"for scale: the proxy's spread over seeds is {spread:.4f}")
    return "\n".join(lines)
