"""What a sweep's folder says of it, read without torch."""

import json
from pathlib import Path

from optuna.trial import TrialState

from widthwise.search.config import SweepConfig
from widthwise.search.folders import Layout, loaded, require_folder

SWEEP = Layout(
    what="sweep",
    database="study.db",
    records="trials.jsonl",
    folder="trials",
    foreign={"recipe.json": "a recipe that no sweep in it made", "runs.db": "a check"},
)


def stored_config(out: Path) -> SweepConfig:
    """Return the configuration of the sweep in `out`.

    Raises:
        ConfigError: where there is none, or the study cannot be read.
    """
    require_folder(out, SWEEP, resume=True)
    return SweepConfig.parse(loaded(out, SWEEP).user_attrs["config"], where=str(out / SWEEP.database))


def is_unfinished(out: Path, config: object) -> bool:
    """Return whether the sweep in `out` has trials to run, or has become another since it was `config`.

    Args:
        out: its folder.
        config: a `SweepConfig` as plain data, such as the provenance of a recipe.

    Raises:
        ConfigError: the study cannot be read.
    """
    study = loaded(out, SWEEP)
    begun = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    # A record's lists are tuples.
    return bool(begun) or study.user_attrs["config"] != json.loads(json.dumps(config))
