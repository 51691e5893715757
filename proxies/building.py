"""A model of the user's own: found by name, built at any width, its code's errors in one line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from widthwise.proxies.config import KindSettings
from widthwise.proxies.references import local_source, referenced
from widthwise.proxies.table import ParameterEntry, ParameterTable
from widthwise.proxies.validation import ConfigError, Record

Build = Callable[[int], nn.Module]


class OwnParameter(KindSettings):
    """A parameter of a user's model: the peak η, λ and ε planned for it.

    Attributes:
        entry: its row in the parameter table.
    """

    entry: ParameterEntry


class OwnModel(Record):
    """A user's model as it travels to workers.

    Attributes:
        build: ``MODULE:FUNCTION``; the function returns the model of a given width.
        folder: where the module is looked for before the places that Python knows, if it exists there.
        parameters: by name.
    """

    build: str
    folder: str
    parameters: dict[str, OwnParameter]

    def module(self, width: int, seed: int) -> nn.Module:
        """Return the model, its initialisation drawn from `seed`."""
        torch.manual_seed(seed)
        return find_build(self.build, Path(self.folder))(width)

    def table(self, width: int, base_width: int) -> ParameterTable:
        """Return the parameter table that the driver read."""
        entries = {name: parameter.entry for name, parameter in self.parameters.items()}
        return ParameterTable(width=width, base_width=base_width, entries=entries)

    def settings(self, entry: ParameterEntry) -> KindSettings:
        """Return η, λ and ε of a row, which decides them."""
        return self._by_entry()[entry]

    def identity(self) -> dict[str, str]:
        """Return what a resumed run must share: the function's name, and a digest of the parameter table."""
        rows = self.model_dump(mode="json")["parameters"]
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        return {"build": self.build, "table": digest[:16]}

    def sources(self) -> list[str]:
        """Return the package or file below its folder that holds the model, to be sent to a cluster."""
        return [str(place) for place in local_source(self.build, Path(self.folder))]

    def _by_entry(self) -> dict[ParameterEntry, KindSettings]:
        return {parameter.entry: parameter for parameter in self.parameters.values()}


def find_build(build: str, folder: Path) -> Build:
    """Return the function that ``MODULE:FUNCTION`` names, its errors told as a user's in one line.

    Args:
        build: the module, which may lie in `folder`, and the function, which takes a width and returns a model.
        folder: searched before the places that Python knows.

    Raises:
        ConfigError: there is no such module or function, or importing the module fails.
    """
    return _guarded(referenced("build", build, folder))


def _guarded(build: Callable[[int], Any]) -> Build:
    def guarded(width: int) -> nn.Module:
        try:
            model = build(width)
        except Exception as error:
            raise ConfigError(f"build: failed at width {width}: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ConfigError(f"build: must return a torch.nn.Module, got {model!r}")
        return model

    return guarded
