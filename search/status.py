"""How a study stands, read by another process while it runs or after it died; nothing is written."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from widthwise.proxies.files import is_locked
from widthwise.proxies.outcome import finite
from widthwise.proxies.validation import ConfigError
from widthwise.search import server
from widthwise.search.folders import STUDY
from widthwise.search.front import curve_of, front, loss_of
from widthwise.search.names import STUDIES
from widthwise.search.storage import Storage, read_study_file, require_sound, sqlite_url, unreadable

# Errors that are told, the latest.
MAX_ERRORS = 3


def study_status(folder: Path, storage: Storage | None = None) -> dict[str, Any] | None:
    """Return how the study of `folder` stands, as plain data; None where there is none.

    `storage` takes the place of the URL that a folder has for a study in a database.

    ``kind`` (``sweep``, ``check``…), ``state`` (``running``, ``interrupted``), ``counts`` of the trials that have
    begun, by status, ``tokens`` trained on, ``seconds`` that the ended trials took together, ``best`` (trial, loss in
    nats per token, what it tried), ``front`` (of a sweep that searches its horizon: the same of the trials that no
    other beats with as few tokens), ``running`` (trial, step and loss of its last evaluation), ``to_come`` (trials that
    have not begun, as far as is known), ``seconds_left`` (while it runs, where that is known) and ``errors`` (the
    latest, a line each).

    Raises:
        ConfigError: the study cannot be read.
    """
    path = next((folder / name for name in STUDIES if (folder / name).exists()), None)
    if path is None:
        return None
    if path.suffix == ".db":
        return standing_of(_in_file(path), is_running=is_locked(folder))
    place = read_study_file(path, storage)
    # Before it is read: one that ends meanwhile is rather called running than interrupted.
    is_running = server.is_held(place)
    with server.reading(place) as study:
        return standing_of(study, is_running=is_running)


def _in_file(path: Path) -> optuna.Study:
    """Open a study such that SQLite refuses every write."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.RDBStorage(sqlite_url(path, read_only=True), skip_table_creation=True)
        require_sound(storage.engine)
        return optuna.load_study(storage=storage, study_name=STUDY)
    except Exception as error:
        raise ConfigError(f"folder: {unreadable(path, 'a study', error)}") from error


def standing_of(study: optuna.Study, *, is_running: bool) -> dict[str, Any]:
    """Return what `study_status` does, of a study at hand."""
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.is_finished()]
    return {
        "kind": study.user_attrs.get("what", "sweep"),
        "state": "running" if is_running else "interrupted",
        "counts": _counts(trials),
        "tokens": sum(trial.user_attrs.get("tokens", 0) for trial in ended),
        "seconds": round(sum(trial.user_attrs.get("seconds", 0.0) for trial in ended), 1),
        "best": _best(ended),
        "front": _front(study, ended),
        "running": [_running(trial) for trial in trials if trial.state == TrialState.RUNNING],
        **_outlook(study, trials, is_running=is_running),
        "errors": _errors(ended),
    }


def _outlook(study: optuna.Study, trials: Sequence[FrozenTrial], *, is_running: bool) -> dict[str, Any]:
    """Return what the process that has the study expected when the last trial ended."""
    states = Counter(trial.state for trial in trials)
    running = states[TrialState.RUNNING]
    known = study.user_attrs.get("outlook", {"trials": running + states[TrialState.WAITING], "ends": None})
    left = max(0.0, known["ends"] - time.time()) if is_running and known["ends"] is not None else None
    return {"to_come": max(0, known["trials"] - running), "seconds_left": left}


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    return dict(
        Counter(
            trial.user_attrs.get("status", "failed")
            if trial.state.is_finished()
            else trial.state.name.lower()
            for trial in trials
            if trial.state != TrialState.WAITING
        )
    )


def _best(ended: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    # Another seed of a setting is no better setting.
    completed = [
        one
        for one in ended
        if one.user_attrs.get("status") == "completed" and "confirms" not in one.user_attrs
    ]
    if not completed:
        return None
    best = min(completed, key=lambda one: one.values[0])
    return {"trial": _name(best), "loss": best.values[0], **_tried(best)}


def _front(study: optuna.Study, ended: Sequence[FrozenTrial]) -> list[dict[str, Any]] | None:
    if len(study.directions) == 1:
        return None
    records = [
        {
            "status": trial.user_attrs.get("status"),
            "confirms": trial.user_attrs.get("confirms"),
            "fitted": "fitted" in trial.user_attrs,
            "number": trial.number,
            "loss": loss_of(trial),
            "tokens": trial.user_attrs.get("tokens", 0),
            "hyperparameters": _tried(trial),
        }
        for trial in ended
    ]
    return [
        {"trial": str(one["number"]), "loss": one["loss"], **one["hyperparameters"]} for one in front(records)
    ]


def _tried(trial: FrozenTrial) -> dict[str, Any]:
    """Return what a trial tried: its settings, and its tokens where the horizon is searched."""
    if "halvings" not in trial.params:
        return trial.params
    settings = {name: value for name, value in trial.params.items() if name != "halvings"}
    return {"tokens": trial.user_attrs.get("tokens", 0), **settings}


def _running(trial: FrozenTrial) -> dict[str, Any]:
    curve = curve_of(trial)
    step = max(curve, default=None)
    loss = None if step is None else finite(curve[step])
    return {"trial": _name(trial), "step": step, "loss": loss}


def _errors(ended: Sequence[FrozenTrial]) -> list[str]:
    failed = [one for one in ended if one.state == TrialState.FAIL]
    return [f"{_name(one)}: {one.user_attrs.get('error', 'the worker died')}" for one in failed[-MAX_ERRORS:]]


def _name(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("key", trial.number))
