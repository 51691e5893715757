"""A sweep's configuration as the command line's options, and as a TOML file with what these leave out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widthwise.proxies.validation import ConfigError

if TYPE_CHECKING:
    from widthwise.search import SweepConfig

# Where the options that are not SweepConfig's own fields belong in it, as in a TOML file's sections.
SECTIONS = {
    "model": ("width", "depth", "head_dim", "context", "vocab_size"),
    "horizon": ("tokens", "batch_tokens"),
}
OWN = (
    "data",
    "trials",
    "finalists",
    "seeds",
    "seed",
    "sampler",
    "patience",
    "min_tokens",
    "min_horizon",
    "concurrency",
    "gpus_per_trial",
)


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
    parts = [(fields[section], names) for section, names in SECTIONS.items()]
    return {name: part[name] for part, names in [*parts, (fields, OWN)] for name in names}


def as_toml(config: "SweepConfig") -> str:
    """Return a file for ``--config`` with what `as_options` leaves out and a default would not say; often nothing."""
    from widthwise.proxies.config import GPTConfig
    from widthwise.search import SweepConfig

    given, usual = config.model_dump(mode="json"), SweepConfig().model_dump(mode="json")
    # The default of this one follows from these.
    shape = config.model.model_dump(include={"width", "head_dim", "tied"})
    usual["model"]["readout_multiplier"] = GPTConfig(**shape).readout_multiplier
    # Settings to start with are nowhere else: an array of tables, after all that stands in none.
    points = given.pop("warm_start")
    sections = [name for name, value in given.items() if isinstance(value, dict)]
    written = _assignments({name: given[name] for name in given if name not in (*sections, *OWN)}, usual)
    for section in sections:
        own = {n: value for n, value in given[section].items() if n not in SECTIONS.get(section, ())}
        lines = _assignments(own, usual[section])
        written += [f"[{section}]", *lines] if lines else []
    for point in points:
        written += ["[[warm_start]]", *_assignments(point, dict.fromkeys(point))]
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
