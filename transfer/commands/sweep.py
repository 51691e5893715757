"""``widthwise sweep``: tune η, λ and c on a proxy; ends with a recipe."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.commands.options import Option

if TYPE_CHECKING:
    from rich.console import Console

    from widthwise.search import SweepConfig, SweepResult
    from widthwise.transfer.recipe import Recipe

# Where the options that are not SweepConfig's own fields belong in it, as in a TOML file's sections.
_SECTIONS = {
    "model": ("width", "depth", "head_dim", "context", "vocab_size"),
    "horizon": ("tokens", "batch_tokens"),
}
_OWN = ("data", "trials", "finalists", "seeds", "seed", "sampler", "concurrency", "gpus_per_trial")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Tune learning rate, weight decay and Huber coefficient on a narrow proxy; writes a recipe."""

    config: Option[Path] = None
    """TOML file with SweepConfig's fields; sections [model], [horizon] and [space]. Options go before it."""
    width: Option[int] = None
    """Width of the proxy [64]."""
    depth: Option[int] = None
    """Blocks of the proxy [2]."""
    head_dim: Option[int] = None
    """Size of an attention head; the same in the target [16]."""
    context: Option[int] = None
    """Tokens per sequence [128]."""
    vocab_size: Option[int] = None
    """Token ids [256 for text, 50257 for shards that do not say]."""
    trials: Option[int] = None
    """Trials that the sampler proposes [32]."""
    finalists: Option[int] = None
    """Best settings that are trained again with other seeds [3]."""
    seeds: Option[int] = None
    """Seeds per finalist [3]."""
    tokens: Option[int] = None
    """Tokens per trial [409600]."""
    batch_tokens: Option[int] = None
    """Tokens per optimizer step [2048]."""
    seed: Option[int] = None
    """Seed of everything random [0]."""
    sampler: Option[Literal["tpe", "gp", "cmaes", "qmc", "random"]] = None
    """Who proposes: TPE, Gaussian process, CMA-ES, quasi-random (for the landscape), random [tpe]."""
    concurrency: Option[int] = None
    """Trials at a time [one per core, or per GPU]."""
    gpus_per_trial: Option[float] = None
    """Share of a GPU per trial [1 where there is a GPU]."""
    data: Option[str] = None
    """'python' (this machine's Python source), a text file, a .bin shard or a folder of them [python]."""
    out: Path = Path("widthwise-sweep")
    """Folder for recipe.json, trials.jsonl and study.db."""
    address: Option[str] = None
    """Ray cluster, host:port or auto; a local Ray if not given."""
    resume: bool = False
    """Go on with the sweep in the folder, with the settings it was started with."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Sweep, write the recipe and print what was found."""
        from rich.console import Console

        from widthwise.search import sweep

        config = self._config()
        result = sweep(config, self.out, resume=self.resume, address=self.address)
        if not result.finished:
            kept = f"{len(result.records)} trials are kept"
            print(
                f"widthwise: stopped; {kept}; go on with: widthwise sweep --resume --out {self.out}",
                file=sys.stderr,
            )
            return 130
        recipe = save_recipe(result, self.out)
        if self.json:
            print(json.dumps({"recipe": recipe.model_dump(mode="json", by_alias=True), "out": str(self.out)}))
        else:
            show(result, self.out, Console())
        return 0

    def _config(self) -> "SweepConfig":
        from widthwise.proxies.data import open_tokens
        from widthwise.search import SweepConfig
        from widthwise.search.ledger import stored_config

        fields = stored_config(self.out).model_dump() if self.resume else {}
        fields = merged(fields, read_toml(self.config) if self.config else {})
        fields = merged(fields, self._given())
        model = fields.get("model", {})
        if isinstance(model, Mapping) and "vocab_size" not in model:
            vocabulary = open_tokens(fields.get("data", "python")).vocab_size
            fields = merged(fields, {"model": {"vocab_size": vocabulary}})
        return SweepConfig.parse(fields)

    def _given(self) -> dict[str, Any]:
        """Return the options that were given, nested as SweepConfig has them."""
        given: dict[str, Any] = {
            name: getattr(self, name) for name in _OWN if getattr(self, name) is not None
        }
        for section, names in _SECTIONS.items():
            inner = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            if inner:
                given[section] = inner
        return given


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a ConfigError says in one line what is wrong with it."""
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config: no such file: {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config: {path} cannot be read as TOML: {error}") from None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` put in, section by section."""
    out = dict(base)
    for name, value in over.items():
        inner = out.get(name)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        out[name] = merged(inner or {}, value) if both else value
    return out


def as_options(config: "SweepConfig") -> dict[str, Any]:
    """Return the options that say what `config` says, as far as options can."""
    fields = config.model_dump(mode="json")
    parts = [(fields[section], names) for section, names in _SECTIONS.items()]
    return {name: part[name] for part, names in [*parts, (fields, _OWN)] for name in names}


def as_toml(config: "SweepConfig") -> str:
    """Return a file for ``--config`` with what `as_options` leaves out and a default would not say; often nothing."""
    from widthwise.proxies.config import GPTConfig
    from widthwise.search import SweepConfig

    given, usual = config.model_dump(mode="json"), SweepConfig().model_dump(mode="json")
    # The default of this one follows from these.
    shape = config.model.model_dump(include={"width", "head_dim", "tied"})
    usual["model"]["readout_multiplier"] = GPTConfig(**shape).readout_multiplier
    sections = [name for name, value in given.items() if isinstance(value, dict)]
    written = _assignments({name: given[name] for name in given if name not in (*sections, *_OWN)}, usual)
    for section in sections:
        own = {n: value for n, value in given[section].items() if n not in _SECTIONS.get(section, ())}
        lines = _assignments(own, usual[section])
        written += [f"[{section}]", *lines] if lines else []
    return "".join(f"{line}\n" for line in written)


def _assignments(given: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Return TOML's lines for the values that are not the usual ones; it has no null, which a comment names."""
    changed = {name: value for name, value in given.items() if value != usual[name]}
    # What remains, numbers, names, truth values and lists of these, is written in TOML as in JSON.
    return [
        f"# {name}: none, which only SweepConfig({name}=None) can say"
        if value is None
        else f"{name} = {json.dumps(value)}"
        for name, value in changed.items()
    ]


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
    table = Table(
        *head, title="finalists, the recommended first; confirmed: mean without the seed they were chosen on"
    )
    for finalist in result.finalists:
        tuned = finalist.hyperparameters
        c = f"∞ ({tuned.decay})" if tuned.huber_c is None else f"{tuned.huber_c:.3g}"
        spread = "-" if finalist.spread is None else f"± {finalist.spread:.4f}"
        confirmed = "-" if finalist.confirmed is None else f"{finalist.confirmed:.4f}"
        row = (f"{tuned.lr:.4g}", f"{tuned.weight_decay:.4g}", c, f"{finalist.mean:.4f}", confirmed, spread)
        name = f"{finalist.number} (fitted)" if finalist.fitted else str(finalist.number)
        table.add_row(name, *row, str(len(finalist.losses)))
    console.print(table)
    for note in evidence_notes(
        result.best_by_decay, result.at_edge, result.config.space, result.fit.as_json()
    ):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    recipe = out / "recipe.json"
    console.print(
        f"recipe: {recipe}; next: widthwise scale {recipe} --width 1024", soft_wrap=True, highlight=False
    )
