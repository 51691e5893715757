"""What may be wrong where a target leaves its bands: each suspicion as a law of its own, the nearest is named.

A fault in the initialisation, in η, in λ or in the correction changes the laws of RMS and update ratio in its own
way and over its own time. Those laws are computed before the run, and compared with what the matrices show.
"""

from collections.abc import Mapping, Sequence
from math import log

from widthwise.transfer.plan import ENOUGH_DECAY, Plan
from widthwise.transfer.watching.laws import Course
from widthwise.transfer.watching.records import Suspicion

_INITIAL = (1 / 8, 1 / 4, 1 / 2, 2.0, 4.0, 8.0)
# assumed: a suspicion that explains less of the deviation than this share, squared, explains nothing.
EXPLAINED = 0.6
# Over µP's η by this factor, a plan's own is too high for the width; rules of depth and batch change it by less.
TOO_HIGH = 1.5


def suspicions(plan: Plan, kappa: float, steps: Sequence[int]) -> list[Suspicion]:
    """Return what might be wrong with the matrices of a plan's target, as factors on its laws."""
    course, width = Course.of(plan, "matrix", kappa), plan.ratios.width
    expected = course.at(steps)

    def suspicion(cause: str, advice: str, changed: Course) -> Suspicion:
        pairs = list(zip(changed.at(steps), expected, strict=True))
        return Suspicion(
            cause=cause,
            advice=advice,
            rms=tuple(found.rms / one.rms for found, one in pairs),
            update_ratio=tuple(found.update_ratio / one.update_ratio for found, one in pairs),
        )

    std = f"draw matrices with the plan's standard deviation, {plan.model.matrix_std:.3g}/√fan-in"
    found = [
        suspicion(
            f"the matrices began with about {times:g} times the plan's standard deviation",
            std,
            course.changed(std=times),
        )
        for times in _INITIAL
    ]
    if width > 1:
        rate = f"give matrices the plan's η, {plan.kinds['matrix'].lr:.3g}: is their kind 'matrix' in the groups?"
        found.append(
            suspicion("η of the matrices was not divided by the width", rate, course.changed(lr=width))
        )
    if course.weight_decay:
        decay = f"give matrices the plan's λ, {plan.kinds['matrix'].weight_decay:.3g}"
        found.append(suspicion("the matrices do not decay", decay, course.changed(decay=0.0)))
        turned = not course.corrected
        said = "is applied, and the recipe has none" if turned else "is missing"
        told = f"set corrected={course.corrected} in the matrices' groups"
        found.append(
            suspicion(f"AdamC's correction of the decay {said}", told, course.changed(corrected=turned))
        )
    return found


def nearest(suspected: Sequence[Suspicion], seen: Mapping[int, tuple[float, float]]) -> Suspicion | None:
    """Return the suspicion that explains most of what the matrices show, or None where none does.

    Args:
        suspected: `suspicions` of the run.
        seen: by place among the evaluations, RMS and update ratio over the bands' centres.
    """

    def left(one: Suspicion) -> float:
        said = {place: (one.rms[place], one.update_ratio[place]) for place in seen}
        return _distance(seen, said)

    best = min(suspected, key=left, default=None)
    nothing = dict.fromkeys(seen, (1.0, 1.0))
    return best if best and left(best) <= (1 - EXPLAINED) * _distance(seen, nothing) else None


def _distance(one: Mapping[int, tuple[float, float]], other: Mapping[int, tuple[float, float]]) -> float:
    """Return the sum of the squared differences of the logarithms."""
    return sum(log(a / b) ** 2 for place in one for a, b in zip(one[place], other[place], strict=True))


def rate(plan: Plan) -> tuple[str, str] | None:
    """Return cause and advice where a plan's matrices have a higher η than µP gives them, or None."""
    given, width = plan.kinds["matrix"].multipliers.lr, plan.ratios.width
    if given * width <= TOO_HIGH:
        return None
    cause = (
        f"η is too high for the width: rule {plan.rule!r} gives matrices ×{given:.3g}, µP ×{1 / width:.3g}"
    )
    return cause, "take a µP rule such as fan-sqrt, or a lower η"


def time(plan: Plan) -> tuple[str, str] | None:
    """Return cause and advice where a plan's decay has less time to act than its proxies' had, or None."""
    before, now = plan.recipe.at(width=plan.recipe.proxy.width).decay_horizon, plan.decay_horizon
    if now >= min(ENOUGH_DECAY, before):
        return None
    cause = (
        f"λ has no time to act: Σηλ of the matrices is {now:.2g} over the run, the proxies had {before:.2g}"
    )
    return cause, "raise λ (rule mup-independent keeps ηλ), or train longer"


def vectors(kinds: Sequence[str]) -> tuple[str, str]:
    """Return cause and advice where embedding or readout alone leave their bands."""
    also = ", or the factor on the logits," if "readout" in kinds else ""
    cause = f"initialisation or η of {' and '.join(kinds)}{also} is not the plan's"
    return cause, "compare with what widthwise scale prints for this width"


GENERAL = (
    "no single fault explains it",
    "look at the model, the data and the gradients; widthwise check says whether the rule holds between proxies",
)
