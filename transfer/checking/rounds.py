"""Which runs a check wants next: a pure function of what it has seen, so that it can be resumed at any moment.

First the transferred settings at every width, which show a broken parametrisation. Then η and λ are varied at the
base width: a recipe that is not at its own optimum cannot be judged elsewhere. Last, and where the cost lies, the
same at the other widths. A stage is not begun where the verdict stands already.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from widthwise.transfer.checking.fitting import Losses
from widthwise.transfer.checking.judging import judge
from widthwise.transfer.checking.measuring import measure
from widthwise.transfer.checking.observing import AXES, Axis, Observation, Setting, line


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a check varies.

    Attributes:
        base_width: where the recipe was tuned.
        widths: at which proxies are trained, the base width among them.
        seeds: for every setting.
        steps: octaves between neighbouring values of η, and of λ.
        points: values of each to begin with, an odd number: as many above the rule's own as below.
        limit: octaves beyond which a line is not extended in search of its minimum.
        full: whether to go on where the verdict stands already.
    """

    base_width: int
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: Mapping[Axis, float] = field(default_factory=lambda: dict.fromkeys(AXES, 1.0))
    points: int = 5
    limit: float = 4.0
    full: bool = False

    def offsets(self, axis: Axis) -> list[float]:
        """Return the octaves off the rule's own value that every line begins with."""
        half = self.points // 2
        return [_rounded(self.steps[axis] * place) for place in range(-half, half + 1)]


Seen = Mapping[Setting, Observation]


def wanted(design: Design, seen: Seen) -> list[Setting]:
    """Return the settings to run now, the widest first; none where all is known, or the verdict stands."""
    for stage in _stages(design, seen):
        missing = [setting for setting in stage if setting not in seen]
        if missing:
            return sorted(missing, key=lambda one: (-one.width, one.seed, one.lr_octaves, one.decay_octaves))
        if not design.full and _is_settled(design, seen):
            return []
    return []


def _stages(design: Design, seen: Seen) -> Iterator[list[Setting]]:
    yield [Setting(width=width, seed=seed) for width in design.widths for seed in design.seeds]
    base = [design.base_width]
    yield _lines(design, seen, base)
    yield _lines(design, seen, [width for width in design.widths if width not in base])


def _is_settled(design: Design, seen: Seen) -> bool:
    """Return whether no further run can change the verdict."""
    found = judge(measure(list(seen.values()), base_width=design.base_width))
    return any(one.is_final for one in found.reasons)


def _lines(design: Design, seen: Seen, widths: Sequence[int]) -> list[Setting]:
    return [
        setting for width in widths for axis in AXES for setting in _line_settings(design, seen, width, axis)
    ]


def _line_settings(design: Design, seen: Seen, width: int, axis: Axis) -> list[Setting]:
    """Return a line's settings, with those further out where the lowest loss was found at an end."""
    settings = [one for octaves in design.offsets(axis) for one in _settings(design, width, axis, octaves)]
    while all(one in seen for one in settings):
        further = next_offset(
            line((seen[one] for one in settings), width, axis), design.steps[axis], design.limit
        )
        if further is None:
            break
        settings += _settings(design, width, axis, further)
    return settings


def _settings(design: Design, width: int, axis: Axis, octaves: float) -> list[Setting]:
    name = f"{axis}_octaves"
    return [Setting(width=width, seed=seed, **{name: octaves}) for seed in design.seeds]


def next_offset(losses: Losses, step: float, limit: float) -> float | None:
    """Return where to look next for a line's minimum: a step beyond the end that is lowest; None where it is inside.

    Where the runs beyond that end diverged, half-way to them, once.
    """
    means = {
        x: sum(loss for loss in by_seed.values() if loss is not None) / len(by_seed)
        for x, by_seed in losses.items()
        if None not in by_seed.values()
    }
    if not means:
        return None
    best = min(means, key=lambda x: means[x])
    for end, side in ((min(means), -1), (max(means), 1)):
        if best != end:
            continue
        beyond = [x for x in losses if (x - end) * side > 0]
        further = (end + min(beyond, key=lambda x: abs(x - end))) / 2 if beyond else end + side * step
        close = beyond and abs(further - end) < step / 2
        return None if close or abs(further) > limit else _rounded(further)
    return None


def _rounded(octaves: float) -> float:
    """Return what the run's name says, so that a setting read from it is the same."""
    return float(f"{octaves:g}")
