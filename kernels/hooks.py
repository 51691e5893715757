"""What torch wraps around `Optimizer.step`, paid for only while somebody watches."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from torch._C._autograd import _profiler_enabled
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

P = ParamSpec("P")
R = TypeVar("R")


def watched(func: Callable[P, R]) -> Callable[P, R]:
    """Wrap a step as torch does; without a profiler or hooks pass that by: 5 to 7 µs, a tenth of a proxy's step."""
    full = Optimizer.profile_hook_step(func)

    @wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        optimizer = cast(Any, args[0])
        watchers = (
            _profiler_enabled()
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )
        return (full if watchers else func)(*args, **kwargs)

    return wrapper
