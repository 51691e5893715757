"""``widthwise status``: how a sweep, a check or a target run stands."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from widthwise.transfer.commands.options import Flag, Folder, Option, storage_of
from widthwise.transfer.commands.report import say_left_out
from widthwise.transfer.commands.stopping import sweep_resumption


@dataclass(frozen=True, kw_only=True)
class Status:
    """Say how a sweep, a check or a target run stands, while it runs or afterwards."""

    folder: Positional[Folder]
    """Its folder, or one whose subfolders are such: a path, or a URI."""
    storage: Option[str] = None
    """The PostgreSQL database of a study there, where the folder's own URL for it does not do (a password, a move)."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Print what the folder says; nothing in it is changed."""
        from widthwise.transfer.standing import standing

        parts = standing(self.folder, storage_of(self.storage), on_left_out=say_left_out)
        if self.json:
            print(json.dumps({"parts": parts}))
        else:
            print("\n".join(line for part in parts for line in lines(part)))
        return 0


def lines(part: Mapping[str, Any]) -> list[str]:
    """Return what is said of one folder."""
    head = f"{part['folder']}: {part['kind']}, {part['state']}"
    said = _of_target(part) if part["kind"] == "target" else _of_study(part)
    return [head, *said, *_going_on(part)]


def _going_on(part: Mapping[str, Any]) -> list[str]:
    if part["state"] == "finished" and part["kind"] == "sweep":
        return [f"  next: {shlex.join(['widthwise', 'scale', part['folder'], '--width', '1024'])}"]
    if part["state"] != "interrupted":
        return []
    if part["kind"] == "sweep":
        return [f"  go on with: {sweep_resumption(part['folder'])}"]
    return ["  go on with the same command and --resume"]


def _of_target(part: Mapping[str, Any]) -> list[str]:
    from widthwise.transfer.watching.telling import told_all

    of = "" if part["of_tokens"] is None else f" of {part['of_tokens']:,}"
    said = [f"{part['tokens']:,}{of} tokens"]
    if part["loss"] is not None:
        said.append(f"validation loss {part['loss']:.4f}")
    if part["status"] not in (None, "completed"):
        said.append(part["status"])
    if part["tokens_per_second"]:
        said.append(f"{part['tokens_per_second']:,.0f} tokens/s")
    if part["mfu"] is not None:
        said.append(f"MFU {part['mfu']:.1%}")
    if part["workers"]:
        said.append(f"{part['workers']} worker{'s' if part['workers'] > 1 else ''}")
    if part["seconds_left"] is not None:
        said.append(f"{_duration(part['seconds_left'])} left")
    waiting = [f"waiting for nodes: {part['waiting']}"] if part["waiting"] else []
    return [f"  {line}" for line in (", ".join(said), *waiting, *told_all(part["alarms"]))]


def _duration(seconds: float) -> str:
    """Return a time in the unit that leaves two digits or so."""
    for limit, unit, name in ((100.0, 1.0, "s"), (100.0 * 60, 60.0, "min"), (100.0 * 3600, 3600.0, "hours")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def _of_study(part: Mapping[str, Any]) -> list[str]:
    one, verdict = "trial" if part["kind"] == "sweep" else "run", part.get("verdict")
    said = [f"  {verdict}"] if verdict else []
    # What runs in a study that nobody works at has been interrupted with it.
    named = {"running": "running" if part["state"] == "running" else "interrupted"}
    counts = [f"{count} {named.get(status, status)}" for status, count in part["counts"].items()]
    counts += [f"{part['to_come']} to come"] if part["to_come"] else []
    if counts or not verdict:
        total = f"{part['tokens']:,} tokens in {part['seconds']:,.0f} s"
        seconds = part["seconds_left"]
        left = "" if seconds is None else f", about {_duration(seconds)} left"
        said.append(f"  {', '.join(counts) or f'no {one}'}; {total}{left}")
    if part["best"] is not None:
        said.append(f"  best: {one} {_trial(part['best'])}")
    if part.get("recommended") is not None:
        said.append(f"  recommended: {_recommended(part['recommended'])}")
    said += [f"  front: {one} {_trial(each)}" for each in part.get("front") or ()]
    said += [f"  {named['running']}: {one} {_trial(each)}" for each in part["running"]]
    return said + [f"  failed: {one} {error}" for error in part["errors"]]


def _recommended(finalist: Mapping[str, Any]) -> str:
    """Return the setting that a sweep recommends, and its loss over seeds."""
    name = f"trial {finalist['number']}{' (fitted)' if finalist['fitted'] else ''}"
    mean, spread, seeds = finalist["mean"], finalist["spread"], len(finalist["losses"])
    loss = "no mean loss" if mean is None else f"mean loss {mean:.4f}"
    loss += "" if spread is None else f" ± {spread:.4f}"
    tuned = [
        f"{key} {_short(value)}" for key, value in finalist["hyperparameters"].items() if value is not None
    ]
    return ", ".join([name, f"{loss} over {seeds} seed{'' if seeds == 1 else 's'}", *tuned])


def _trial(one: Mapping[str, Any]) -> str:
    """Return the name of a trial or run, its loss, and what else is known of it."""
    loss = "no loss yet" if one["loss"] is None else f"loss {one['loss']:.4f}"
    known = [(name, value) for name, value in one.items() if value is not None]
    rest = [f"{name} {_short(value)}" for name, value in known if name not in ("trial", "loss")]
    return f"{one['trial']}, {', '.join([loss, *rest])}"


def _short(value: Any) -> str:
    return (
        f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
