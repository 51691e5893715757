"""The coordinate check's measurement: how far each layer's output moves in the first steps (µP, arXiv 2203.03466).

Under µP the change of every coordinate after a given step has the same size at every width, as long as no weight
decay that depends on the width has a part in it.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from widthwise.proxies.diagnostics import forward
from widthwise.proxies.spectra import block_name
from widthwise.proxies.validation import ConfigError, nearest

STEPS = 10
OUTPUT = "logits"


class Coordinates:
    """Follows rms(h_t − h_0), h_t the output of a layer on fixed inputs after t steps, over the first ten.

    Args:
        model: the model before its first step, and itself, not a wrapper of it.
        inputs: what it takes; the outputs on them are kept until the tenth step.
        layers: module names or glob patterns; the embeddings and the blocks unless given. The model's own
            output is always followed, as ``logits``.

    Raises:
        ConfigError: where a pattern matches no module.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, layers: Sequence[str] | None = None) -> None:
        self.model, self.inputs = model, inputs
        self.layers = _layers(model) if layers is None else _matched(model, layers)
        self.start = outputs(model, inputs, self.layers)
        self.deltas: dict[str, list[float]] = {name: [] for name in self.start}

    def after_step(self) -> None:
        """Measure, where this was one of the first ten steps."""
        if not self.start:
            return
        for name, output in outputs(self.model, self.inputs, self.layers).items():
            self.deltas[name].append(float((output - self.start[name]).square().mean().sqrt()))
        if len(self.deltas[OUTPUT]) == STEPS:
            self.start = {}


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the outputs of the modules of these names, and of the model as ``logits``, float32 or wider.

    The forward pass is one of evaluation. Of a module that returns several tensors the first is taken; of one that
    is called several times, the last.
    """
    found: dict[str, Tensor] = {}

    def keeping(name: str) -> Any:
        def keep(module: nn.Module, arguments: object, output: Any) -> None:
            found[name] = _first(output)

        return keep

    handles = [model.get_submodule(name).register_forward_hook(keeping(name)) for name in layers]
    try:
        found[OUTPUT] = _first(forward(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _first(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    # A copy: what follows may change it in place.
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def _layers(model: nn.Module) -> list[str]:
    """Return the names of the embeddings and of the blocks: modules that are the outermost number of their name."""
    return [
        name
        for name, module in model.named_modules()
        if name and (isinstance(module, nn.Embedding) or block_name(name) == name)
    ]


def _matched(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"layers: pattern {pattern!r} matches no module{nearest(pattern, names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
