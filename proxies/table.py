"""The parameter table as data: a row per parameter, kept as a file, and what is done with it by name.

Names alone matter here, so that all of it works on models that are sharded, compiled or copied.
`widthwise.proxies.shapes` reads a table off a model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from widthwise.proxies.config import GPTConfig, Hyperparameters, Kind, KindSettings
from widthwise.proxies.files import read_json, require_schema, write_json
from widthwise.proxies.validation import ConfigError, Record, listed

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

T = TypeVar("T")

SCHEMA: Literal["widthwise/table/1"] = "widthwise/table/1"
_WRAPPERS = {"_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


class ParameterEntry(Record):
    """One parameter's row.

    Attributes:
        kind: matrix, embedding, readout, gain or bias.
        width_multiplier: fan-in at the table's width over fan-in at the base width (for a parameter with
            one infinite dimension: that dimension's ratio); 1 where no dimension grows.
        normalised: whether a normalisation follows, so that AdamC's correction applies (arXiv 2506.02285). It is not
            looked for, but taken for granted of every matrix and nothing else.
        shape: at the table's width, which a model must have too.
        fan_in: number of terms that each output of a matrix sums; None for the other kinds.
    """

    kind: Kind
    width_multiplier: float = Field(gt=0)
    normalised: bool
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    fan_in: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _summed(self) -> Self:
        if (self.kind == "matrix") != (self.fan_in is not None):
            rule = (
                "is required of a matrix" if self.kind == "matrix" else "must be null of any kind but matrix"
            )
            raise ValueError(f"fan_in: {rule}")
        return self


class _File(Record):
    """What a table's file holds."""

    schema_: Literal["widthwise/table/1"] = Field(SCHEMA, alias="schema")
    width: int = Field(ge=1)
    base_width: int = Field(ge=1)
    entries: dict[str, ParameterEntry]


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

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a table's file.

        Raises:
            ConfigError: it is missing, unreadable, not JSON, of another schema, or holds an unknown field, a
                wrong type or an impossible value; the message names the file and the field.
        """
        document = read_json(path, "a parameter table")
        require_schema(document, SCHEMA, path)
        file = _File.parse(document, where=str(path))
        return cls(width=file.width, base_width=file.base_width, entries=file.entries)

    def save(self, path: str | Path) -> None:
        """Write the table, atomically.

        Raises:
            OSError: the folder is missing or cannot be written to.
        """
        write_json(path, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return the document that `save` writes."""
        rows = {name: entry.model_dump() for name, entry in self.items()}
        return {"schema": SCHEMA, "width": self.width, "base_width": self.base_width, "entries": rows}

    def table(self) -> "Table":
        """Return it as a table for a terminal, to be printed with `rich.print`."""
        from rich.table import Column, Table

        title = f"width {self.base_width} → {self.width}"
        caption = (
            "AdamC: where the recipe says corrected, λ falls with the schedule, too; it is for weights that a "
            "normalisation follows, and every matrix is taken for one"
        )
        # A name that is too long goes on in a second line: cut short, it would be another's too.
        names = Column("parameter", overflow="fold")
        table = Table(names, "kind", "width", "AdamC", title=title, caption=caption, caption_justify="left")
        for name, entry in self.items():
            corrected = "yes" if entry.normalised else "no"
            table.add_row(name, entry.kind, f"×{entry.width_multiplier:.4g}", corrected)
        return table


def parameter_groups(
    model: "nn.Module",
    table: ParameterTable,
    settings_for: Callable[[ParameterEntry], KindSettings],
    hyperparameters: Hyperparameters,
) -> list[dict[str, Any]]:
    """Sort a model's parameters into optimizer groups, one per kind and width multiplier, by name.

    Works on wrapped models (``torch.compile``, DDP, ``fully_shard``): wrappers' prefixes are ignored.

    Args:
        model: the model to be trained; parameters that need no gradient are left out.
        table: its parameter table.
        settings_for: the peak learning rate, weight decay and ε of a row, from its kind and width multiplier.
        hyperparameters: what does not depend on the row; ``corrected`` holds for normalised parameters.

    Returns:
        Groups for `AdamHC` with all its options but ``clip_norm``, which is not a group's; each has a ``name``
        and a ``kind``.

    Raises:
        ConfigError: where the model and the table do not have the same names and shapes, or wrappers' prefixes
            are all that tells two names apart.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry, parameter in _trained(model, table):
        key = (entry.kind, entry.width_multiplier, entry.normalised)
        if key not in groups:
            groups[key] = _group(entry, settings_for(entry), hyperparameters)
        groups[key]["params"].append(parameter)
    return list(groups.values())


def initialise(model: "nn.Module", table: ParameterTable, config: GPTConfig) -> None:
    """Draw a model's weights anew as our GPT draws its own, from torch's global generator.

    Embeddings, matrices and readouts are normal with standard deviations ``embedding_std``,
    ``matrix_std`` / √fan-in and ``readout_std``; biases are zero. Gains stay as they are, and what needs no
    gradient does too.

    Args:
        model: the model to be trained, on its device.
        table: its parameter table.
        config: where the standard deviations stand; a plan's ``model`` has them scaled.

    Raises:
        ConfigError: the model is on the meta device, or its names or shapes are not the table's, as for
            `parameter_groups`.
    """
    import torch

    stds = {"embedding": config.embedding_std, "readout": config.readout_std, "matrix": config.matrix_std}
    with torch.no_grad():
        for entry, parameter in _trained(model, table):
            if parameter.is_meta:
                raise ConfigError("model: must have its weights, but they are on the meta device")
            if entry.kind == "bias":
                parameter.zero_()
            elif entry.kind != "gain":
                parameter.normal_(0.0, stds[entry.kind] / (entry.fan_in or 1) ** 0.5)


def _trained(model: "nn.Module", table: ParameterTable) -> "Iterator[tuple[ParameterEntry, nn.Parameter]]":
    """Yield the parameters that need a gradient, with their rows."""
    parameters, rows = dict(model.named_parameters()), dict(table)
    if parameters.keys() != rows.keys():
        parameters, rows = plain_names(parameters), plain_names(rows)
    if parameters.keys() != rows.keys():
        sides = (("model", parameters.keys() - rows.keys()), ("table", rows.keys() - parameters.keys()))
        only = ", ".join(f"only the {side} has {listed(sorted(names))}" for side, names in sides if names)
        raise ConfigError(f"table: its names must be the model's; {only}")
    _require_shapes(parameters, rows, table.width)
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            yield rows[name], parameter


def _require_shapes(
    parameters: "Mapping[str, nn.Parameter]", rows: Mapping[str, ParameterEntry], width: int
) -> None:
    """Refuse a model of another width than the table's: it would train with that width's η and λ, silently."""
    pairs = [(name, rows[name].shape, tuple(one.shape)) for name, one in parameters.items()]
    # FSDP1 and ZeRO-3 flatten what they shard, biases too: nothing is left to compare.
    if any(len(shape) > 1 and len(found) == 1 for _, shape, found in pairs):
        return
    for name, shape, found in pairs:
        if shape != found:
            rule = f"must have the shapes of the table, which is of width {width}"
            raise ConfigError(f"model: {rule}; {name!r} is {shape} there, got {found}")


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
