"""``widthwise sweep``: tune η, λ and c on a proxy; ends with a recipe."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from widthwise.search.names import SWEEP_STUDY
from widthwise.transfer.commands.listing import words
from widthwise.transfer.commands.options import Flag, Option, storage_of
from widthwise.transfer.commands.stopping import resumable, sweep_resumption
from widthwise.transfer.sweep_files import OWN, SECTIONS, merged, read_toml

if TYPE_CHECKING:
    from rich.console import Console

    from widthwise.search import SweepConfig, SweepResult
    from widthwise.search.storage import Storage
    from widthwise.transfer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Tune learning rate, weight decay and Huber coefficient on a narrow proxy; writes a recipe."""

    config: Option[Path] = None
    """TOML file with SweepConfig's fields, also in sections [model], [horizon], [space]; options override it. (default:
    none)"""
    width: Option[int] = None
    """Width of the proxy. (default: 64)"""
    depth: Option[int] = None
    """Blocks of the proxy. (default: 2)"""
    head_dim: Option[int] = None
    """Size of an attention head; the same in the target. (default: 16)"""
    context: Option[int] = None
    """Tokens per sequence. (default: 128)"""
    vocab_size: Option[int] = None
    """Token ids. (default: 256 for text, 50257 for shards that do not say)"""
    trials: Option[int] = None
    """Trials that the sampler proposes. (default: 32)"""
    finalists: Option[int] = None
    """Best settings that are trained again with other seeds. (default: 3)"""
    seeds: Option[int] = None
    """Seeds per finalist. (default: 3)"""
    tokens: Option[int] = None
    """Tokens per trial. (default: 409600)"""
    batch_tokens: Option[int] = None
    """Tokens per optimizer step. (default: 2048)"""
    seed: Option[int] = None
    """Seed of everything random. (default: 0)"""
    sampler: Option[Literal["tpe", "gp", "cmaes", "qmc", "grid", "random"]] = None
    """Who proposes: TPE, Gaussian process, CMA-ES, quasi-random, grid (both for landscapes), random. (default: tpe)"""
    patience: Option[int] = None
    """End the proposals when so many in a row were not better than the best. (default: never)"""
    min_tokens: Option[int] = None
    """Search the horizon too, by halves, down to so few tokens: the least loss against tokens. (default: no)"""
    min_horizon: Option[float] = None
    """Least horizon Σηλ of a trial; proposals below it are not run. (default: any)"""
    warm_start: Option[Path] = None
    """Recipe, or folder of a sweep, whose best settings are tried first. (default: none)"""
    concurrency: Option[int] = None
    """Trials at a time. (default: one per core, or per GPU)"""
    gpus_per_trial: Option[float | Literal["auto"]] = None
    """Share of a GPU per trial, or auto, by the memory that one trial takes. (default: 1 where there is a GPU)"""
    data: Option[str] = None
    """'python' (this machine's Python source), a text file, a .bin shard or a folder of them. (default: python)"""
    out: Path = Path("widthwise-sweep")
    """Folder for recipe.json, trials.jsonl and study.db."""
    log: Option[str] = None
    """Experiment trackers, separated by commas: tensorboard, wandb, mlflow; or none. (default: tensorboard)"""
    storage: Option[str] = None
    """Database for the study: postgresql+psycopg://USER@HOST/DATABASE. (default: an SQLite file in the folder)"""
    study_name: Option[str] = None
    """The study's name in the database. (default: the folder's and eight random digits)"""
    address: Option[str] = None
    """Ray cluster, host:port or auto. (default: a local Ray)"""
    resume: Flag = False
    """Go on with the sweep in the folder, with the settings it was started with."""
    quiet: Flag = False
    """Print nothing but the recipe's path and errors."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Sweep, write the recipe and print what was found."""
        with resumable([self.out / name for name in SWEEP_STUDY], self._kept):
            result = self._swept()
        recipe = save_recipe(result, self.out)
        if self.json:
            from widthwise.transfer.standing import standing_at_end

            stands = standing_at_end(self.out, result.standing)
            document = {"recipe": recipe.model_dump(mode="json", by_alias=True), "out": str(self.out)}
            print(json.dumps(document | stands))
        elif self.quiet:
            print(self.out / "recipe.json")
        else:
            from rich.console import Console

            show(result, self.out, Console())
        return 0

    def _swept(self) -> "SweepResult":
        # Mistakes in the options are told before torch is imported, which takes seconds.
        storage = storage_of(self.storage, self.study_name)
        config = self._config(storage)
        config.open_data()
        from widthwise.search import sweep

        result = sweep(
            config,
            self.out,
            resume=self.resume,
            storage=storage,
            address=self.address,
            show_progress=not self.quiet,
        )
        if not result.finished:
            raise KeyboardInterrupt
        return result

    def _kept(self) -> str:
        """Return what Ctrl-C left, and how to go on."""
        records = self.out / "trials.jsonl"
        kept = len(records.read_text(encoding="utf-8").splitlines()) if records.exists() else 0
        said = (
            f"{kept} {'trial is' if kept == 1 else 'trials are'} kept" if kept else "no trial has ended yet"
        )
        return f"{said}; go on with: {sweep_resumption(self.out)}"

    def _config(self, storage: "Storage | None") -> "SweepConfig":
        from widthwise.proxies.data import open_tokens
        from widthwise.search import SweepConfig

        fields = self._stored(storage) if self.resume else {}
        fields = merged(fields, read_toml(self.config) if self.config else {})
        fields = merged(fields, self._given())
        if self.log is not None:
            fields["log"] = words(self.log)
        if self.warm_start is not None:
            from widthwise.transfer.warm_start import known_points

            fields["warm_start"] = [point.model_dump() for point in known_points(self.warm_start)]
        config = SweepConfig.parse(fields)
        if not self.resume:
            self._require_content(storage)
        model = fields.get("model", {})
        if isinstance(model, Mapping) and "vocab_size" not in model:
            vocabulary = open_tokens(config.data).vocab_size
            return SweepConfig.parse(merged(fields, {"model": {"vocab_size": vocabulary}}))
        return config

    def _stored(self, storage: "Storage | None") -> dict[str, Any]:
        """Return the configuration of the sweep in the folder."""
        from widthwise.search.stored import stored_config

        self._require_content(storage)
        return stored_config(self.out, storage).model_dump()

    def _require_content(self, storage: "Storage | None") -> None:
        # Its imports take longer than a look at the options.
        from widthwise.search.folders import require_content
        from widthwise.search.stored import SWEEP

        require_content(self.out, SWEEP, resume=self.resume, storage=storage)

    def _given(self) -> dict[str, Any]:
        """Return the options that were given, nested as SweepConfig has them."""
        given: dict[str, Any] = {name: getattr(self, name) for name in OWN if getattr(self, name) is not None}
        for section, names in SECTIONS.items():
            inner = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            if inner:
                given[section] = inner
        return given


def save_recipe(result: "SweepResult", out: Path) -> "Recipe":
    """Write ``recipe.json`` into the sweep's folder."""
    from widthwise.transfer.recipe import Recipe

    recipe = Recipe.from_sweep(result)
    recipe.save(out / "recipe.json")
    return recipe


def show(result: "SweepResult", out: Path, console: "Console") -> None:
    """Print the finalists, what the evidence says besides, and where the recipe is."""
    from rich.table import Table

    from widthwise.transfer.recipe import evidence_notes

    head = ("trial", "η", "λ", "c", "mean", "confirmed", "spread", "seeds")
    table = Table(*head, title="finalists, the recommended first")
    for finalist in result.finalists:
        tuned = finalist.hyperparameters
        c = f"∞ ({tuned.decay})" if tuned.huber_c is None else f"{tuned.huber_c:.3g}"
        spread = "-" if finalist.spread is None else f"± {finalist.spread:.4f}"
        confirmed = "-" if finalist.confirmed is None else f"{finalist.confirmed:.4f}"
        row = (f"{tuned.lr:.4g}", f"{tuned.weight_decay:.4g}", c, f"{finalist.mean:.4f}", confirmed, spread)
        name = f"{finalist.number} (fitted)" if finalist.fitted else str(finalist.number)
        table.add_row(name, *row, str(len(finalist.losses)))
    console.print(table)
    console.print(
        "confirmed: mean loss without the seed that they were chosen on", soft_wrap=True, highlight=False
    )
    for note in evidence_notes(
        result.best_by_decay, result.at_edge, result.config.space, result.fit.as_json()
    ):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    if result.front is not None:
        from widthwise.transfer.reporting.front_panels import HEAD, front_rows

        front = Table(*HEAD, title="least loss against tokens, one seed each")
        for texts in front_rows(result.front):
            front.add_row(*texts)
        console.print(front)
    recipe = out / "recipe.json"
    console.print(
        f"recipe: {recipe}; next: widthwise scale {shlex.quote(str(recipe))} --width 1024",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
