"""What `train` carries along where `RunOptions` asks for diagnostics; nothing where it does not."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from widthwise.proxies.data import Tokens
from widthwise.proxies.outcome import Diagnostics, RunOptions
from widthwise.proxies.recorder import Recorder

# Sequences of validation tokens.
SEQUENCES = 4


def observed_tokens(tokens: Tokens, *, batch_size: int, context: int, device: str) -> Tensor:
    """Return some validation tokens, the same ones at every call and on every worker: (sequences, context) int64."""
    observed, _ = next(tokens.validation_batches(1, batch_size=min(batch_size, SEQUENCES), context=context))
    return observed.to(device)


class Observers:
    """A run's `Recorder`, and its place in its checkpoints.

    Args:
        model: the model itself, before its first step.
        optimizer: that trains it.
        inputs: returns the tokens on which gains are measured.
        options: the run's.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, inputs: Callable[[], Tensor], options: RunOptions
    ) -> None:
        self.model, self.optimizer, self.inputs = model, optimizer, inputs
        self.recorder = Recorder(model, optimizer) if options.diagnostics else None

    def after_step(self, *, sample: bool) -> None:
        """See an optimizer step while its gradients are there; `sample` as in `Recorder.after_step`."""
        if self.recorder is not None:
            self.recorder.after_step(sample=sample)

    def diagnostics(self) -> Diagnostics | None:
        return None if self.recorder is None else self.recorder.diagnostics(self.inputs())

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs for the same measurements after a resumption."""
        return {} if self.recorder is None else {"diagnostics": self.recorder.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the weights were loaded; where it was off before, the laws begin here."""
        if self.recorder is not None:
            self.recorder = Recorder(self.model, self.optimizer)
            if "diagnostics" in state:
                self.recorder.load_state_dict(state["diagnostics"])
