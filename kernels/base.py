"""What AdamHC and SGDC have in common: the books of an optimizer whose decay is decoupled, Huber's or corrected.

It keeps state, groups, means and precision; `widthwise.kernels.reference` has the formulas.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from widthwise.kernels import backends, cuda, gradients, hooks, plan, reference, sharding, validation
from widthwise.kernels.means import WeightMeans
from widthwise.kernels.plan import Plan
from widthwise.kernels.precision import Precision, State, round_stochastically_, weights_of, widened
from widthwise.kernels.records import Rule
from widthwise.kernels.reference import Batch
from widthwise.kernels.sharding import Shards

Work = list[
    tuple[dict[str, Any], list[Tensor]]
]  # groups with those of their parameters that are to be updated


class DecayOptimizer(Optimizer):
    """An optimizer that pulls weights towards zero beside its descent; not for direct use.

    A subclass says by which rule it descends, and how the reference does that.
    """

    # GradScaler then sets grad_scale and found_inf, and unscales nothing itself.
    _step_supports_amp_scaling = True

    _rule: ClassVar[Rule]
    backend: str
    grad_norm: Tensor | None
    _means: WeightMeans
    _plan: Plan | None
    _shards: Shards | None
    _is_sharded: bool

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        options: dict[str, Any],
        *,
        clip_norm: float | None,
        precision: Precision,
        backend: str,
    ) -> None:
        validation.check_defaults(options)
        validation.check_clip_norm(clip_norm)
        validation.check_precision(precision)
        self.clip_norm, self.precision = clip_norm, precision
        self._begin_books()
        super().__init__(params, options)
        self.backend = backends.resolve(backend, self._params())

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        """Update a batch of this group by the reference."""
        raise NotImplementedError

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
        own = set(self._params())
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

    profile_hook_step = staticmethod(hooks.watched)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_disable_dynamo  # a training step that is compiled calls it as it is
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
        fast, rest = self._divide()
        grads = [] if fast is None else fast.gradients()
        factor = self._gradient_factor(fast, grads, rest)
        if fast is not None:
            fast.run(grads, factor, getattr(self, "found_inf", None))
        for group, params in rest:
            for alike in gradients.alike(params):
                self._step_alike(group, alike, factor)
        return loss

    def trust(self, params: Sequence[Tensor]) -> None:
        """Take it that the states have the means of the present weights, whoever measured them."""
        self._means.trust(params)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; of sharded parameters the moments are DTensors, sharded alike."""
        if self._shards is not None:
            self._shards.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this or torch's optimizer; options it does not have stay as they are."""
        options = [{name: group[name] for name in self.defaults} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, present in zip(self.param_groups, options, strict=True):
            for name, value in present.items():
                group.setdefault(name, value)
        # torch has cast the state to the parameters' dtypes, which takes the remainders from a master copy.
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for number, param in zip(numbers, self._params(), strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and self.state[param][name].dtype is not value.dtype:
                    self.state[param][name] = value.to(param.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        """Add what copies and pickles need; not the means' book, so that a copy measures its own weights."""
        if self._shards is not None:
            self._shards.settle()
        own = {name: getattr(self, name) for name in ("clip_norm", "precision", "backend")}
        return {**super().__getstate__(), **own}

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
            self._shards = Shards(self, self._of_parts)
        return self._shards

    def _of_parts(self, groups: list[dict[str, Any]]) -> "DecayOptimizer":
        """Return an optimizer like this one, of this worker's parts of its parameters."""
        other: Any = type(self)(groups)  # type: ignore[call-arg]
        other.precision, other.backend = self.precision, self.backend
        return other  # type: ignore[no-any-return]

    def _is_skipped(self, shards: Shards | None) -> bool:
        """Tell whether GradScaler wants the step skipped; the CUDA back end finds that out on the device."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            return False
        fits = (cuda.fits(param) for param in self._params())
        on_device = isinstance(self._plan, cuda.Plan) and all(fits)
        return not on_device and (shards.greatest(found_inf) if shards else found_inf).item() != 0

    def _divide(self) -> tuple[Plan | None, Work]:
        """Return the plan for parameters that fit the fast back end, and what is left to the reference."""
        if self._plan is not None:
            if self._plan.holds(self.param_groups, self.state):
                return self._plan, []
            self._means.trust(self._plan.untouched())
            self._plan = None
        if self.backend == "cuda":
            cuda.check_not_capturing()
        work = [(group, gradients.with_gradient(group["params"])) for group in self.param_groups]
        fast = backends.FAST.get(self.backend)
        if fast is None:
            return None, work
        fitting, rest = [], []
        for group, params in work:
            fits = list(map(fast.fits, params))
            taken = list(compress(params, fits))
            states = self._prepared(group, taken, fast.abs_means)
            fitting.append(plan.Work(group=group, params=taken, states=states))
            rest.append((group, [param for param, fit in zip(params, fits, strict=True) if not fit]))
        complete = not any(params for _, params in rest)
        self._plan = fast.Plan(
            self.param_groups, self.state, fitting, self._rule, self.precision, complete=complete
        )
        return self._plan, rest

    def _prepared(self, group: dict[str, Any], params: list[Tensor], measure: Any) -> list[State]:
        """Return the parameters' states, with all that a step needs; `decay_scale` may be there before."""
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
            self.precision.settle(param, state, self._rule.moments(group))
        if group["decay"] in validation.HUBER:
            for alike in gradients.alike(params):
                self._means.refresh(group, alike, [self.state[param] for param in alike], measure)
        return states

    def _step_alike(self, group: dict[str, Any], params: list[Tensor], factor: Tensor | None) -> None:
        """Update parameters of one group, device and dtype, by the reference."""
        states = self._prepared(group, params, reference.abs_means)
        huber = group["decay"] in validation.HUBER
        deltas = self._means.thresholds(group, states) if huber else []
        batch = self._batch(group, params, states, deltas, factor)
        self._update(group, batch)
        for state, step in zip(states, batch.steps, strict=True):
            state["step"].fill_(step)
        self._keep(group, params, states, batch)
        if huber:
            self._means.remember(params, states, reference.abs_means(list(map(weights_of, params, states))))

    def _batch(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[State],
        deltas: list[Tensor],
        factor: Tensor | None,
    ) -> Batch:
        """Collect what one update needs; in float32 what is kept in bfloat16."""
        lr = float(group["lr"])
        peak = float(group["max_lr"]) if group["corrected"] else None
        scales = [state.get("decay_scale", 1.0) for state in states]
        names = self._rule.moments(group)
        return Batch(
            params=[widened(weights_of(param, state)) for param, state in zip(params, states, strict=True)],
            grads=gradients.scaled(params, factor),
            moments=[tuple(widened(state[name]) for name in names) for state in states],
            steps=[int(state["step"].item()) + 1 for state in states],
            lr=lr,
            decay=group["decay"],
            strengths=[reference.decay_strength(lr, group["weight_decay"], scale, peak) for scale in scales],
            thresholds=deltas,
        )

    def _keep(self, group: dict[str, Any], params: list[Tensor], states: list[State], batch: Batch) -> None:
        """Round what is kept in bfloat16 from what `batch` has in float32."""
        names = self._rule.moments(group)
        ordinals = {param: ordinal for ordinal, param in enumerate(self._params())}
        updated = zip(params, states, batch.params, batch.moments, batch.steps, strict=True)
        for param, state, weights, moments, step in updated:
            stream = self.precision.stream(ordinals[param])
            if weights is state.get("master"):
                param.copy_(weights)
            elif weights is not param:
                round_stochastically_(param, weights, stream, step, 0)
            for what, (name, moment) in enumerate(zip(names, moments, strict=True), start=1):
                if moment is not state[name]:
                    round_stochastically_(state[name], moment, stream, step, what)

    def _gradient_factor(self, fast: Plan | None, grads: list[Tensor], rest: Work) -> Tensor | None:
        """Return what unscales and clips the gradients, as a factor, and set `grad_norm`."""
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        factor = None if grad_scale is None else grad_scale.double().reciprocal().float()
        if self.clip_norm is None:
            return factor
        norms = [] if fast is None else [fast.grad_norm(grads)]
        left = [param.grad for _, params in rest for param in params if param.grad is not None]
        norm = reference.total_norm([*norms, *left]) if left or not norms else norms[0]
        self.grad_norm = norm if factor is None else norm * factor.to(norm.device)
        clip = reference.clip_factor(self.grad_norm, self.clip_norm)
        return clip if factor is None else clip * factor.to(clip.device)
