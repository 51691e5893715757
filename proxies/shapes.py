"""The parameter table: what kind each parameter is and how its fan-in grows with the width.

mup's infinite dimensions decide (Yang et al., arXiv 2203.03466): two make a matrix; one makes an embedding,
a readout, a gain or a bias. The table is read once, from shapes alone, before anything is sharded, compiled
or copied; afterwards only names matter. Nothing is attached to the model.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from math import prod
from shlex import quote

import torch
from mup.infshape import InfShape
from mup.shape import make_base_shapes, zip_infshapes
from torch import nn

from widthwise.proxies.config import KINDS, Kind
from widthwise.proxies.table import ParameterEntry, ParameterTable
from widthwise.proxies.validation import ConfigError, listed, nearest

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_CONVOLUTIONS = nn.modules.conv._ConvNd
# Whose weights are (out, in), so that the last growing dimension is summed over.
_OUT_IN = (nn.Linear, _CONVOLUTIONS, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


def parameter_table(
    build: Callable[[int], nn.Module],
    width: int,
    base_width: int,
    *,
    delta_width: int | None = None,
    overrides: Mapping[str, Kind] | None = None,
    transposed: Iterable[str] = (),
) -> ParameterTable:
    """Read every parameter's kind and width multiplier from three shapes of one model.

    Args:
        build: returns the model of a given width; it is called on the meta device, so it costs no memory.
        width: the width of the model to be trained.
        base_width: the width at which all multipliers are 1.
        delta_width: a second width that shows which dimensions grow; twice the base width unless given.
        overrides: kinds by name or glob pattern, where the shapes cannot tell.
        transposed: names or glob patterns of matrices that are kept (in, out), as some experts' are. Known as such
            without being named: torch's transposed convolutions, and Hugging Face's ``Conv1D``.

    Raises:
        ConfigError: where the models of two widths differ in more than sizes, a parameter's kind cannot be
            told (also where it looks like a second readout, or like a linear layer that embeds), nor which of a
            matrix's dimensions is its fan-in, a pattern matches nothing, or no parameter is a matrix.
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
    reading = _Reading(target, infshapes, overrides or {}, transposed)
    kinds = reading.kinds()
    if "matrix" not in kinds.values():
        raise ConfigError("overrides: must leave a matrix; a model without a matrix kind cannot be scaled")
    entries = {name: reading.entry(name, kind) for name, kind in kinds.items()}
    return ParameterTable(width=width, base_width=base_width, entries=entries)


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


class _Reading:
    """A model's infinite dimensions beside its modules and the user's own word on them."""

    def __init__(
        self,
        model: nn.Module,
        infshapes: Mapping[str, InfShape],
        overrides: Mapping[str, Kind],
        transposed: Iterable[str],
    ) -> None:
        self.infshapes = infshapes
        self.owners = {
            f"{path}.{leaf}".lstrip("."): module
            for path, module in model.named_modules()
            for leaf, _ in module.named_parameters(recurse=False)
        }
        names = list(infshapes)
        for kind in overrides.values():
            _require_kind(kind)
        self.forced: dict[str, Kind] = {
            name: kind
            for pattern, kind in overrides.items()
            for name in _matched("overrides", pattern, names)
        }
        turned = {name for pattern in transposed for name in _matched("transposed", pattern, names)}
        self.transposed = turned | {name for name, owner in self.owners.items() if _is_in_out(owner)}

    def kinds(self) -> dict[str, Kind]:
        found = {name: self.forced.get(name) or self._kind(name) for name in self.infshapes}
        self._require_no_guess(found)
        return found

    def entry(self, name: str, kind: Kind) -> ParameterEntry:
        shape = self.infshapes[name]
        growing = {index for index, size in enumerate(shape) if size.isinf()}
        summed = self._summed(name)
        if kind == "matrix" and len(growing) > 1:
            self._require_fan_in(name, growing)
        # Of the dimensions that grow, the one summed over; mup takes the last.
        deciding = shape[summed if summed in growing else max(growing)] if growing else None
        return ParameterEntry(
            kind=kind,
            width_multiplier=1.0 if deciding is None else deciding.dim / deciding.base_dim,
            normalised=kind == "matrix",
            shape=tuple(shape.shape()),
            fan_in=self._fan_in(name) if kind == "matrix" else None,
        )

    def _kind(self, name: str) -> Kind:
        """Tell the kind from the infinite dimensions and, where one dimension grows, from the owning module.

        An embedding (vocab, d) and a readout (vocab, d) have the same shape: only the module tells them apart.
        """
        shape, owner = self.infshapes[name], self.owners[name]
        if shape.ninf() == 2:
            return "matrix"
        leaf = name.rpartition(".")[2]
        if len(shape) <= 1 or ("bias" in leaf and shape.ninf() < 2):
            return "bias" if "bias" in leaf else "gain"
        if shape.ninf() == 1:
            if isinstance(owner, nn.Embedding):
                return "embedding"
            if leaf == "weight" and _is_layer(owner):
                return "readout" if shape[self._summed(name)].isinf() else "embedding"
        if isinstance(owner, _NORMS):
            return "gain"
        dimensions = "dimension" if shape.ninf() == 1 else "dimensions"
        raise ConfigError(
            f"build: cannot tell the kind of parameter {name!r} of shape {tuple(shape.shape())} in "
            f"{type(owner).__name__} ({shape.ninf()} growing {dimensions}); name it: "
            f"{_naming(self._alike(name), 'embedding')} ('matrix' for η/w, where it sums over the width)"
        )

    def _summed(self, name: str) -> int:
        """Return the index of the dimension that each output sums over, if the parameter is a matrix."""
        if isinstance(self.owners[name], _CONVOLUTIONS):
            return 0 if name in self.transposed else 1  # the kernel's come after
        # Experts' come before.
        return max(len(self.infshapes[name]) - (2 if name in self.transposed else 1), 0)

    def _fan_in(self, name: str) -> int:
        shape = self.infshapes[name].shape()
        kernel = shape[2:] if isinstance(self.owners[name], _CONVOLUTIONS) else ()
        return int(shape[self._summed(name)]) * prod(kernel)

    def _require_fan_in(self, name: str, growing: set[int]) -> None:
        """Refuse a matrix of no known layer whose dimensions grow differently: its fan-in would be a guess."""
        shape, owner = self.infshapes[name], self.owners[name]
        if name in self.forced or name in self.transposed or isinstance(owner, _OUT_IN):
            return
        ratios = [shape[index].dim / shape[index].base_dim for index in sorted(growing)]
        if len(set(ratios)) > 1:
            grown = " and ".join(f"×{ratio:.4g}" for ratio in ratios)
            raise ConfigError(
                f"build: cannot tell the fan-in of {name!r} of shape {tuple(shape.shape())} in "
                f"{type(owner).__name__}, which grows {grown}; name it: {_naming(name, 'matrix')} where the "
                f"last dimension is summed over, transposed=[{name!r}] (--transposed {name}) where the last but one is"
            )

    def _require_no_guess(self, kinds: Mapping[str, Kind]) -> None:
        """Refuse kinds that the shapes suggest but that are more likely something else, with η not scaled."""

        def alike(names: list[str]) -> str:
            return listed(list(dict.fromkeys(map(self._alike, names))))

        readouts = [name for name, kind in kinds.items() if kind == "readout"]
        guesses = [name for name in readouts if name not in self.forced]
        if guesses and len(readouts) > 1:
            raise ConfigError(
                f"build: cannot tell readouts from other layers from growing to fixed size, got {alike(readouts)}; "
                "let what is fixed, such as kv heads, grow with the width, or name each: 'matrix' divides η by the "
                "ratio of widths, for layers within the model, 'readout' keeps η, for its outputs; as in "
                f"{_naming(self._alike(guesses[0]), 'matrix')}"
            )
        embeds = [
            name
            for name, kind in kinds.items()
            if kind == "embedding" and name not in self.forced and isinstance(self.owners[name], nn.Linear)
        ]
        if embeds:
            raise ConfigError(
                f"build: must not have linear layers from fixed to growing size, got {alike(embeds)}; scale "
                f"bottlenecks with the width, or name input layers: {_naming(self._alike(embeds[0]), 'embedding')}"
            )

    def _alike(self, name: str) -> str:
        """Return a pattern for a parameter and its like in other layers; its name where that would match others too."""
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        matched = [other for other in self.infshapes if fnmatchcase(other, pattern)]
        looks = {
            (type(self.owners[other]), *(size.isinf() for size in self.infshapes[other])) for other in matched
        }
        return pattern if len(matched) > 1 and len(looks) == 1 else name


def _is_layer(owner: nn.Module) -> bool:
    return isinstance(owner, nn.Linear | _CONVOLUTIONS) or _is_in_out(owner)


def _is_in_out(owner: nn.Module) -> bool:
    """Return whether a module keeps its weight (in, out), as no layer of torch's but these does."""
    # Hugging Face's, known by its looks: nothing here imports it.
    conv1d = type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")
    return conv1d or isinstance(owner, nn.modules.conv._ConvTransposeNd)


def _naming(name: str, kind: Kind) -> str:
    """Return how a kind is said in Python and, in brackets, to a command."""
    return f"overrides={{{name!r}: {kind!r}}} (--override {quote(f'{name}={kind}')})"


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigError(f"overrides: kind must be one of {known}, got {kind!r}{nearest(kind, list(KINDS))}")


def _matched(argument: str, pattern: str, names: list[str]) -> list[str]:
    hits = [name for name in names if fnmatchcase(name, pattern)]
    if not hits:
        raise ConfigError(f"{argument}: pattern {pattern!r} matches no parameter{nearest(pattern, names)}")
    return hits
