"""What a scaling rule takes, the ratios of target and proxy, and what it yields: multipliers per parameter kind."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from widthwise.proxies.config import KINDS, Kind
from widthwise.proxies.validation import ConfigError, look_up


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

    @property
    def steps(self) -> float:
        """Ratio of optimizer steps, s = t/b."""
        return self.tokens / self.batch


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Target divided by proxy, for one parameter kind.

    Attributes:
        lr: of the learning rate η.
        weight_decay: of λ in torch's AdamW convention, θ ← θ - η(u + λθ), if the kind decays.
        eps: of Adam's ε.
        init_std: of the initial standard deviation.
        forward: of the factor on what the parameter computes.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    init_std: float = 1.0
    forward: float = 1.0


UNCHANGED = Multipliers()
"""Everything as tuned."""


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What a rule yields.

    Attributes:
        kinds: multipliers of each of the five parameter kinds.
        residual_multiplier: factor on every branch before it joins the residual stream, target / proxy.
        one_minus_beta: factor on 1 - β1 and on 1 - β2, target / proxy.
        decay_kinds: the kinds that decay; proxies train with λ on their matrices alone.
        why: a short reason per kind, of clauses with "; " between them; those on λ begin with it, and are left out
            where the kind does not decay.

    Raises:
        ConfigError: a kind is missing or unknown, or a multiplier is negative or not finite.
    """

    kinds: Mapping[Kind, Multipliers]
    residual_multiplier: float = 1.0
    one_minus_beta: float = 1.0
    decay_kinds: tuple[Kind, ...] = ("matrix",)
    why: Mapping[Kind, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [kind for kind in KINDS if kind not in self.kinds]
        if missing:
            raise ConfigError(f"kinds: must cover {', '.join(KINDS)}, but {', '.join(missing)} is missing")
        for kind, multipliers in self.kinds.items():
            for one in fields(multipliers):
                _require_factor(f"{kind}.{one.name}", getattr(multipliers, one.name))
        _require_factor("residual_multiplier", self.residual_multiplier)
        _require_factor("one_minus_beta", self.one_minus_beta)
        for name in self.decay_kinds:
            look_up("decay_kinds", name, dict.fromkeys(KINDS))


def _require_factor(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name}: must be finite and >= 0, got {value!r}")


def scaled(
    *,
    matrix: Multipliers,
    embedding: Multipliers = UNCHANGED,
    readout: Multipliers = UNCHANGED,
    gain: Multipliers = UNCHANGED,
    bias: Multipliers = UNCHANGED,
    residual_multiplier: float = 1.0,
    decay_kinds: tuple[Kind, ...] = ("matrix",),
    why: Mapping[Kind, str] | None = None,
) -> Scaled:
    """Return a rule's outcome: the matrices' multipliers, and other kinds' where they change."""
    kinds: dict[Kind, Multipliers] = {
        "matrix": matrix,
        "embedding": embedding,
        "readout": readout,
        "gain": gain,
        "bias": bias,
    }
    return Scaled(
        kinds=kinds, residual_multiplier=residual_multiplier, decay_kinds=decay_kinds, why=why or {}
    )


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Factors for another batch size or horizon, target / proxy, the same for every kind.

    Attributes:
        lr: on the learning rate η.
        weight_decay: on λ.
        eps: on Adam's ε.
        one_minus_beta: on 1 - β1 and on 1 - β2.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    one_minus_beta: float = 1.0


def paced(outcome: Scaled, pace: Pace, by: str) -> Scaled:
    """Return the outcome with a pace's factors on top of its own, and with the reasons for them; `by` names it."""
    kinds = {
        kind: replace(
            one,
            lr=one.lr * pace.lr,
            weight_decay=one.weight_decay * pace.weight_decay,
            eps=one.eps * pace.eps,
        )
        for kind, one in outcome.kinds.items()
    }
    return replace(
        outcome,
        kinds=kinds,
        one_minus_beta=outcome.one_minus_beta * pace.one_minus_beta,
        why={kind: _paced_reason(outcome, kind, pace, by) for kind in kinds},
    )


def _paced_reason(outcome: Scaled, kind: Kind, pace: Pace, by: str) -> str:
    said, own = outcome.why.get(kind, ""), outcome.kinds[kind].weight_decay
    clauses = []
    if pace.lr != 1:
        clauses.append(f"η ×{pace.lr:.4g} by {by}")
    if pace.weight_decay != 1:
        # What the rule's own λ was to keep, this one does not.
        said = without_decay(said)
        clauses.append(
            f"λ ×{pace.weight_decay:.4g} by {by}" + (f", on top of ×{own:.4g}" if own != 1 else "")
        )
    if pace.eps != 1:
        clauses.append(f"ε ×{pace.eps:.4g} by {by}")
    return "; ".join([said, *clauses] if said else clauses)


def without_decay(why: str) -> str:
    """Return a reason without what it says of λ: the clauses that begin with it."""
    return "; ".join(clause for clause in why.split("; ") if not clause.startswith("λ"))
