"""The diagnostics that a training run carries along: `Recorder` keeps what the laws and the means need."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from widthwise.kernels import AdamHC, reference
from widthwise.proxies import diagnostics as measure
from widthwise.proxies.config import KINDS, Kind
from widthwise.proxies.noise_laws import advance_variance, update_ratio_law
from widthwise.proxies.outcome import (
    SPECTRUM_SHARES,
    Diagnostics,
    KindDiagnostics,
    ParameterDiagnostics,
    finite,
)
from widthwise.proxies.parts import is_by_rows, local, whole, whole_abs_means, whole_sums
from widthwise.proxies.validation import ConfigError

# measured: an exact top singular value takes 2 ms at this size of the smaller side, and 11 ms at 512 (CPU)
EXACT_UP_TO = 256


class Recorder:
    """Measures a model that AdamHC trains, in any loop; made before the first step, or the laws begin later.

        recorder = Recorder(model, optimizer)
        ...
        optimizer.step()
        recorder.after_step()
        optimizer.zero_grad()
        ...
        print(recorder.diagnostics(inputs).kinds["matrix"])

    The laws take the decay that AdamHC does: with `AdaDecay`, which decays by itself, they are those of no decay. Where
    the parameters are sharded, every worker makes one and calls it alike, and all find the same.

    Args:
        model: the model itself, not a wrapper of it.
        optimizer: over its parameters, in groups that `parameter_groups` made.

    Raises:
        ConfigError: for another optimizer, groups without ``kind``, or parameters that are not the model's.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, _checked(optimizer)
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        if not all(
            parameter in self.names for group in optimizer.param_groups for parameter in group["params"]
        ):
            raise ConfigError("optimizer: must hold the model's parameters and no others for diagnostics")
        self.variances = self._mean_squares()
        self.kappas = self._kappas()
        self.vectors: dict[str, Tensor] = {}
        self.gradient_norm: Any
        self._forget_samples()

    def after_step(self, *, sample: bool = True) -> None:
        """Go on with the laws; called between ``optimizer.step()`` and ``zero_grad()``.

        Args:
            sample: whether to measure this step's updates and gradients too, which reads the whole model.
        """
        for name, weight, group in self._members():
            strength = self._strength(weight, group) * (self.kappas[name] or 0.0)
            self.variances[name] = advance_variance(self.variances[name], float(group["lr"]), strength)
        if sample:
            self._sample()

    def diagnostics(self, inputs: Tensor | None = None) -> Diagnostics:
        """Measure the weights, and average what was sampled since the last call.

        Args:
            inputs: what the model takes; None leaves out the gains.
        """
        self.kappas = self._kappas()
        gains = {} if inputs is None else measure.gains(self.model, inputs)
        squares = self._mean_squares()
        parameters = {
            name: self._parameter(name, weight, group["kind"], squares[name], gains.get(name))
            for name, weight, group in self._members()
        }
        gradient_norm = _mean(self.gradient_norm, self.samples)
        self._forget_samples()
        return Diagnostics(parameters=parameters, kinds=by_kind(parameters), gradient_norm=gradient_norm)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs for the same diagnostics after a resumption."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, which may lie on another device."""
        device = next(iter(self.names)).device
        for name in _STATE:
            setattr(self, name, _moved(state[name], device))

    def _members(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Yield name, weight and group of every parameter that is not empty."""
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                if weight.numel() > 0:
                    yield self.names[weight], weight, group

    def _strength(self, weight: Tensor, group: dict[str, Any]) -> float:
        """Return τ of the last step, without κ̂."""
        scale = self.optimizer.state.get(weight, {}).get("decay_scale", 1.0)
        peak = float(group["max_lr"]) if group["corrected"] else None
        return reference.decay_strength(float(group["lr"]), group["weight_decay"], scale, peak)

    @torch.no_grad()
    def _mean_squares(self) -> dict[str, float]:
        members = list(self._members())
        parts = torch.stack([measure.norm(local(weight)).square() for _, weight, _ in members])
        sums = whole_sums(parts, [weight for _, weight, _ in members]).tolist()
        return {name: one / weight.numel() for one, (name, weight, _) in zip(sums, members, strict=True)}

    @torch.no_grad()
    def _kappas(self) -> dict[str, float | None]:
        """Return κ̂ at the present weights and thresholds; 1 where nothing is clipped, None without decay."""
        members = {name: (weight, group) for name, weight, group in self._members()}
        kappas = {name: None if _is_idle(group) else 1.0 for name, (_, group) in members.items()}
        clipped = {
            name: (weight, group)
            for name, (weight, group) in members.items()
            if kappas[name] and group["decay"] != "l2" and math.isfinite(group["huber_c"])
        }
        if clipped:
            levels, weights = self._levels(clipped), [weight for weight, _ in clipped.values()]
            parts = [
                measure.decay_sums(local(weight), group["huber_c"] * level.to(weight.dtype))
                for level, (weight, group) in zip(levels, clipped.values(), strict=True)
            ]
            sums = whole_sums(torch.stack(parts), weights)
            kappas.update(zip(clipped, map(finite, (sums[:, 0] / sums[:, 1]).tolist()), strict=True))
        return kappas

    def _levels(self, members: Mapping[str, tuple[Tensor, dict[str, Any]]]) -> list[Tensor]:
        """Return what the thresholds are multiples of: the moving averages where there are any, or mean |θ|."""
        weights = [weight for weight, _ in members.values()]
        known = [self.optimizer.state.get(weight, {}).get("threshold_ema") for weight in weights]
        means = whole_abs_means([weight.detach() for weight in weights]).unbind()
        return [mean if level is None else level for level, mean in zip(known, means, strict=True)]

    @torch.no_grad()
    def _sample(self) -> None:
        """Add this step's ratios to the sums, on the weights' device, so that nothing waits for it."""
        members = [
            (name, weight, group)
            for name, weight, group in self._members()
            if weight.grad is not None and "step" in self.optimizer.state.get(weight, {})
        ]
        self.samples += 1
        if not members:
            return
        squares = torch.stack([self._squares(weight, group) for _, weight, group in members])
        updates, gradients, sizes = whole_sums(squares, [weight for _, weight, _ in members]).unbind(dim=1)
        ratios = torch.stack((updates, gradients), dim=1).sqrt() / sizes.sqrt()[:, None]
        for (name, _, group), own in zip(members, ratios.unbind(), strict=True):
            self.ratios[name] = self.ratios.get(name, 0.0) + own
            law = update_ratio_law(self.variances[name], float(group["lr"]), group["betas"][0])
            self.update_laws[name] = self.update_laws.get(name, 0.0) + law
        self.gradient_norm = self.gradient_norm + gradients.sum().sqrt()

    def _squares(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Return Σ(ηu)², Σg² and Σθ² over this worker's part, shape (3,), float64."""
        assert weight.grad is not None
        state = {
            name: local(value) if isinstance(value, Tensor) else value
            for name, value in self.optimizer.state[weight].items()
        }
        update = float(group["lr"]) * measure.update_norm(state, group["betas"], group["eps"])
        gradient = measure.norm(local(weight.grad, weight))
        return torch.stack((update, gradient, measure.norm(local(weight)))).square()

    def _forget_samples(self) -> None:
        self.samples = 0
        self.gradient_norm = 0.0
        self.ratios: dict[str, Any] = {}
        self.update_laws: dict[str, float] = {}

    def _parameter(
        self, name: str, weight: Tensor, kind: Kind, mean_square: float, gain: float | None
    ) -> ParameterDiagnostics:
        update, gradient = [_mean(one, self.samples) for one in self.ratios.get(name, (math.nan, math.nan))]
        top, spectrum = self._singular_values(name, weight)
        return ParameterDiagnostics(
            kind=kind,
            size=weight.numel(),
            rms=finite(math.sqrt(mean_square)),
            rms_law=finite(math.sqrt(self.variances[name])),
            update_ratio=update,
            update_ratio_law=_mean(self.update_laws.get(name, math.nan), self.samples),
            gradient_to_weight=gradient,
            top_singular_value=top,
            spectrum=spectrum,
            gain=finite(gain),
            kappa=self.kappas[name],
        )

    @torch.no_grad()
    def _singular_values(self, name: str, weight: Tensor) -> tuple[float | None, list[float] | None]:
        """Return σ₁ of a matrix, and the spectrum where all of it was had for σ₁."""
        if weight.ndim < 2:
            return None, None
        rows = weight.shape[0]
        if min(rows, weight.numel() // rows) > EXACT_UP_TO:
            return self._top(name, weight.detach()), None
        values = measure.singular_values(whole(weight.detach()).flatten(1))
        top = finite(float(values[0]))
        return top, None if top is None else measure.spectrum(values, SPECTRUM_SHARES)

    def _top(self, name: str, weight: Tensor) -> float | None:
        """Return σ₁ by a power iteration; each worker multiplies by its own rows."""
        if not is_by_rows(weight):
            weight = whole(weight)

        def total(part: Tensor) -> Tensor:
            return whole_sums(part[None], [weight])[0]

        matrix = local(weight).flatten(1)
        self.vectors[name] = measure.power_iteration(matrix, self.vectors.get(name), total=total)
        return finite(math.sqrt(float(total(measure.norm(matrix @ self.vectors[name]).square()))))


_STATE = ("variances", "kappas", "vectors", "samples", "gradient_norm", "ratios", "update_laws")


def by_kind(parameters: Mapping[str, ParameterDiagnostics]) -> dict[Kind, KindDiagnostics]:
    """Return the size-weighted means of each kind that there is."""
    there = {kind: [one for one in parameters.values() if one.kind == kind] for kind in KINDS}
    return {kind: _kind(members) for kind, members in there.items() if members}


def _kind(members: list[ParameterDiagnostics]) -> KindDiagnostics:
    def mean(values: Iterable[float | None]) -> float | None:
        pairs = [(value, one.size) for value, one in zip(values, members, strict=True) if value is not None]
        total = sum(size for _, size in pairs)
        return math.fsum(value * size for value, size in pairs) / total if pairs else None

    plain = ("rms", "update_ratio", "gradient_to_weight", "top_singular_value", "gain", "kappa")
    return KindDiagnostics(
        **{name: mean(getattr(one, name) for one in members) for name in plain},
        rms_ratio=mean(_ratio(one.rms, one.rms_law) for one in members),
        update_ratio_over_law=mean(_ratio(one.update_ratio, one.update_ratio_law) for one in members),
    )


def _checked(optimizer: Optimizer) -> AdamHC:
    if not isinstance(optimizer, AdamHC):
        raise ConfigError(f"optimizer: must be AdamHC for diagnostics, got {type(optimizer).__name__}")
    for index, group in enumerate(optimizer.param_groups):
        if group.get("kind") not in KINDS:
            rule = "must have the kind that parameter_groups gives it, for diagnostics"
            raise ConfigError(f"optimizer: group {index} {rule}, got {group.get('kind')!r}")
    return optimizer


def _is_idle(group: Mapping[str, Any]) -> bool:
    return bool(group["decay"] == "none" or group["weight_decay"] == 0)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _mean(total: Tensor | float, count: int) -> float | None:
    return finite(float(total) / count) if count else None


def _ratio(value: float | None, law: float | None) -> float | None:
    return None if value is None or not law else value / law
