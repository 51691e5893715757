"""The parameter table: what kind each parameter is and how its fan-in grows with the width.

mup's infinite dimensions decide (Yang et al., arXiv 2203.03466): two make a matrix; one makes an embedding,
a readout, a gain or a bias. The table is read once, from shapes alone, before anything is sharded, compiled
or copied; afterwards only names matter. Nothing is attached to the model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from mup.infshape import InfShape
from mup.shape import make_base_shapes, zip_infshapes
from torch import nn

from widthwise.proxies.config import KINDS, Hyperparameters, Kind, KindSettings
from widthwise.proxies.validation import ConfigError, nearest

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_WRAPPERS = {"_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_LISTED = 6  # names in a message; a deep model has hundreds alike


@dataclass(frozen=True, kw_only=True)
class ParameterEntry:
    """One parameter's row.

    Attributes:
        kind: matrix, embedding, readout, gain or bias.
        width_multiplier: fan-in at the table's width over fan-in at the base width (for a parameter with
            one infinite dimension: that dimension's ratio); 1 where no dimension grows.
        normalised: whether AdamC's correction applies (arXiv 2506.02285: every linear layer but the readout).
    """

    kind: Kind
    width_multiplier: float
    normalised: bool


@dataclass(frozen=True, kw_only=True)
class ParameterTable(Mapping[str, ParameterEntry]):
    """``name → ParameterEntry`` for every parameter of a model at `width`, relative to `base_width`."""

    width: int
    base_width: int
    entries: Mapping[str, ParameterEntry]

    def __getitem__(self, name: str) -> ParameterEntry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def table(self) -> "Table":
        """Return it as a table for a terminal, to be printed with `rich.print`."""
        from rich.table import Table

        title = f"width {self.base_width} → {self.width}"
        table = Table("parameter", "kind", "width", "normalised", title=title)
        for name, entry in self.items():
            normalised = "yes" if entry.normalised else "no"
            table.add_row(name, entry.kind, f"×{entry.width_multiplier:.4g}", normalised)
        return table


def parameter_table(
    build: Callable[[int], nn.Module],
    width: int,
    base_width: int,
    *,
    delta_width: int | None = None,
    overrides: Mapping[str, Kind] | None = None,
) -> ParameterTable:
    """Read every parameter's kind and width multiplier from three shapes of one model.

    Args:
        build: returns the model of a given width; it is called on the meta device, so it costs no memory.
        width: the width of the model to be trained.
        base_width: the width at which all multipliers are 1.
        delta_width: a second width that shows which dimensions grow; twice the base width unless given.
        overrides: kinds by name or glob pattern, where the shapes cannot tell.

    Raises:
        ConfigError: where the models of two widths differ in more than sizes, a parameter's kind cannot be
            told (also where it looks like a second readout, or like a linear layer that embeds), a pattern
            matches nothing, or no parameter is a matrix.
    """
    if delta_width is None:
        delta_width = 2 * base_width
    if delta_width == base_width:
        rule = f"must differ from base_width = {base_width}, or no dimension is seen to grow"
        raise ConfigError(f"delta_width: {rule}")
    with torch.device("meta"):
        target, base, delta = build(width), build(base_width), build(delta_width)
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (base, delta, target)]
    _require_same_names(shapes, (base_width, delta_width, width))
    infshapes = zip_infshapes(make_base_shapes(shapes[0], shapes[1]), shapes[2])
    if all(shape.ninf() < 2 for shape in infshapes.values()):
        raise ConfigError(
            f"build: no parameter has two dimensions that grow from width {base_width} to {delta_width}; "
            "a model without a matrix kind cannot be scaled (does build use its argument?)"
        )
    kinds = _kinds(target, infshapes, overrides or {})
    if "matrix" not in kinds.values():
        raise ConfigError("overrides: must leave a matrix; a model without a matrix kind cannot be scaled")
    entries = {name: _entry(kind, infshapes[name]) for name, kind in kinds.items()}
    return ParameterTable(width=width, base_width=base_width, entries=entries)


def parameter_groups(
    model: nn.Module,
    table: ParameterTable,
    settings_for: Callable[[ParameterEntry], KindSettings],
    hyperparameters: Hyperparameters,
) -> list[dict[str, Any]]:
    """Sort a model's parameters into optimizer groups, one per kind and width multiplier, by name.

    Works on wrapped models (``torch.compile``, DDP, ``fully_shard``): wrappers' prefixes are ignored.

    Args:
        model: the model to be trained; parameters that need no gradient are left out.
        table: its parameter table.
        settings_for: the peak learning rate, weight decay and ε of a row.
        hyperparameters: what does not depend on the row; ``corrected`` holds for normalised parameters.

    Returns:
        Groups for `AdamHC` with all its options but ``clip_norm``, which is not a group's; each has a ``name``
        and a ``kind``.

    Raises:
        ConfigError: where the model and the table do not have the same names, or wrappers' prefixes are all
            that tells two names apart.
    """
    parameters, rows = dict(model.named_parameters()), dict(table)
    if parameters.keys() != rows.keys():
        parameters, rows = plain_names(parameters), plain_names(rows)
    if parameters.keys() != rows.keys():
        extra = sorted(parameters.keys() - rows.keys())
        missing = sorted(rows.keys() - parameters.keys())
        raise ConfigError(
            f"table: its names must be the model's; only the model has {extra}, only the table has {missing}"
        )
    groups: dict[ParameterEntry, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        entry = rows[name]
        if entry not in groups:
            groups[entry] = _group(entry, settings_for(entry), hyperparameters)
        groups[entry]["params"].append(parameter)
    return list(groups.values())


def _group(entry: ParameterEntry, settings: KindSettings, tuned: Hyperparameters) -> dict[str, Any]:
    return {
        "name": f"{entry.kind} x{entry.width_multiplier:g}",
        "kind": entry.kind,
        "params": [],
        "lr": settings.lr,
        "max_lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "eps": settings.eps,
        "betas": tuned.betas,
        "decay": tuned.decay,
        "huber_c": tuned.huber_c,
        "threshold": tuned.threshold,
        "corrected": tuned.corrected and entry.normalised,
    }


def plain_names(named: Mapping[str, T]) -> dict[str, T]:
    """Return the values by their names without the wrappers' parts."""
    plain: dict[str, T] = {}
    for name, value in named.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain:
            words = ", ".join(sorted(_WRAPPERS))
            raise ConfigError(f"table: names must differ without the parts {words}, got {short!r} twice")
        plain[short] = value
    return plain


def _require_same_names(shapes: list[dict[str, torch.Size]], widths: tuple[int, int, int]) -> None:
    for names, width in zip(shapes[1:], widths[1:], strict=True):
        if names.keys() != shapes[0].keys():
            odd = sorted(names.keys() ^ shapes[0].keys())[0]
            rule = "must give the same parameters at every width"
            raise ConfigError(f"build: {rule}, but {odd!r} is not in both width {widths[0]} and {width}")
        for name, shape in names.items():
            if len(shape) != len(shapes[0][name]):
                rule = f"{name!r} must have the same number of dimensions at every width"
                raise ConfigError(f"build: {rule}, got {tuple(shapes[0][name])} and {tuple(shape)}")


def _kinds(
    model: nn.Module, infshapes: Mapping[str, InfShape], overrides: Mapping[str, Kind]
) -> dict[str, Kind]:
    forced = _matched(overrides, list(infshapes))
    owners = {
        f"{path}.{leaf}".lstrip("."): module
        for path, module in model.named_modules()
        for leaf, _ in module.named_parameters(recurse=False)
    }
    found = {name: forced.get(name) or _kind(name, infshapes[name], owners[name]) for name in infshapes}
    _require_no_guess(found, forced, owners)
    return found


def _require_no_guess(
    kinds: Mapping[str, Kind], forced: Mapping[str, Kind], owners: Mapping[str, nn.Module]
) -> None:
    """Refuse kinds that the shapes suggest but that are more likely something else, with η not scaled."""
    readouts = [name for name, kind in kinds.items() if kind == "readout"]
    guesses = [name for name in readouts if name not in forced]
    if guesses and len(readouts) > 1:
        raise ConfigError(
            f"build: must have one readout, the layer from growing to fixed size, got {_listed(readouts)}; scale "
            f"kv heads with the width, or name them: overrides={{{guesses[0]!r}: 'readout'}} ('matrix' for η/w)"
        )
    embeds = [
        name
        for name, kind in kinds.items()
        if kind == "embedding" and name not in forced and isinstance(owners[name], nn.Linear)
    ]
    if embeds:
        raise ConfigError(
            f"build: must not have linear layers from fixed to growing size, got {_listed(embeds)}; scale "
            f"bottlenecks with the width, or name input layers: overrides={{{embeds[0]!r}: 'embedding'}}"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more


def _matched(overrides: Mapping[str, Kind], names: list[str]) -> dict[str, Kind]:
    forced: dict[str, Kind] = {}
    for pattern, kind in overrides.items():
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise ConfigError(
                f"overrides: kind must be one of {known}, got {kind!r}{nearest(kind, list(KINDS))}"
            )
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise ConfigError(f"overrides: pattern {pattern!r} matches no parameter{nearest(pattern, names)}")
        forced.update(dict.fromkeys(hits, kind))
    return forced


def _kind(name: str, shape: InfShape, owner: nn.Module) -> Kind:
    """Tell the kind from the infinite dimensions and, where one dimension grows, from the owning module.

    An embedding (vocab, d) and a readout (vocab, d) have the same shape: only the module tells them apart.
    """
    if shape.ninf() == 2:
        return "matrix"
    leaf = name.rpartition(".")[2]
    if len(shape) <= 1:
        return "bias" if "bias" in leaf else "gain"
    if shape.ninf() == 1:
        if isinstance(owner, nn.Embedding):
            return "embedding"
        if leaf == "weight" and isinstance(owner, _LAYERS):
            return "readout" if shape[1].isinf() else "embedding"
    if isinstance(owner, _NORMS):
        return "gain"
    raise ConfigError(
        f"build: cannot tell the kind of parameter {name!r} of shape {tuple(shape.shape())} in "
        f"{type(owner).__name__} ({shape.ninf()} growing dimensions); name it: overrides={{{name!r}: 'embedding'}}"
    )


def _entry(kind: Kind, shape: InfShape) -> ParameterEntry:
    # mup takes the last growing dimension, which is a matrix's fan-in.
    return ParameterEntry(kind=kind, width_multiplier=float(shape.width_mult()), normalised=kind == "matrix")
