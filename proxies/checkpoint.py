"""A checkpoint is one file: written whole or not at all, and refused by a run that it does not belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from widthwise.proxies.files import replacing
from widthwise.proxies.validation import ConfigError


class DamagedCheckpoint(ConfigError):
    """A checkpoint that cannot be read."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain data) to `path` through a temporary name, flushed and renamed.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the earlier file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        # torch's own complaint, of an unexpected position, hides what the disk said.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_checkpoint(path: Path, identity: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Read a checkpoint whose ``identity`` equals `identity`.

    Raises:
        DamagedCheckpoint: where the file is damaged.
        ConfigError: where it was made with another horizon, context, seed or data.
    """
    try:
        _require_whole(path)
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).partition("\n")[0]
        raise DamagedCheckpoint(
            f"checkpoint: {path} cannot be read ({reason}); remove it to start anew"
        ) from error
    if "identity" not in state:
        raise ConfigError(f"checkpoint: {path} holds something else; use another folder")
    for name, expected in identity.items():
        found = state["identity"].get(name)
        if found != expected:
            raise ConfigError(
                f"checkpoint: {path} was made with {name} = {found}, not {expected}; use another folder"
            )
    return state


def _require_whole(path: Path) -> None:
    """Compare every checksum in the file: torch writes them, and does not look at them."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BadZipFile(f"{damaged} is damaged")
