"""A checkpoint is one file: written whole or not at all, and refused by a run that it does not belong to.

Of a run on sharded parameters, or on a changing number of workers, it is a folder:
`widthwise.proxies.sharded_checkpoint`.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import nn

from widthwise.proxies.files import replacing
from widthwise.proxies.storage import Place
from widthwise.proxies.validation import ConfigError, first_line


class DamagedCheckpoint(ConfigError):
    """A checkpoint that cannot be read."""


Progress = dict[str, Any]


class FileCheckpoint:
    """The checkpoint of a run whose weights and optimizer state every worker holds; the first one writes it."""

    def __init__(self, path: Path, *, rank: int, device: torch.device) -> None:
        self._path, self._rank, self._device = path, rank, device
        if rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write it; `progress` is tensors and plain data, an ``identity`` and a ``step`` among them."""
        if self._rank == 0:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}
            save_checkpoint(self._path, {**parts, **progress})

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any]
    ) -> Progress | None:
        """Load it and return its progress, or None where there is none; the optimizer's options stay."""
        if not self._path.exists():
            return None
        state = load_checkpoint(self._path, identity, self._device)
        try:
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise another_model(self._path) from error
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        return state

    def finish(self) -> None:
        """There is nothing to wait for."""


def another_model(path: Place) -> ConfigError:
    """Return the error of a checkpoint that has other weights than the model."""
    return ConfigError(f"checkpoint: {path} was made with another model; use another folder")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain data) to `path` through a temporary name, flushed and renamed.

    Its folder is made where that is missing, but not the one above: who removes or moves that means it.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the earlier file stays.
    """
    path.parent.mkdir(exist_ok=True)
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        # torch's own complaint, of an unexpected position, hides what the disk said.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_checkpoint(path: Place, identity: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Read a checkpoint whose ``identity`` equals `identity`.

    Raises:
        DamagedCheckpoint: where the file is damaged.
        ConfigError: where it was made with another horizon, context, seed or data.
    """
    try:
        source = path if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        _require_whole(source)
        if not isinstance(source, Path):
            source.seek(0)
        state: dict[str, Any] = torch.load(source, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise DamagedCheckpoint(
            f"checkpoint: {path} cannot be read ({first_line(error)}); remove it to start anew"
        ) from error
    require_identity(path, state, identity)
    return state


def require_identity(path: Place, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise a ConfigError where the checkpoint was made by another run."""
    if "identity" not in state:
        raise ConfigError(f"checkpoint: {path} holds something else; use another folder")
    for name, expected in identity.items():
        found = state["identity"].get(name)
        if found != expected and name == "data":
            # Fingerprints, which say nothing to a reader.
            raise ConfigError(f"data: must hold the tokens that {path} was made with, but differs")
        if found != expected:
            raise ConfigError(
                f"checkpoint: {path} was made with {name} = {found}, not {expected}; use another folder"
            )


def _require_whole(source: Path | IO[bytes]) -> None:
    """Compare every checksum in the file: torch writes them, and does not look at them."""
    with ZipFile(source) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BadZipFile(f"{damaged} is damaged")
