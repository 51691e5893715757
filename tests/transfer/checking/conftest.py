"""Worlds whose truth is known: what a check would observe if the loss, σ₁ and the coordinates followed these laws."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
import pytest

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.outcome import SPECTRUM_SHARES
from widthwise.transfer import Recipe
from widthwise.transfer.checking.alternatives import alternatives
from widthwise.transfer.checking.judging import judge
from widthwise.transfer.checking.measuring import measure
from widthwise.transfer.checking.observing import Observation, Setting
from widthwise.transfer.checking.options import CheckOptions
from widthwise.transfer.checking.rounds import Design, wanted
from widthwise.transfer.checking.running import CheckResult

BASE = 32


@dataclass(frozen=True, kw_only=True)
class World:
    """A truth to be found out; octaves are off the rule's own η or λ.

    Attributes:
        lr_optimum, decay_optimum: at the base width.
        lr_drift, decay_drift: of the optimum per doubling of the width.
        bend: how far off its drift the optimal η is at twice the base width.
        curvature: loss one octave off the optimum, along η; along λ half of it.
        lopsided: cubic term of the loss along η.
        noise: standard deviation of a run's loss, besides the `seed_noise` that all runs of a seed share.
        coordinate: exponent of the layers' change in width.
        coordinate_noise: standard deviation of the log of that change, at each step.
        singular: p of σ₁ ∝ √(η/λ)·d^p.
        rule: exponent of λ in width, by the rule.
        kappa: exponent of κ̂ in width.
        wall: octaves along η from which runs diverge.
        draw: seed of all noise.
    """

    lr_optimum: float = 0.0
    decay_optimum: float = 0.0
    lr_drift: float = 0.0
    decay_drift: float = 0.0
    bend: float = 0.0
    curvature: float = 0.05
    lopsided: float = 0.0
    noise: float = 0.003
    seed_noise: float = 0.01
    coordinate: float = 0.0
    coordinate_noise: float = 0.02
    singular: float = 0.75
    rule: float = 0.5
    kappa: float = 0.0
    wall: float = 10.0
    draw: int = 0

    def observe(self, setting: Setting) -> Observation:
        """Return what the run at a setting says."""
        doublings = log2(setting.width / BASE)
        along_lr = setting.lr_octaves - self.lr_optimum - self.lr_drift * doublings
        along_lr -= self.bend if doublings == 1 else 0
        along_decay = setting.decay_octaves - self.decay_optimum - self.decay_drift * doublings
        own, shared = self._normal(setting.key), self._normal(f"{setting.seed} {setting.width}")
        loss = 2.2 - 0.03 * doublings + self.noise * own[0] + self.seed_noise * shared[0]
        loss += self.curvature * (along_lr**2 + along_decay**2 / 2) + self.lopsided * along_lr**3
        lr = 0.02 / (setting.width / BASE) * 2**setting.lr_octaves
        weight_decay = 2.0 * (setting.width / BASE) ** self.rule * 2**setting.decay_octaves
        singular = np.sqrt(lr / weight_decay) * setting.width**self.singular
        changes = setting.width**self.coordinate * np.exp(self.coordinate_noise * own[1:11])
        return Observation(
            setting=setting,
            lr=lr,
            weight_decay=weight_decay,
            loss=None if setting.lr_octaves >= self.wall else float(loss),
            top_singular_values={
                name: float(size * singular * np.exp(0.03 * own[11]))
                for name, size in (("up", 1.0), ("down", 2.0))
            },
            spectra={"up": [float(singular) * (1 - share) for share in SPECTRUM_SHARES]},
            kappa=0.9 * (setting.width / BASE) ** self.kappa,
            coordinates={"embedding": [0.1] * 10, "logits": changes.tolist()},
        )

    def _normal(self, name: str) -> np.ndarray:
        return np.random.default_rng([self.draw, *name.encode()]).standard_normal(12)


@pytest.fixture(scope="session")
def world() -> type[World]:
    """Return the class of worlds."""
    return World


@pytest.fixture(scope="session")
def design() -> Callable[..., Design]:
    """Return a function that makes a design of three widths and three seeds, but for what is given."""

    def make(**changes: Any) -> Design:
        return Design(**{"base_width": BASE, "widths": (32, 64, 128), "seeds": (0, 1, 2), **changes})

    return make


@pytest.fixture(scope="session")
def carried_out(design: Callable[..., Design]) -> Callable[..., list[Observation]]:
    """Return a function that carries a design out, round by round, in the world that the truth makes."""

    def carry_out(plan: Design | None = None, **truth: Any) -> list[Observation]:
        plan, truths = plan or design(), World(**truth)
        seen: dict[Setting, Observation] = {}
        while todo := wanted(plan, seen):
            seen |= {setting: truths.observe(setting) for setting in todo}
        return list(seen.values())

    return carry_out


@pytest.fixture(scope="session")
def checked(carried_out: Callable[..., list[Observation]]) -> Callable[..., CheckResult]:
    """Return a function that makes the result of a check by ``fan-sqrt`` in the world that the truth makes."""

    def make(plan: Design | None = None, **truth: Any) -> CheckResult:
        runs = carried_out(plan, **truth)
        recipe = Recipe(
            hyperparameters=Hyperparameters(lr=0.02, weight_decay=2.0, huber_c=2.0),
            proxy=GPTConfig(width=BASE),
            horizon=Horizon(),
        )
        measured = measure(runs, base_width=BASE)
        return CheckResult(
            recipe=recipe,
            options=CheckOptions(),
            rule="fan-sqrt",
            verdict=judge(measured),
            horizons={at.width: 2.0 for at in measured.widths},
            measured=measured,
            alternatives=alternatives(recipe.at(width=128), runs),
            observations=tuple(runs),
        )

    return make
