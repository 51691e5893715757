"""How sweeps, checks and target runs stand, from their folders alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from widthwise.proxies.files import is_locked, read_json
from widthwise.proxies.pulse import PULSE, last_beat
from widthwise.proxies.storage import Place, RemotePath
from widthwise.proxies.validation import ConfigError
from widthwise.search.status import study_status
from widthwise.search.storage import Storage
from widthwise.transfer.at_hand import at_hand
from widthwise.transfer.reporting.formats import CheckFile, Evidence
from widthwise.transfer.reporting.reading import RunFolder, read_run
from widthwise.transfer.waiting import waiting_for

# What a study writes when it has ended.
_ENDS = ("recipe.json", "check.json")
# A check whose horizon is too short trains nothing, and has no study.
_UNTRAINED: dict[str, Any] = {
    "kind": "check",
    "state": "finished",
    "counts": {},
    "tokens": 0,
    "seconds": 0.0,
    "best": None,
    "front": None,
    "running": [],
    "to_come": 0,
    "seconds_left": None,
    "errors": [],
    "verdict": None,
}


def standing(
    folder: Place, storage: Storage | None = None, *, on_left_out: Callable[[str], object] | None = None
) -> list[dict[str, Any]]:
    """Return how everything in `folder` and its direct subfolders stands, as plain data.

    Of a target run on storage without locks, whether it runs cannot be told: one without a result is *unfinished*.
    `storage` takes the place of the URL that a folder has for a study in a database. A subfolder that cannot be read,
    such as one whose database is away, is left out, and `on_left_out` called with the reason.

    Raises:
        ConfigError: there is nothing, or nothing of it can be read.
    """
    if not isinstance(folder, Path):
        return _standing_remote(folder)
    if not folder.is_dir():
        raise ConfigError(f"folder: {folder} is not a folder")
    places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    found: list[dict[str, Any]] = []
    failures: dict[Path, ConfigError] = {}
    for each in places:
        try:
            part = _part(each, storage)
        except ConfigError as error:
            failures[each] = error
        else:
            found += [] if part is None else [{"folder": str(each), **part}]
    if not found:
        nothing = ConfigError(f"folder: {folder} holds no sweep, check or target run")
        raise next(iter(failures.values()), nothing)
    if on_left_out is not None:
        for each, failure in failures.items():
            on_left_out(f"{each}: {failure}")
    return found


def standing_at_end(folder: Path, study: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a sweep that this process has just finished stands, as `standing` does, by its study at hand."""
    return {"folder": str(folder), **_sweep(folder, {**study, "state": "finished"})}


def _standing_remote(folder: RemotePath) -> list[dict[str, Any]]:
    with at_hand(folder) as copy:
        parts = standing(copy)
        for part in parts:
            inner = Path(part["folder"]).relative_to(copy)
            part["folder"] = str(folder if inner == Path() else folder / str(inner))
            if part["state"] == "interrupted":
                part["state"] = "unfinished"
    return parts


def _part(place: Path, storage: Storage | None) -> dict[str, Any] | None:
    if (place / "plan.json").exists():
        return _target(place, read_run(place))
    study = study_status(place, storage)
    if study is None and (place / "check.json").exists():
        study = _UNTRAINED
    if study is None:
        return None
    # One that was resumed and interrupted has the file of its former end.
    ended = study["state"] != "running" and not study["running"]
    if ended and any((place / end).exists() for end in _ENDS):
        study = {**study, "state": "finished"}
    return _check(place, study) if study["kind"] == "check" else _sweep(place, study)


def _sweep(place: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Return a sweep's study with the finalist that it recommends, with its losses over seeds, once it is finished."""
    recommended = None
    if study["state"] == "finished":
        path = place / "recipe.json"
        evidence = read_json(path, "a recipe").get("evidence") or {}
        finalists = Evidence.parse(evidence, where=f"{path}: evidence").finalists
        recommended = finalists[0].model_dump(mode="json") if finalists else None
    return {**study, "recommended": recommended}


def _check(place: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Return a check's study with its verdict once it is finished; a best of runs that it compares has no sense."""
    verdict = None
    if study["state"] == "finished":
        path = place / "check.json"
        verdict = CheckFile.parse(read_json(path, "a check"), where=str(path)).verdict.sentence
    return {**study, "best": None, "verdict": verdict}


def _kept_step(place: Path) -> int:
    """Return the step of a target run's latest checkpoint, from which it goes on; 0 where there is none."""
    names = [path.name for path in (place / "checkpoints").glob("step_" + 9 * "[0-9]")]
    return int(max(names, default="step_0").removeprefix("step_"))


def _target(place: Path, run: RunFolder) -> dict[str, Any]:
    last = run.metrics[-1] if run.metrics else None
    horizon = run.plan.horizon if run.plan else None
    tokens = horizon.tokens if horizon else None
    if tokens and horizon and horizon.batch_tokens:
        # A run ends with its last whole batch.
        tokens -= tokens % horizon.batch_tokens
    state = "finished" if run.result else "running" if is_locked(place) else "interrupted"
    beat = last_beat(place / PULSE) if state == "running" else None
    done, speed = run.tokens, last.tokens_per_second if last else None
    if beat and horizon and horizon.batch_tokens:
        # Between two evaluations, or before the first.
        done, speed = max(done, beat.step * horizon.batch_tokens), beat.tokens_per_second or speed
    if state == "interrupted" and horizon and horizon.batch_tokens:
        done = max(done, _kept_step(place) * horizon.batch_tokens)
    left = (tokens - done) / speed if state == "running" and tokens and speed else None
    return {
        "kind": "target",
        "state": state,
        "status": run.result.status if run.result else None,
        "width": run.width,
        "tokens": done,
        "of_tokens": tokens,
        "loss": run.loss,
        "tokens_per_second": speed,
        "seconds_left": None if left is None else round(left, 1),
        "mfu": last.mfu if last else None,
        "workers": beat.workers if beat else None,
        "waiting": waiting_for(place) if state == "running" else None,
        "alarms": run.first_alarms,
    }
