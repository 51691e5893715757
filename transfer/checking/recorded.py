"""``check.json``, read back: the `CheckResult` that wrote it."""

from math import inf
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, model_validator

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.files import read_json, require_schema
from widthwise.proxies.validation import Record
from widthwise.transfer.checking.alternatives import Alternative
from widthwise.transfer.checking.findings import Measured
from widthwise.transfer.checking.judging import Verdict
from widthwise.transfer.checking.observing import Observation
from widthwise.transfer.checking.options import CheckOptions
from widthwise.transfer.checking.running import SCHEMA, CheckResult
from widthwise.transfer.custom_rule import CustomRule
from widthwise.transfer.recipe import Recipe


class _Line(Record):
    # The records within are dataclasses, which strict mode refuses.
    model_config = ConfigDict(extra="ignore", strict=False, allow_inf_nan=True)


class _Checked(_Line):
    """The part of a recipe that was checked."""

    hyperparameters: Hyperparameters
    proxy: GPTConfig
    horizon: Horizon
    own_rule: CustomRule | None = None


class _File(_Line):
    rule: str
    verdict: Verdict
    recipe: _Checked
    options: CheckOptions
    horizons: dict[int, float]
    measured: Measured | None
    alternatives: dict[str, Alternative]
    observations: tuple[Observation, ...]

    @model_validator(mode="after")
    def _has_its_base(self) -> "_File":
        measured = self.measured
        widths = [at.width for at in measured.widths] if measured else []
        if measured and measured.base_width not in widths:
            raise ValueError(f"measured.widths: must hold the base width {measured.base_width}, got {widths}")
        return self


def read_check(path: str | Path) -> CheckResult:
    """Read a ``check.json``: what it says, nothing is computed again.

    Raises:
        ConfigError: the file is missing, damaged, or another program's; the message names the file and the field.
    """
    document = read_json(path, "a check")
    require_schema(document, SCHEMA, path)
    file = _File.parse(_with_ends(document), where=str(path))
    recipe = Recipe(
        hyperparameters=file.recipe.hyperparameters,
        proxy=file.recipe.proxy,
        horizon=file.recipe.horizon,
        rule=file.recipe.own_rule,
    )
    known = {name: getattr(file, name) for name in _File.model_fields if name != "recipe"}
    return CheckResult(recipe=recipe, **known)


_ENDS = {"low": -inf, "high": inf}


def _with_ends(value: Any) -> Any:
    """Return a document with infinity where an interval has no end, which JSON has no number for."""
    if isinstance(value, list):
        return [_with_ends(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"value", *_ENDS}:
        return {key: _ENDS.get(key, item) if item is None else item for key, item in value.items()}
    return {key: _with_ends(item) for key, item in value.items()}
