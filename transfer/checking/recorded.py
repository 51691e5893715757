"""``check.json``, read back: the `CheckResult` that wrote it, its numbers computed again from the observations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.files import read_json, require_schema
from widthwise.proxies.validation import ConfigError, Record
from widthwise.transfer.checking.alternatives import Alternative
from widthwise.transfer.checking.judging import Verdict
from widthwise.transfer.checking.measuring import measure
from widthwise.transfer.checking.observing import Observation
from widthwise.transfer.checking.running import SCHEMA, CheckOptions, CheckResult
from widthwise.transfer.recipe import Recipe


class _Line(Record):
    # What is computed again is not read, and the records within are dataclasses, which strict mode refuses.
    model_config = ConfigDict(extra="ignore", strict=False, allow_inf_nan=True)


class _Checked(_Line):
    """The part of a recipe that was checked."""

    hyperparameters: Hyperparameters
    proxy: GPTConfig
    horizon: Horizon


class _File(_Line):
    rule: str
    verdict: Verdict
    recipe: _Checked
    options: CheckOptions
    horizons: dict[int, float]
    alternatives: dict[str, Alternative]
    observations: tuple[Observation, ...]


def read_check(path: str | Path) -> CheckResult:
    """Read a ``check.json``; the verdict is the one that was given then.

    Raises:
        ConfigError: the file is missing, damaged, or another program's; the message names the file and the field.
    """
    document = read_json(path, "a check")
    require_schema(document, SCHEMA, path)
    file = _File.parse(_with_ends(document), where=str(path))
    base = file.recipe.proxy.width
    if file.observations and base not in _transferred(file.observations):
        raise ConfigError(f"{path}: observations: must hold the transferred setting at width {base}")
    return CheckResult(
        recipe=Recipe(
            hyperparameters=file.recipe.hyperparameters, proxy=file.recipe.proxy, horizon=file.recipe.horizon
        ),
        options=file.options,
        rule=file.rule,
        verdict=file.verdict,
        horizons=file.horizons,
        measured=measure(file.observations, base_width=base) if file.observations else None,
        alternatives=file.alternatives,
        observations=file.observations,
    )


def _transferred(observations: tuple[Observation, ...]) -> set[int]:
    return {one.setting.width for one in observations if one.setting.is_transferred}


def _with_ends(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with infinity where an interval of an alternative has no end: JSON has no such number."""
    found = document.get("alternatives")
    if not isinstance(found, Mapping):
        return dict(document)
    return {**document, "alternatives": {name: _with_change(one) for name, one in found.items()}}


def _with_change(alternative: Any) -> Any:
    change = alternative.get("change") if isinstance(alternative, Mapping) else None
    if not isinstance(change, Mapping):
        return alternative
    ends = {"low": float("-inf"), "high": float("inf")}
    known = {name: value for name, value in change.items() if value is not None}
    return {**alternative, "change": {**ends, **known}}
