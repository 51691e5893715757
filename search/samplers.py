"""Who proposes settings: Optuna's samplers.

A sampler is made anew for every proposal, seeded by the proposal's place: what is proposed depends on the seed and
on the results so far, not on restarts.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)

if TYPE_CHECKING:
    from widthwise.search.config import SweepConfig


def sampler(config: "SweepConfig", place: int) -> BaseSampler:
    """Return the sampler of the proposal at `place`, counted from 0."""
    seed = int(np.random.SeedSequence((config.seed, place, _known(config))).generate_state(1)[0])
    # Optuna marks `group`, fixed parameters and its Gaussian process as experimental.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if fixed := _fixed(config, place):
            return PartialFixedSampler(fixed, RandomSampler(seed=seed))
        return _SAMPLERS[config.sampler](config, place, seed)


def _known(config: "SweepConfig") -> int:
    """Return a number that a warm start has of its own, 0 without one.

    The first proposals are random: those of the sweep that it is from, which may have had the same seed, are no news.
    """
    return crc32(repr(config.warm_start).encode()) if config.warm_start else 0


def _fixed(config: "SweepConfig", place: int) -> dict[str, Any]:
    """Return what of a proposal is no sampler's choice."""
    if place < len(config.warm_start):
        return config.warm_start[place].parameters() | ({"halvings": 0} if config.halvings else {})
    if config.halvings and config.sampler != "qmc" and place < startup_trials(config):
        # All horizons in turn, the whole one first: some trial must have it.
        return {"halvings": place % (config.halvings + 1)}
    return {}


def _tpe(config: "SweepConfig", place: int, seed: int) -> BaseSampler:
    # `group` handles a coefficient that is drawn only on one arm.
    return TPESampler(seed=seed, n_startup_trials=startup_trials(config), multivariate=True, group=True)


def _gp(config: "SweepConfig", place: int, seed: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=startup_trials(config))


def _cmaes(config: "SweepConfig", place: int, seed: int) -> BaseSampler:
    # It moves in η and λ, which all arms have; the form of decay and c are drawn at random.
    startup = startup_trials(config)
    return CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)


def _qmc(config: "SweepConfig", place: int, seed: int) -> BaseSampler:
    return PartialFixedSampler(quasi_random(config, place), RandomSampler(seed=seed))


def _grid(config: "SweepConfig", place: int, seed: int) -> BaseSampler:
    return PartialFixedSampler(grid_points(config)[place], RandomSampler(seed=seed))


def _random(config: "SweepConfig", place: int, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


_SAMPLERS = {"tpe": _tpe, "gp": _gp, "cmaes": _cmaes, "qmc": _qmc, "grid": _grid, "random": _random}


@contextmanager
def drawing() -> Iterator[None]:
    """Silence what Optuna says while it draws: that the Gaussian process takes a diverged trial as the worst other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Clip non-finite values")
        yield


def startup_trials(config: "SweepConfig") -> int:
    """Return the number of random proposals that a model of the losses begins with; assumed."""
    return min(10, max(4, config.trials // 3))


def quasi_random(config: "SweepConfig", place: int) -> dict[str, Any]:
    """Return the point at `place` of a scrambled Sobol' sequence (Owen 1998) in the space's logarithms.

    The sequence fills the space evenly however long it becomes, so that `trials` may be raised later.
    """
    from scipy.stats.qmc import Sobol

    space = config.space
    rng = np.random.default_rng((config.seed, _known(config))) if config.warm_start else config.seed
    engine = Sobol(d=5 if config.halvings else 4, scramble=True, rng=rng)
    if place:
        engine.fast_forward(place)
    [unit] = engine.random(1)
    ranges = {"lr": space.lr, "weight_decay": space.weight_decay, "huber_c": space.huber_c}
    point: dict[str, Any] = {
        name: float(np.clip(low * (high / low) ** share, low, high))
        for (name, (low, high)), share in zip(ranges.items(), unit, strict=False)
    }
    if config.halvings:
        # The first has the whole horizon: some trial must.
        point["halvings"] = int(unit[4] * (config.halvings + 1)) if place else 0
    return {**point, "decay": space.decay[int(unit[3] * len(space.decay))]}


def grid_points(config: "SweepConfig") -> list[dict[str, Any]]:
    """Return the points of a grid in the order in which they are tried.

    Optuna's own GridSampler would stop the study by itself, and repeat AdamW for every c.
    """
    points = config.space.grid(config.trials)
    return [points[index] for index in np.random.default_rng(config.seed).permutation(len(points))]
