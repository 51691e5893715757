"""AdamHC as a `torch.optim.Optimizer`: it keeps the books; `widthwise.kernels.reference` has the formulas."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from widthwise.kernels import backends, cpu, cuda, reference, sharding, validation
from widthwise.kernels.means import WeightMeans
from widthwise.kernels.reference import Batch, Decay
from widthwise.kernels.sharding import Shards

Work = list[
    tuple[dict[str, Any], list[Tensor]]
]  # groups with those of their parameters that are to be updated


class AdamHC(Optimizer):
    """AdamW with Huber weight decay (AdamHD, arXiv 2511.14721) and the AdamC correction (arXiv 2506.02285).

    A drop-in for `torch.optim.AdamW`: with ``decay="l2"`` it is AdamW. The update, with its equation
    numbers, is in the docstring of `widthwise.kernels.reference`. All options but `clip_norm` and `backend`
    may differ per group.

    State per parameter, after its first step: `step` (0-dim float32 on CPU), `exp_avg` and `exp_avg_sq` (as
    the parameter); with a Huber decay, 0-dim in the parameter's dtype, `abs_mean` (the last finite mean of
    the absolute weights), `nonfinite` (1 while that of the present weights is NaN or infinite, so that the
    threshold is held) and, with ``threshold="ema"``, `threshold_ema`; and `decay_scale`, a float, where
    `set_decay_scale` set one.

    The mean of the updated weights serves the next step. It is measured anew at a parameter's first step,
    after `load_state_dict`, a copy or unpickling, and after an edit of the weights from outside, which
    shows in the tensor's version counter or its address. An edit *through* ``param.data`` in place shows in
    neither: call `remeasure` after it.

    `grad_scale` and `found_inf`, which `torch.amp.GradScaler` sets, are honoured; a skipped step advances
    nothing.

    Args:
        params: dense float32 or float64 parameters, named or not, or groups of them; empty ones are passed
            over.
        lr: learning rate η, a float or a 0-dim tensor; may follow any scheduler.
        betas: β1 and β2.
        eps: ε, added after the bias-corrected square root.
        weight_decay: λ, multiplied by the learning rate as in `torch.optim.AdamW`.
        decay: "none", "l2", "huber" (the old weights are clipped) or "huber-prox" (the proximal step).
        huber_c: the threshold in units of the mean absolute weight; infinity is no threshold. May be None
            where `decay` is not a Huber one.
        threshold: "mean", or "ema" to smooth the mean with `threshold_beta`.
        threshold_beta: β0.
        corrected: multiply the decay by lr/max_lr; for weights that are followed by a normalisation.
        max_lr: the group's peak learning rate; defaults to its `lr` at construction.
        clip_norm: scale the gradients down to this global norm over all groups, leaving `param.grad` as it
            is. Infinity computes `grad_norm` and clips nothing.
        backend: "auto", "cuda", "cpu" or "reference". The first two are compiled at their first use on a
            machine; "auto" is "cuda" or "cpu" where all parameters are there and that succeeds, else the
            reference. They take contiguous float32 parameters; any other is always updated by the reference.

    Attributes:
        backend: the back end in use, "cuda", "cpu" or "reference".
        grad_norm: norm of the (unscaled) gradients before clipping at the last step, a 0-dim tensor; None
            where it was not computed, that is without `clip_norm` or, but for "cuda", after a skipped step.

    Raises:
        ValueError: if an argument is outside its range, or a parameter is half precision, complex or not summed yet
            (a DTensor with `Partial` placements), or `backend` cannot be had.
    """

    # GradScaler then sets grad_scale and found_inf, and unscales nothing itself.
    _step_supports_amp_scaling = True

    backend: str
    grad_norm: Tensor | None
    _means: WeightMeans
    _plan: cpu.Plan | cuda.Plan | None
    _shards: Shards | None
    _is_sharded: bool

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay: Decay = "huber",
        huber_c: float | None = 2.0,
        threshold: Literal["mean", "ema"] = "mean",
        threshold_beta: float = 0.99,
        corrected: bool = False,
        max_lr: float | None = None,
        clip_norm: float | None = None,
        backend: Literal["auto", "cuda", "cpu", "reference"] = "auto",
    ) -> None:
        validation.check_clip_norm(clip_norm)
        self.clip_norm = clip_norm
        self._begin_books()
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decay": decay,
            "huber_c": huber_c,
            "threshold": threshold,
            "threshold_beta": threshold_beta,
            "corrected": corrected,
            "max_lr": max_lr,
        }
        super().__init__(params, defaults)
        self.backend = backends.resolve(backend, self._params())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not give are the constructor's, and `max_lr` None is its own `lr`.

        Raises:
            ValueError: if an option or a parameter is refused; no group is added then.
        """
        group = {**self.defaults, **param_group}
        if group["max_lr"] is None:
            group["max_lr"] = float(group["lr"])
        validation.check_options(group)
        super().add_param_group(group)
        try:
            for param in group["params"]:
                validation.check_parameter(param)
        except ValueError:
            self.param_groups.pop()
            raise
        self._is_sharded = self._is_sharded or any(map(sharding.is_sharded, group["params"]))

    def set_decay_scale(self, multipliers: Mapping[Tensor, float]) -> None:
        """Multiply λ of single tensors, for AlphaDecay and the like; kept in the state dict.

        Raises:
            ValueError: if a key is no parameter of this optimizer or a multiplier is not finite and >= 0;
                nothing is set then.
        """
        own = {param for group in self.param_groups for param in group["params"]}
        for param, multiplier in multipliers.items():
            if param not in own:
                shape = tuple(param.shape)
                raise ValueError(
                    f"decay_scale: must be for parameters of this optimizer, got a tensor of shape {shape}"
                )
            validation.check_decay_scale(multiplier)
        for param, multiplier in multipliers.items():
            self.state[param]["decay_scale"] = float(multiplier)
        self.refresh()

    def refresh(self) -> None:
        """Bring changed options of the groups to the device: needed before a replay of a captured step only."""
        if isinstance(self._plan, cuda.Plan):
            self._plan.refresh()

    def remeasure(self) -> None:
        """Measure the weights anew before the next step; needed only after an edit through ``param.data``."""
        if self._shards is not None:
            self._shards.settle()
        self._means, self._plan, self._shards = WeightMeans(), None, None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step for every parameter that has a gradient; return what `closure` returns.

        Raises:
            ValueError: if a gradient is sparse or complex; nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.grad_norm = None
        shards = self._present_shards()
        if self._is_skipped(shards):
            return loss
        if shards is not None:
            self.grad_norm = shards.step(self.clip_norm)
            return loss
        plan, rest = self._divide()
        grads = [] if plan is None else plan.gradients()
        factor = self._gradient_factor()
        if plan is not None:
            plan.run(grads, factor, getattr(self, "found_inf", None))
        for group, params in rest:
            for alike in _alike(params):
                self._step_alike(group, alike, factor)
        return loss

    def trust(self, params: Sequence[Tensor]) -> None:
        """Take it that the states have the means of the present weights, whoever measured them."""
        self._means.trust(params)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; of sharded parameters `exp_avg` and `exp_avg_sq` are DTensors, sharded alike."""
        if self._shards is not None:
            self._shards.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of AdamHC or `torch.optim.AdamW`; options it does not have stay as they are."""
        options = [{name: group[name] for name in self.defaults} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, present in zip(self.param_groups, options, strict=True):
            for name, value in present.items():
                group.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Add what copies and pickles need; not the means' book, so that a copy measures its own weights."""
        if self._shards is not None:
            self._shards.settle()
        return {**super().__getstate__(), "clip_norm": self.clip_norm, "backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, a copy or, as torch calls it, a state dict."""
        super().__setstate__(state)
        self._begin_books()
        if state.get("backend") in backends.FAST:  # from another machine, perhaps
            self.backend = backends.resolve("auto", self._params())

    def _begin_books(self) -> None:
        self.grad_norm, self._shards = None, None
        self._is_sharded = any(map(sharding.is_sharded, self._params()))
        self.remeasure()

    def _params(self) -> Iterator[Tensor]:
        return (param for group in getattr(self, "param_groups", ()) for param in group["params"])

    def _present_shards(self) -> Shards | None:
        """Return what does the steps of sharded parameters; None where there are none."""
        if not self._is_sharded:
            return None
        if self._shards is None or not self._shards.fits():
            self.remeasure()
            backend: Any = self.backend
            self._shards = Shards(self, lambda groups: type(self)(groups, backend=backend))
        return self._shards

    def _is_skipped(self, shards: Shards | None) -> bool:
        """Tell whether GradScaler wants the step skipped; the CUDA back end finds that out on the device."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            return False
        on_device = isinstance(self._plan, cuda.Plan) and all(map(cuda.fits, self._params()))
        return not on_device and (shards.greatest(found_inf) if shards else found_inf).item() != 0

    def _divide(self) -> tuple[cpu.Plan | cuda.Plan | None, Work]:
        """Return the plan for parameters that fit the fast back end, and what is left to the reference."""
        if self._plan is not None:
            if self._plan.holds(self.param_groups, self.state):
                return self._plan, []
            self._means.trust(self._plan.untouched())
            self._plan = None
        if self.backend == "cuda":
            cuda.check_not_capturing()
        work = [(group, _with_gradient(group["params"])) for group in self.param_groups]
        fast = backends.FAST.get(self.backend)
        if fast is None:
            return None, work
        fitting = [
            self._work(fast, group, [param for param in params if fast.fits(param)]) for group, params in work
        ]
        rest = [(group, [param for param in params if not fast.fits(param)]) for group, params in work]
        complete = not any(params for _, params in rest)
        self._plan = fast.Plan(self.param_groups, self.state, fitting, complete=complete)
        return self._plan, rest

    def _work(self, fast: backends.Backend, group: dict[str, Any], params: list[Tensor]) -> cpu.Work:
        """Give the fast back end parameters of one group, with states that have all it needs."""
        states = [self._state_of(param) for param in params]
        if group["decay"] in validation.HUBER:
            for alike in _alike(params):
                self._means.refresh(group, alike, list(map(self._state_of, alike)), fast.abs_means)
        return cpu.Work(group=group, params=params, states=states)

    def _step_alike(self, group: dict[str, Any], params: list[Tensor], factor: Tensor | None) -> None:
        """Update parameters of one group, device and dtype, by the reference."""
        states = [self._state_of(param) for param in params]
        deltas = []
        if group["decay"] in validation.HUBER:
            self._means.refresh(group, params, states, reference.abs_means)
            deltas = self._means.thresholds(group, states)
        batch = self._batch(group, params, states, deltas, factor)
        means = reference.update(batch)
        for state, step in zip(states, batch.steps, strict=True):
            state["step"].fill_(step)
        if means is not None:
            self._means.remember(params, states, means)

    def _batch(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[dict[str, Any]],
        deltas: list[Tensor],
        factor: Tensor | None,
    ) -> Batch:
        """Collect what one update needs."""
        lr = float(group["lr"])
        peak = float(group["max_lr"]) if group["corrected"] else None
        scales = [state.get("decay_scale", 1.0) for state in states]
        return Batch(
            params=params,
            grads=_gradients(params, factor),
            exp_avgs=[state["exp_avg"] for state in states],
            exp_avg_sqs=[state["exp_avg_sq"] for state in states],
            steps=[int(state["step"].item()) + 1 for state in states],
            lr=lr,
            betas=group["betas"],
            eps=group["eps"],
            decay=group["decay"],
            strengths=[reference.decay_strength(lr, group["weight_decay"], scale, peak) for scale in scales],
            thresholds=deltas,
        )

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        """Return the parameter's state, made at its first step; `decay_scale` may be there before."""
        state: dict[str, Any] = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state

    def _gradient_factor(self) -> Tensor | None:
        """Return what unscales and clips the gradients, as a factor, and set `grad_norm`."""
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        factor = None if grad_scale is None else grad_scale.double().reciprocal().float()
        if self.clip_norm is None:
            return factor
        grads = [param.grad for param in self._params() if param.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        self.grad_norm = norm if factor is None else norm * factor.to(norm.device)
        clip = reference.clip_factor(self.grad_norm, self.clip_norm)
        return clip if factor is None else clip * factor.to(clip.device)


def _with_gradient(params: Iterable[Tensor]) -> list[Tensor]:
    """Pass over parameters without gradient or elements, and check the gradients of the rest."""
    present = [param for param in params if param.grad is not None and param.numel() > 0]
    for param in present:
        validation.check_gradient(param)
    return present


def _alike(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gather parameters by device and dtype."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        alike.setdefault((param.device, param.dtype), []).append(param)
    return list(alike.values())


def _gradients(params: list[Tensor], factor: Tensor | None) -> list[Tensor]:
    """Return the gradients in the parameters' dtype, multiplied by `factor`; `param.grad` stays as it is."""
    grads = [param.grad.to(param.dtype) for param in params if param.grad is not None]
    return grads if factor is None else list(torch._foreach_mul(grads, factor.to(grads[0].device)))
