"""Alarms in words; imports nothing heavy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAMES = {
    "rms": "RMS of the {kind} weights",
    "update_ratio": "update ratio of the {kind} weights",
    "gain": "gain of the {kind} weights",
    "gradient_norm": "gradient norm",
    "loss": "validation loss",
}


def told(alarm: Mapping[str, Any], known: set[tuple[str, str]] | None = None) -> str:
    """Return an alarm, as plain data, in one line.

    Args:
        alarm: `widthwise.transfer.watching.alarms.Alarm` as a dictionary.
        known: causes and advice that were told before and are not repeated; this alarm's is added.
    """
    where = "above" if alarm["value"] > alarm["high"] else "below"
    bound = alarm["high"] if where == "above" else alarm["low"]
    found = f"{_name(alarm)} {alarm['value']:.4g}, {where} the proxies' band at {bound:.4g}"
    why = alarm["cause"], alarm["advice"]
    cause = "as above" if known is not None and why in known else "; ".join(why)
    if known is not None:
        known.add(why)
    return f"alarm at step {alarm['step']}: {found}; likely cause: {cause}"


def told_all(alarms: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each alarm, with a cause that several share in the first of them."""
    known: set[tuple[str, str]] = set()
    return [told(alarm, known) for alarm in alarms]


def told_in_short(alarms: Sequence[Mapping[str, Any]]) -> str:
    """Return what left its band and the likely causes, without values, in half a line; nothing of no alarms."""
    names, causes = map(_name, alarms), dict.fromkeys(alarm["cause"] for alarm in alarms)
    return f"{', '.join(names)}: {'; '.join(causes)}" if alarms else ""


def first_of_each(alarms: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the first alarm of every quantity and kind."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for alarm in alarms:
        first.setdefault((alarm["quantity"], alarm["kind"]), dict(alarm))
    return list(first.values())


def _name(alarm: Mapping[str, Any]) -> str:
    return _NAMES[alarm["quantity"]].format(kind=alarm["kind"])
