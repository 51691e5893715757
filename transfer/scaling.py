"""Scaling rules: from ratios of width, depth, batch and tokens to multipliers per parameter kind.

A rule is one pure function ``Ratios -> Scaled``; ``@rule`` gives it a name::

    @rule("my-rule", source="my notes")
    def my_rule(ratios: Ratios) -> Scaled:
        "λ is left alone, the matrices' learning rate falls as 1/√w."
        return scaled(matrix=Multipliers(lr=ratios.width**-0.5, init_std=ratios.width**-0.5))

Every rule must be the identity at ``Ratios()``, where the proxy was tuned. Proxies train with λ on
their matrices only and λ = 0 on embedding, readout, gains and biases; so the weight decay of these
vector-like kinds is 0 in every rule here, also in those whose source decays them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from widthwise.proxies.config import KINDS, Kind
from widthwise.proxies.validation import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Target divided by proxy, each a number > 0: width w, depth ℓ, batch size b and tokens t.

    Raises:
        ConfigError: a ratio is not a finite number above 0.
    """

    width: float = 1.0
    depth: float = 1.0
    batch: float = 1.0
    tokens: float = 1.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"ratios.{one.name}: must be finite and > 0, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Target divided by proxy, for one parameter kind.

    Attributes:
        lr: of the learning rate η.
        weight_decay: of λ in torch's AdamW convention, θ ← θ - η(u + λθ).
        eps: of Adam's ε.
        init_std: of the initial standard deviation.
        forward: of the factor on what the parameter computes.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    init_std: float = 1.0
    forward: float = 1.0


VECTOR = Multipliers(weight_decay=0.0)
"""A vector-like kind: η, ε and the initialisation as tuned, and no decay, as in every proxy."""


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What a rule yields.

    Attributes:
        kinds: multipliers of each of the five parameter kinds.
        residual_multiplier: factor on every branch before it joins the residual stream, target / proxy.
        why: a short reason per kind.

    Raises:
        ConfigError: a kind is missing, or a multiplier is negative or not finite.
    """

    kinds: Mapping[Kind, Multipliers]
    residual_multiplier: float = 1.0
    why: Mapping[Kind, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [kind for kind in KINDS if kind not in self.kinds]
        if missing:
            raise ConfigError(f"kinds: must cover {', '.join(KINDS)}, but {', '.join(missing)} is missing")
        for kind, multipliers in self.kinds.items():
            for one in fields(multipliers):
                _require_factor(f"{kind}.{one.name}", getattr(multipliers, one.name))
        _require_factor("residual_multiplier", self.residual_multiplier)


def _require_factor(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name}: must be finite and >= 0, got {value!r}")


def scaled(
    *,
    matrix: Multipliers,
    embedding: Multipliers = VECTOR,
    readout: Multipliers = VECTOR,
    gain: Multipliers = VECTOR,
    bias: Multipliers = VECTOR,
    residual_multiplier: float = 1.0,
    why: Mapping[Kind, str] | None = None,
) -> Scaled:
    """Return a rule's outcome: the matrices' multipliers, and other kinds' where they are not `VECTOR`."""
    kinds: dict[Kind, Multipliers] = {
        "matrix": matrix,
        "embedding": embedding,
        "readout": readout,
        "gain": gain,
        "bias": bias,
    }
    return Scaled(kinds=kinds, residual_multiplier=residual_multiplier, why=why or {})


@dataclass(frozen=True)
class Rule:
    """A named scaling rule; call it with `Ratios`.

    Attributes:
        name: what ``--rule`` and ``Recipe.at(rule=…)`` take.
        source: the paper or the code that it comes from.
        summary: what it does, in a sentence.
        function: the pure function behind it.
    """

    name: str
    source: str
    summary: str
    function: Callable[[Ratios], Scaled]

    def __call__(self, ratios: Ratios) -> Scaled:
        """Return the multipliers at `ratios`.

        Raises:
            ConfigError: naming the rule, where its multipliers are impossible.
        """
        try:
            return self.function(ratios)
        except ConfigError as error:
            raise ConfigError(f"rule {self.name!r}: {error}") from None


_registered: dict[str, Rule] = {}

rules: Mapping[str, Rule] = MappingProxyType(_registered)
"""Every registered rule by name, read-only."""


def rule(name: str, *, source: str) -> Callable[[Callable[[Ratios], Scaled]], Callable[[Ratios], Scaled]]:
    """Register the decorated function as the rule `name`; its docstring is the summary.

    Args:
        name: a name that is not taken.
        source: where the rule comes from, for example an arXiv id.

    Raises:
        ConfigError: the name is taken by another function.
    """

    def register(function: Callable[[Ratios], Scaled]) -> Callable[[Ratios], Scaled]:
        known = _registered.get(name)
        # The same function again is a notebook's cell or a reload, not a clash.
        if known is not None and _identity(known.function) != _identity(function):
            raise ConfigError(f"rule: {name!r} is already registered")
        _registered[name] = Rule(name, source, (function.__doc__ or "").strip().partition("\n")[0], function)
        return function

    return register


def _identity(function: Callable[[Ratios], Scaled]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def find_rule(name: str) -> Rule:
    """Return the rule `name`.

    Raises:
        ConfigError: no rule has this name.
    """
    if name not in rules:
        known = list(rules)
        raise ConfigError(f"rule: must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return rules[name]


_EMBEDDING = "its rows are looked up, not summed over the width: nothing changes"
_GAIN = "acts on each coordinate by itself: nothing changes"
_READOUT = "sums w times as many terms: logits times 1/w; as a vector-like kind it keeps η and has no decay"


def _maximal_update(width: float, *, weight_decay: float, eps: float, why: str) -> Scaled:
    """µP for Adam (arXiv 2203.03466, Table 8): rules differ only in the matrices' λ and ε."""
    matrix = Multipliers(lr=1 / width, weight_decay=weight_decay, eps=eps, init_std=width**-0.5)
    return scaled(
        matrix=matrix,
        readout=Multipliers(weight_decay=0.0, forward=1 / width),
        why={
            "matrix": f"η ∝ 1/w keeps the update's effect; {why}",
            "embedding": _EMBEDDING,
            "readout": _READOUT,
            "gain": _GAIN,
            "bias": _GAIN,
        },
    )


@rule("fan-sqrt", source="arXiv 2510.15262")
def fan_sqrt(ratios: Ratios) -> Scaled:
    """µP with λ ∝ √w on matrices: their top singular values then match, as observed on LLaMA-like models."""
    return _maximal_update(
        ratios.width, weight_decay=ratios.width**0.5, eps=1.0, why="λ ∝ √w keeps the top singular value"
    )


@rule("sp", source="torch's defaults")
def standard(ratios: Ratios) -> Scaled:
    """The standard parametrisation: fan-in initialisation, and every hyperparameter carried over as it is."""
    why: dict[Kind, str] = dict.fromkeys(KINDS, "carried over as it is")
    why["matrix"] = "initialised by fan-in; η and λ carried over as they are"
    return scaled(matrix=Multipliers(init_std=ratios.width**-0.5), why=why)


@rule("mup-coupled", source="arXiv 2203.03466; λ as in nanoGPT-mup and Megatron")
def mup_coupled(ratios: Ratios) -> Scaled:
    """µP with λ left alone, so that the decay per step, ηλ, falls as 1/w."""
    return _maximal_update(ratios.width, weight_decay=1.0, eps=1.0, why="λ is left alone: ηλ ∝ 1/w")


@rule("mup-independent", source="arXiv 2505.01618 (Table 1), 2510.19093, 2405.13698")
def mup_independent(ratios: Ratios) -> Scaled:
    """µP with λ ∝ w on matrices, so that the decay per step, ηλ, is constant."""
    return _maximal_update(
        ratios.width,
        weight_decay=ratios.width,
        eps=1 / ratios.width,
        why="λ ∝ w keeps ηλ; ε ∝ 1/w as their gradients",
    )
