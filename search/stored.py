"""What a sweep's folder says of it, read without torch."""

import json
from pathlib import Path

from optuna.trial import TrialState

from widthwise.search.config import SweepConfig
from widthwise.search.folders import Layout, read, require_folder
from widthwise.search.names import GRID_STUDY, SWEEP_STUDY
from widthwise.search.storage import Storage

SWEEP = Layout(
    what="sweep",
    study=SWEEP_STUDY,
    records="trials.jsonl",
    folder="trials",
    foreign={"recipe.json": "a recipe that no sweep in it made", **dict.fromkeys(GRID_STUDY, "a check")},
)


def stored_config(out: Path, storage: Storage | None = None) -> SweepConfig:
    """Return the configuration of the sweep in `out`, or of the study that `storage` names.

    Raises:
        ConfigError: where there is none, or the study cannot be read.
    """
    require_folder(out, SWEEP, resume=True, storage=storage)
    with read(out, SWEEP, storage) as study:
        return SweepConfig.parse(study.user_attrs["config"], where=f"the study of {out}")


def is_unfinished(out: Path, config: object) -> bool:
    """Return whether the sweep in `out` has trials to run, or has become another since it was `config`.

    Args:
        out: its folder.
        config: a `SweepConfig` as plain data, such as the provenance of a recipe.

    Raises:
        ConfigError: the study cannot be read.
    """
    with read(out, SWEEP, None) as study:
        begun = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
        # A record's lists are tuples.
        return bool(begun) or study.user_attrs["config"] != json.loads(json.dumps(config))
