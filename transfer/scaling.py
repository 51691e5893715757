"""The published scaling rules: one pure function each, by the names that their users know.

w, ℓ, b and t are the ratios of width, depth, batch size and tokens, target / proxy. Depth's exponent α is 1 in
all rules that have one, so that the learning rates inside the blocks, times ℓ^(α-1), do not differ from the
final norm's. The ε of blocks is that of their matrices, gains and biases; a rule sees kinds alone, so that the
final norm's gain gets it too, where the sources leave that one ε larger.
"""

from dataclasses import replace

from widthwise.proxies.config import KINDS, Kind
from widthwise.transfer.horizons import sde
from widthwise.transfer.multipliers import Multipliers, Ratios, Scaled, paced, scaled
from widthwise.transfer.rulebook import Rule, find_rule, rule, rules

__all__ = ["Multipliers", "Ratios", "Rule", "Scaled", "find_rule", "rule", "rules", "scaled"]

_EMBEDDING = "its rows are looked up, not summed over: the width changes nothing"
_EMBEDDING_EPS = "its rows are looked up, not summed over: only ε follows its gradient"
_VECTOR = "acts on each coordinate by itself: the width changes nothing"
_VECTOR_EPS = "acts on each coordinate by itself: only ε follows its gradient"
_READOUT = "sums w times as many terms: logits times 1/w; as a vector-like kind it keeps η"


def _maximal_update(
    width: float, *, weight_decay: float, why: str, eps: float = 1.0, outer_eps: float = 1.0
) -> Scaled:
    """µP for Adam (arXiv 2203.03466, Table 8): rules differ in the matrices' λ and in ε, of blocks and outside."""
    vector = _VECTOR if eps == 1 else _VECTOR_EPS
    return scaled(
        matrix=Multipliers(lr=1 / width, weight_decay=weight_decay, eps=eps, init_std=width**-0.5),
        embedding=Multipliers(eps=outer_eps),
        readout=Multipliers(eps=outer_eps, forward=1 / width),
        gain=Multipliers(eps=eps),
        bias=Multipliers(eps=eps),
        why={
            "matrix": f"η ∝ 1/w keeps the update's effect; {why}",
            "embedding": _EMBEDDING if outer_eps == 1 else _EMBEDDING_EPS,
            "readout": _READOUT,
            "gain": vector,
            "bias": vector,
        },
    )


@rule("fan-sqrt", source="arXiv 2510.15262")
def fan_sqrt(ratios: Ratios) -> Scaled:
    """µP with λ ∝ √w on matrices: their top singular values then match, as observed on LLaMA-like models."""
    return _maximal_update(
        ratios.width,
        weight_decay=ratios.width**0.5,
        why="λ ∝ √w keeps the top singular value, as observed in arXiv 2510.15262",
    )


@rule("sp", source="torch's defaults")
def standard(ratios: Ratios) -> Scaled:
    """The standard parametrisation: fan-in initialisation, and every hyperparameter carried over as it is."""
    why: dict[Kind, str] = dict.fromkeys(KINDS, "carried over as it is")
    why["matrix"] = "initialised by fan-in; η is carried over as it is; λ is, too"
    return scaled(matrix=Multipliers(init_std=ratios.width**-0.5), why=why)


@rule("sp-embedding", source="arXiv 2605.21486")
def standard_embedding(ratios: Ratios) -> Scaled:
    """The standard parametrisation with the embedding's η ∝ w, to which most of µP's advantage is attributed."""
    outcome = standard(ratios)
    return replace(
        outcome,
        kinds={**outcome.kinds, "embedding": Multipliers(lr=ratios.width)},
        why={
            **outcome.why,
            "embedding": "η ∝ w: else it falls behind where the common η must fall with the width",
        },
    )


@rule("mup-coupled", source="arXiv 2203.03466; λ as in nanoGPT-mup and Megatron")
def mup_coupled(ratios: Ratios) -> Scaled:
    """µP with λ left alone, so that the decay per step, ηλ, falls as 1/w."""
    return _maximal_update(ratios.width, weight_decay=1.0, why="λ is left alone: ηλ ∝ 1/w")


@rule("mup-independent", source="arXiv 2505.01618 (Table 1), 2510.19093, 2405.13698")
def mup_independent(ratios: Ratios) -> Scaled:
    """µP with λ ∝ w on matrices, so that the decay per step, ηλ, is constant."""
    width = ratios.width
    return _maximal_update(
        width, weight_decay=width, eps=1 / width, why="λ ∝ w keeps ηλ; ε ∝ 1/w as their gradients"
    )


@rule("completep", source="arXiv 2505.01618 (α = 1)")
def completep(ratios: Ratios) -> Scaled:
    """µP in width and depth: λ ∝ w keeps ηλ, and residual branches are divided by the depth."""
    width, depth = ratios.width, ratios.depth
    outcome = _maximal_update(
        width,
        weight_decay=width,
        eps=1 / (width * depth),
        outer_eps=1 / width,
        why="λ ∝ w keeps ηλ; ε ∝ 1/(wℓ) as their gradients",
    )
    return replace(outcome, residual_multiplier=1 / depth)


@rule("completed-p", source="arXiv 2512.22382 (α = 1)")
def completed_p(ratios: Ratios) -> Scaled:
    """CompleteP without a multiplier on the logits, and batch size and tokens scaled as by the rule sde."""
    width, depth = ratios.width, ratios.depth
    within = Multipliers(eps=1 / (width * depth))
    outcome = scaled(
        matrix=replace(within, lr=1 / width, weight_decay=width, init_std=width**-0.5),
        embedding=Multipliers(eps=1 / width),
        readout=Multipliers(lr=1 / width, weight_decay=width, init_std=1 / width),
        gain=within,
        bias=within,
        residual_multiplier=1 / depth,
        why={
            "matrix": "η ∝ 1/w keeps the update's effect; λ ∝ w keeps ηλ; ε ∝ 1/(wℓ) as their gradients",
            "embedding": _EMBEDDING_EPS,
            "readout": "η and the initial std ∝ 1/w instead of a multiplier on the logits; λ ∝ w keeps ηλ",
            "gain": _VECTOR_EPS,
            "bias": _VECTOR_EPS,
        },
    )
    return paced(outcome, sde(ratios), "sde")


@rule("qiu-compute-optimal", source="arXiv 2512.05620")
def qiu_compute_optimal(ratios: Ratios) -> Scaled:
    """λ left alone, for horizons of about 20 tokens per parameter: ηλ ∝ 1/w on matrices and readout."""
    width = ratios.width
    why: dict[Kind, str] = dict.fromkeys(KINDS, "carried over as it is")
    why["matrix"] = (
        "η ∝ 1/w keeps the update's effect; λ is left alone: ηλ ∝ 1/w suits compute-optimal horizons"
    )
    why["readout"] = "η and the initial std ∝ 1/w instead of a multiplier on the logits"
    return scaled(
        matrix=Multipliers(lr=1 / width, init_std=width**-0.5),
        readout=Multipliers(lr=1 / width, init_std=1 / width),
        residual_multiplier=1 / ratios.depth,
        why=why,
    )
