"""What stands in the files of sweeps and target runs, as far as a report shows it."""

from typing import Any

from pydantic import ConfigDict

from widthwise.proxies.validation import Record


class Line(Record):
    """One JSON object of a file."""

    # Files may say more than a report shows, and later versions will.
    model_config = ConfigDict(extra="ignore")


class Drawn(Line):
    """What a trial tried; None where it failed before drawing, or where the decay has no such number."""

    lr: float | None = None
    weight_decay: float | None = None
    decay: str | None = None
    huber_c: float | None = None


class TrialLine(Line):
    """A line of ``trials.jsonl``; `curve` holds (step, validation loss)."""

    number: int
    hyperparameters: Drawn
    status: str
    loss: float | None
    width: int | None = None
    seed: int = 0
    tokens: int = 0
    horizon: int | None = None
    seconds: float = 0.0
    confirms: int | None = None
    fitted: bool = False
    error: str | None = None
    curve: tuple[tuple[int, float | None], ...] = ()


class FinalistLine(Line):
    """A setting that was trained with several seeds, as ``widthwise.search.sweeping.SeedLosses`` has it."""

    number: int
    fitted: bool = False
    hyperparameters: Drawn
    losses: dict[str, float | None]
    mean: float | None
    confirmed: float | None = None
    spread: float | None = None


class Evidence(Line):
    """What a sweep leaves in its recipe."""

    finalists: tuple[FinalistLine, ...] = ()
    seed_spread: float | None = None
    best_by_decay: dict[str, float | None] = {}
    at_edge: tuple[str, ...] = ()
    fit: dict[str, Any] | None = None


class PlanKind(Line):
    """One parameter kind of a plan."""

    lr: float
    weight_decay: float
    eps: float
    multipliers: dict[str, float]
    why: str = ""


class PlannedModel(Line):
    """The target's shape."""

    width: int | None = None
    depth: int | None = None


class PlannedHorizon(Line):
    """The target's length."""

    batch_tokens: int | None = None
    tokens: int | None = None
    warmup_fraction: float | None = None
    schedule: str | None = None
    final_fraction: float | None = None
    decay_fraction: float | None = None


class PlannedHyperparameters(Line):
    """What the steady state of weight decay depends on, besides η and λ."""

    betas: tuple[float, float]
    corrected: bool


class PlanFile(Line):
    """``plan.json``: what ``widthwise scale --json`` prints, and what the run added."""

    rule: str
    horizon_rule: str = "none"
    decay_kinds: tuple[str, ...] = ("matrix",)
    ratios: dict[str, float]
    kinds: dict[str, PlanKind]
    residual_multiplier: float = 1.0
    data: str | None = None
    seed: int | None = None
    model: PlannedModel = PlannedModel()
    horizon: PlannedHorizon = PlannedHorizon()
    hyperparameters: PlannedHyperparameters | None = None


class ParameterLine(Line):
    """One parameter's diagnostics, as `widthwise.proxies.outcome.ParameterDiagnostics` has them."""

    kind: str
    size: int
    rms: float | None = None
    rms_law: float | None = None
    update_ratio: float | None = None
    update_ratio_law: float | None = None
    gradient_to_weight: float | None = None
    kappa: float | None = None


class KindLine(Line):
    """One kind's diagnostics, as `widthwise.proxies.outcome.KindDiagnostics` has them."""

    rms: float | None = None
    update_ratio: float | None = None
    gain: float | None = None


class DiagnosticsLine(Line):
    """The diagnostics of one evaluation."""

    parameters: dict[str, ParameterLine]
    kinds: dict[str, KindLine] = {}
    gradient_norm: float | None = None


class MetricsLine(Line):
    """A line of ``metrics.jsonl``; a loss that is no finite number is None."""

    step: int
    tokens: int
    loss: float | None
    train_loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    diagnostics: DiagnosticsLine | None = None


class AlarmLine(Line):
    """A line of ``alarms.jsonl``, as `widthwise.transfer.watching.alarms.Alarm` has it."""

    step: int
    tokens: int
    quantity: str
    kind: str
    value: float
    low: float | None
    high: float
    cause: str
    advice: str


class VerdictLine(Line):
    """What a check says."""

    sentence: str


class CheckFile(Line):
    """``check.json``, as far as one line tells of it; `widthwise.transfer.checking.recorded` reads all."""

    verdict: VerdictLine


class ResultFile(Line):
    """``result.json``: how a run ended."""

    status: str
    loss: float | None
    steps: int
    tokens: int
    seconds: float
    rule: str | None = None
    width: int | None = None
