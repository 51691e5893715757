"""A target run's folder: free for a new run, or that of the run which is gone on with."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from widthwise.proxies.files import read_json
from widthwise.proxies.storage import Place
from widthwise.proxies.validation import ConfigError, difference
from widthwise.search.names import STUDIES


def require_folder(out: Place, document: dict[str, Any], *, resume: bool) -> None:
    """Make a target run's folder, or find in it the run that is gone on with.

    Args:
        out: the folder.
        document: the run's ``plan.json``.
        resume: whether the folder must hold a run, of the same document, or none.

    Raises:
        ConfigError: it holds something else, or cannot be reached or written to.
    """
    path = out / "plan.json"
    there = _present(out, *STUDIES, "plan.json", "recipe.json")
    for name, content in STUDIES.items():
        if name in there:
            raise ConfigError(f"out: {out} holds {content}; name another folder")
    if "plan.json" in there and not resume:
        raise ConfigError(
            f"out: {out} holds a target run already; add --resume to go on with it, or name another folder"
        )
    if resume and "plan.json" not in there:
        raise ConfigError(f"out: {out} holds no target run to resume")
    if not resume and "recipe.json" in there:
        raise ConfigError(f"out: {out} holds a recipe already; name another folder")
    if resume:
        stored = read_json(path, "a plan")
        _require_same(
            *_without_data(_decisive(stored), _decisive(json.loads(json.dumps(document))), out), out
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error.strerror or error})") from None


def _without_data(
    stored: dict[str, Any], document: dict[str, Any], out: Place
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return documents without their data, which must hold the same tokens and may lie in another place.

    A run that was begun before its tokens' fingerprint was kept must name the same place.
    """
    known = stored.pop("data_fingerprint", None), document.pop("data_fingerprint", None)
    if None in known:
        return stored, document
    if known[0] != known[1]:
        raise ConfigError(f"data: must hold the tokens that the run in {out} was started with, but differs")
    return {**stored, "data": None}, {**document, "data": None}


def gone(out: Place) -> str | None:
    """Return what is said of a run whose folder was removed or moved while it ran; None while it is there.

    A file system that fails just now may come back, and storage without folders has none to move.
    """
    with suppress(OSError):
        if isinstance(out, Path) and not (out / "plan.json").exists():
            return f"the run in {out} is not there any more; go on with --resume where it is now"
    return None


# What a user asks for by an option of its own, which decides much else in a plan.
_OPTIONS = (("model", "width"), ("model", "depth"), ("horizon", "batch_tokens"), ("horizon", "tokens"))


def _decisive(document: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's document without the reasons, which another version may word otherwise."""
    kinds = {
        kind: {name: value for name, value in planned.items() if name != "why"}
        for kind, planned in (document.get("kinds") or {}).items()
    }
    return {**document, "kinds": kinds}


def _require_same(stored: dict[str, Any], document: dict[str, Any], out: Place) -> None:
    """Raise a ConfigError that names what a run was asked for otherwise, or the first field in which it differs."""
    stored, document = _without_nulls(stored), _without_nulls(document)
    if stored == document:
        return
    where, was, now = difference("", stored, document)
    if where == "module_decay":
        was, now = (value["method"] if value else "none" for value in (was, now))
    if "." in where:
        for section, name in _OPTIONS:
            pair = [one.get(section, {}).get(name) for one in (stored, document)]
            if pair[0] != pair[1]:
                where, (was, now) = name, pair
                break
    raise ConfigError(f"{where}: must be as the run in {out} was started, {was!r}, got {now!r}")


def _without_nulls(value: Any) -> Any:
    """Return a JSON value without the fields that are null: an option that a later version has was not given."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


def _present(out: Place, *names: str) -> set[str]:
    try:
        return {name for name in names if (out / name).exists()}
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be reached ({error.strerror or error})") from None
