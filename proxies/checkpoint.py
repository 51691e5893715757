"""A checkpoint is one file: written whole or not at all, and refused by a run that it does not belong to."""

import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from widthwise.proxies.validation import ConfigError


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain data) to `path` through a temporary name, flushed and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path, identity: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Read a checkpoint whose ``identity`` equals `identity`.

    Raises:
        ConfigError: where the file is damaged, or was made with another horizon, context, seed or data.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"checkpoint: {path} cannot be read ({reason}); remove it to start anew") from error
    for name, expected in identity.items():
        found = state["identity"].get(name)
        if found != expected:
            raise ConfigError(
                f"checkpoint: {path} was made with {name} = {found}, not {expected}; use another folder"
            )
    return state
