"""What torch wraps around `Optimizer.step`, paid for only while somebody watches."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.autograd import _profiler_enabled
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


def watched(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `step` as torch does, to be passed by without a profiler or hooks: 7 µs, a tenth of a proxy's step."""
    full = Optimizer.profile_hook_step(step)

    @wraps(step)
    def wrapper(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        watchers = (
            _profiler_enabled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )
        return (full if watchers else step)(self, *args, **kwargs)

    return wrapper
