"""What a sweep searches and is: settings drawn within their ranges, mistakes in one line."""

from typing import Any

import optuna
import pytest

from widthwise.proxies.validation import ConfigError
from widthwise.search import SearchSpace, SweepConfig


def test_settings_are_drawn_within_their_ranges() -> None:
    space = SearchSpace(
        lr=(0.01, 0.1), weight_decay=(0.5, 0.5), huber_c=(1.0, 3.0), decay=("huber-prox", "l2")
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggest(study.ask()) for _ in range(40)]
    assert {one["decay"] for one in drawn} == {"huber-prox", "l2"}
    for one in drawn:
        assert 0.01 <= one["lr"] <= 0.1
        assert one["weight_decay"] == 0.5
        assert (one["huber_c"] is None) == (one["decay"] == "l2")
        assert one["huber_c"] is None or 1 <= one["huber_c"] <= 3


def test_a_stored_trial_gives_back_what_was_drawn() -> None:
    given = {"lr": 0.02, "weight_decay": 0.4, "decay": "huber", "huber_c": 2.0}
    assert SearchSpace().suggest(optuna.trial.FixedTrial(given)) == given


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": {"lr": [0.2, 0.1]}}, "space.lr: 0 < low <= high must hold, got low=0.2, high=0.1"),
        (
            {"space": {"weight_decay": [0.0, 1.0]}},
            "space.weight_decay: 0 < low <= high must hold, got low=0, high=1",
        ),
        ({"space": {"huber_c": [-1.0, 1.0]}}, "space.huber_c: 0 < low <= high must hold, got low=-1, high=1"),
        ({"space": {"decay": []}}, "space.decay: must name at least one form of decay, got none"),
        (
            {"space": {"decay": ["huberr"]}},
            "space.decay: must be 'none', 'l2', 'huber' or 'huber-prox', got 'huberr'; did you mean 'huber'?",
        ),
        ({"space": {"lr": 0.1}}, "space.lr: must be a list, got 0.1"),
        ({"space": {"lrs": [0.1, 0.2]}}, "space.lrs: unknown field; did you mean 'lr'?"),
        ({"trials": 0}, "trials: must be >= 1, got 0"),
        ({"trials": 1.5}, "trials: must be a whole number, got 1.5"),
        ({"trials": True}, "trials: must be a whole number, got true"),
        ({"seeds": 0}, "seeds: must be >= 1, got 0"),
        ({"finalists": 0}, "finalists: must be >= 1, got 0"),
        ({"seed": -1}, "seed: must be >= 0, got -1"),
        (
            {"sampler": "tep"},
            "sampler: must be 'tpe', 'gp', 'cmaes', 'qmc', 'grid' or 'random', got 'tep'; did you mean 'tpe'?",
        ),
        (
            {"warm_start": [{"lr": 0.5, "weight_decay": 1.0, "decay": "l2"}]},
            "warm_start.0.lr: must be in the space's range [0.005, 0.2], got 0.5",
        ),
        (
            {"warm_start": [{"lr": 0.1, "weight_decay": 1.0, "decay": "none"}]},
            "warm_start.0.decay: must be one of huber, l2, got none",
        ),
        (
            {"min_horizon": 1e6},
            "min_horizon: must be <= 298, the horizon Σηλ at the space's largest η and λ, got 1e+06",
        ),
        (
            {"sampler": "grid", "trials": 30},
            "trials: must fill a grid of η, λ and 2 forms of decay, such as 24, got 30",
        ),
        (
            {"sampler": "grid", "trials": 1},
            "trials: must fill a grid of η, λ and 2 forms of decay, such as 2, got 1",
        ),
        (
            {"sampler": "grid", "min_horizon": 0.5},
            "min_horizon: must not be given with sampler = 'grid', whose points are all run",
        ),
        (
            {"min_tokens": 204_801},
            "min_tokens: must be >= batch_tokens = 2048 and <= 204800, half of horizon.tokens, got 204801",
        ),
        (
            {"min_tokens": 2047},
            "min_tokens: must be >= batch_tokens = 2048 and <= 204800, half of horizon.tokens, got 2047",
        ),
        (
            {"min_tokens": 51_200, "sampler": "cmaes"},
            "sampler: must be 'tpe', 'gp', 'qmc' or 'random' with min_tokens, got 'cmaes'",
        ),
        (
            {"min_tokens": 51_200, "patience": 5},
            "patience: must not be given with min_tokens, as there is no one best trial",
        ),
        ({"patience": 0}, "patience: must be >= 1, got 0"),
        ({"grace": 0.0}, "grace: must be > 0, got 0.0"),
        ({"concurrency": 0}, "concurrency: must be >= 1, got 0"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial: must be >= 0, got -0.5"),
        ({"horizon": {"batch_tokens": 100}}, "batch_tokens: must be a multiple of context = 128, got 100"),
        ({"model": {"width": 65}}, "model.width: must be a multiple of head_dim = 16, got 65"),
    ],
)
def test_a_mistake_in_a_configuration_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SweepConfig.parse(fields)
    assert str(caught.value) == message
