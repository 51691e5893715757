"""Which quantities of the proxies a target is judged by, and the law that carries each to another width.

A proxy's value is divided by its unit at the proxy's plan and multiplied by its unit at the target's. What has no
law that held on real runs is recorded and not judged: σ₁ (its exponent is open: ``widthwise check`` measures it),
‖g‖/‖θ‖ (falls with the width, faster than any one power), everything of gains and biases (few numbers).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from widthwise.proxies.config import Kind
from widthwise.transfer.plan import Plan
from widthwise.transfer.watching.laws import Course
from widthwise.transfer.watching.records import Place

Unit = Callable[[Plan, Kind, float, Sequence[int]], list[float]]

RECORDED = ("rms", "update_ratio", "gradient_to_weight", "top_singular_value", "gain", "kappa")
"""What a recipe keeps of every kind, judged or not."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One row of the table.

    Attributes:
        name: as in `widthwise.proxies.outcome.KindDiagnostics`, or of the whole run.
        kinds: of which it is judged; ``run`` is the whole model.
        unit: at a plan, a kind, κ̂ and steps; a value over it does not depend on the width.
        tolerance: the band is as much wider than the proxies' seeds, a factor on either side, at the proxies'
            own width. measured: docs/results/watching.md.
        reach: it is judged where the target has as many times the proxies' steps, or as many times fewer, at most.
        drift: a target w times as wide has the tolerance times w^drift: the laws are not exact.
        below: whether a value below the band is an alarm too.
        law: in words.
    """

    name: str
    kinds: tuple[Place, ...]
    unit: Unit
    tolerance: float
    below: bool
    law: str
    drift: float = 0.0
    reach: float = 2.0

    def margin(self, width: float) -> float:
        """Return the factor between the proxies' extremes and the band's edges; `width` is target / proxy."""
        return float(self.tolerance * max(width, 1 / width) ** self.drift)


def _same(plan: Plan, kind: Kind, kappa: float, steps: Sequence[int]) -> list[float]:
    return [1.0] * len(steps)


def _rms(plan: Plan, kind: Kind, kappa: float, steps: Sequence[int]) -> list[float]:
    return [one.rms for one in Course.of(plan, kind, kappa).at(steps)]


def _update_ratio(plan: Plan, kind: Kind, kappa: float, steps: Sequence[int]) -> list[float]:
    return [one.update_ratio for one in Course.of(plan, kind, kappa).at(steps)]


def _slow(plan: Plan, kind: Kind, kappa: float, steps: Sequence[int]) -> list[float]:
    return [plan.ratios.width**0.25] * len(steps)


def _output(plan: Plan, kind: Kind, kappa: float, steps: Sequence[int]) -> list[float]:
    # What counts of a layer is its output, and the rule multiplies that of some.
    return [1 / plan.kinds[kind].multipliers.forward] * len(steps)


QUANTITIES = (
    Quantity(
        name="rms",
        kinds=("matrix",),
        unit=_rms,
        tolerance=1.08,
        drift=0.05,
        below=True,
        law="√V_t of the plan's initialisation, η, λ and schedule (noise law)",
    ),
    Quantity(
        name="rms",
        kinds=("embedding", "readout"),
        unit=_rms,
        tolerance=1.08,
        drift=0.05,
        reach=1.25,
        below=True,
        law="√V_t of the plan's initialisation, η, λ and schedule (noise law)",
    ),
    Quantity(
        name="update_ratio",
        kinds=("matrix", "embedding", "readout"),
        unit=_update_ratio,
        tolerance=1.3,
        drift=0.05,
        reach=1.25,
        below=True,
        law="η_t·√((1-β1)/(1+β1))/√V_t of the plan (noise law)",
    ),
    Quantity(
        name="gain",
        kinds=("matrix",),
        unit=_slow,
        tolerance=1.25,
        below=False,
        law="grows as w^¼ at most: σ₁ ∝ √(η/λ)·w^p has p <= 1, and µP with λ ∝ √w leaves w^(p-¾)",
    ),
    Quantity(
        name="gain",
        kinds=("readout",),
        unit=_output,
        tolerance=1.4,
        below=True,
        law="times the rule's factor on the logits it does not depend on the width",
    ),
    Quantity(
        name="gradient_norm",
        kinds=("run",),
        unit=_same,
        tolerance=1.5,
        below=False,
        law="not above the proxies': the norm of the whole model's gradient falls with the width, if anything",
    ),
    Quantity(
        name="loss",
        kinds=("run",),
        unit=_same,
        tolerance=1.05,
        below=False,
        law="not above the proxies' at an equal share of the run: a wider model is no worse",
    ),
)
