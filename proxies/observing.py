"""What `train` carries along where `RunOptions` asks for diagnostics or coordinates; nothing where it does not."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from widthwise.proxies.coordinates import Coordinates
from widthwise.proxies.outcome import Diagnostics, RunOptions
from widthwise.proxies.recorder import Recorder

# Sequences of validation tokens.
SEQUENCES = 4


class Observers:
    """A run's `Recorder` and `Coordinates`, and their place in its checkpoints.

    Args:
        model: the model itself, before its first step.
        optimizer: that trains it.
        inputs: returns the tokens on which gains and coordinates are measured.
        options: the run's.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, inputs: Callable[[], Tensor], options: RunOptions
    ) -> None:
        self.model, self.optimizer, self.inputs = model, optimizer, inputs
        self.recorder = Recorder(model, optimizer) if options.diagnostics else None
        self.coordinates = Coordinates(model, inputs()) if options.coordinates else None

    def after_step(self, *, sample: bool) -> None:
        """See an optimizer step while its gradients are there; `sample` as in `Recorder.after_step`."""
        if self.recorder is not None:
            self.recorder.after_step(sample=sample)
        if self.coordinates is not None:
            self.coordinates.after_step()

    def diagnostics(self) -> Diagnostics | None:
        return None if self.recorder is None else self.recorder.diagnostics(self.inputs())

    def deltas(self) -> dict[str, list[float]] | None:
        return None if self.coordinates is None else self.coordinates.deltas

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs for the same measurements after a resumption."""
        observers = {"diagnostics": self.recorder, "coordinates": self.coordinates}
        return {name: one.state_dict() for name, one in observers.items() if one is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the weights were loaded; what was off before has its laws begin here, but no coordinates."""
        if self.recorder is not None:
            self.recorder = Recorder(self.model, self.optimizer)
            if "diagnostics" in state:
                self.recorder.load_state_dict(state["diagnostics"])
        if self.coordinates is not None:
            if "coordinates" in state:
                self.coordinates.load_state_dict(state["coordinates"])
            else:
                self.coordinates = None
