"""A step is torch's own wrapping for those who watch it, and the bare function for the rest."""

from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from widthwise.kernels import SGDC, AdamHC


@pytest.mark.parametrize("kind", [AdamHC, SGDC])
def test_hooks_and_the_profiler_see_a_step(kind: Any) -> None:
    theta = torch.ones(3, requires_grad=True)
    theta.grad = torch.ones(3)
    optimizer = kind([theta], backend="reference")
    seen: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: seen.append(name)

    handles = [
        optimizer.register_step_pre_hook(note("before")),
        optimizer.register_step_post_hook(note("after")),
        register_optimizer_step_pre_hook(note("before any")),
        register_optimizer_step_post_hook(note("after any")),
    ]
    for handle in handles:
        optimizer.step()
        handle.remove()
    optimizer.step()
    assert seen == [
        *("before any", "before", "after", "after any"),
        *("before any", "after", "after any"),
        *("before any", "after any"),
        "after any",
    ]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        optimizer.step()
    assert f"Optimizer.step#{kind.__name__}.step" in {event.name for event in profiled.events() or []}
    assert optimizer.state[theta]["step"].item() == 6
