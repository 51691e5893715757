"""Alarms in words; imports nothing heavy."""

from collections.abc import Iterable, Mapping
from typing import Any

_NAMES = {
    "rms": "RMS of the {kind} weights",
    "update_ratio": "update ratio of the {kind} weights",
    "gain": "gain of the {kind} weights",
    "gradient_norm": "gradient norm",
    "loss": "validation loss",
}


def told(alarm: Mapping[str, Any]) -> str:
    """Return an alarm, as plain data, in one line."""
    name = _NAMES[alarm["quantity"]].format(kind=alarm["kind"])
    where = "above" if alarm["value"] > alarm["high"] else "below"
    bound = alarm["high"] if where == "above" else alarm["low"]
    found = f"{name} {alarm['value']:.4g}, {where} the proxies' band at {bound:.4g}"
    return f"alarm at step {alarm['step']}: {found}; likely cause: {alarm['cause']}; {alarm['advice']}"


def first_of_each(alarms: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the first alarm of every quantity and kind."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for alarm in alarms:
        first.setdefault((alarm["quantity"], alarm["kind"]), dict(alarm))
    return list(first.values())
