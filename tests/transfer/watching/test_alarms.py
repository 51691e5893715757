"""Real runs on real text: a sound target raises no alarm, and every broken one the right alarm with its cause."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters, RunOptions
from widthwise.proxies.outcome import Metrics, course
from widthwise.proxies.runs import RunSpec, run
from widthwise.transfer import Plan, Recipe
from widthwise.transfer.watching.alarms import Alarm, Watcher, measured, watch_of
from widthwise.transfer.watching.bands import bands_of
from widthwise.transfer.watching.telling import first_of_each, told

WIDTH, TARGET, STEPS, EVALUATIONS = 32, 128, 64, 8
RECIPE = Recipe(
    hyperparameters=Hyperparameters(lr=0.03, weight_decay=2.0, huber_c=2.0, clip_norm=1.0),
    proxy=GPTConfig(width=WIDTH, depth=1, context=32),
    horizon=Horizon(batch_tokens=512, tokens=512 * STEPS),
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done behind the plan's back."""

    std: float = 1.0
    decay: float = 1.0
    corrected: bool = True
    embedding_std: float = 1.0


def history(plan: Plan, text: Path, fault: Fault | None = None, *, seed: int = 0) -> list[Metrics]:
    fault = fault or Fault()
    settings = {kind: plan.settings(kind) for kind in plan.kinds}
    matrix = settings["matrix"]
    settings["matrix"] = matrix.model_copy(update={"weight_decay": matrix.weight_decay * fault.decay})
    stds = {"matrix_std": plan.model.matrix_std * fault.std, "embedding_std": fault.embedding_std}
    spec = RunSpec(
        model=plan.model.model_copy(update=stds),
        base_width=WIDTH,
        horizon=plan.horizon,
        hyperparameters=plan.hyperparameters.model_copy(update={"corrected": fault.corrected}),
        settings=settings,
        data=str(text),
    )
    options = RunOptions(seed=seed, evaluations=EVALUATIONS, validation_batches=2, diagnostics=True)
    return run(spec, options).history


@pytest.fixture(scope="module")
def promised(real_text: Path) -> Recipe:
    """Return the recipe with the bands of three proxies."""
    torch.set_num_threads(1)
    plan = RECIPE.at(width=WIDTH)
    bands = bands_of({seed: course(history(plan, real_text, seed=seed)) for seed in range(3)}, STEPS)
    assert bands is not None
    return RECIPE.model_copy(update={"evidence": {"bands": bands.model_dump(mode="json")}})


def alarms(plan: Plan, metrics: list[Metrics]) -> list[Alarm]:
    watch = watch_of(plan, evaluations=EVALUATIONS, same_data=True)
    assert watch is not None
    watcher = Watcher(watch)
    return [alarm for one in metrics for alarm in watcher.look(one.step, one.tokens, measured(one))]


def test_a_sound_target_raises_no_alarm(promised: Recipe, real_text: Path) -> None:
    plan = promised.at(width=TARGET)
    assert alarms(plan, history(plan, real_text)) == []


def test_a_rate_that_is_not_scaled_is_seen_at_once_and_named(promised: Recipe, real_text: Path) -> None:
    plan = promised.at(width=TARGET, rule="sp")
    found = alarms(plan, history(plan, real_text))
    assert {("gain", "matrix"), ("gradient_norm", "run")} <= {
        (one.quantity, one.kind) for one in found if one.step <= STEPS // 4
    }
    cause = "η is too high for the width: rule 'sp' gives matrices ×1, µP ×0.25"
    assert {(one.cause, one.advice) for one in found} == {
        (cause, "take a µP rule such as fan-sqrt, or a lower η")
    }
    assert all(one.value > one.high or one.value < (one.low or 0) for one in found)


@pytest.mark.parametrize(
    ("fault", "step", "quantity", "kind", "cause", "advice"),
    [
        (
            Fault(std=4.0),
            16,
            "rms",
            "matrix",
            "the matrices began with about 4 times the plan's standard deviation",
            "draw matrices with the plan's standard deviation, 1/√fan-in",
        ),
        (Fault(decay=0.0), 32, "rms", "matrix", "the matrices do not decay", "give matrices the plan's λ, 4"),
        (
            Fault(corrected=False),
            64,
            "rms",
            "matrix",
            "AdamC's correction of the decay is missing",
            "set corrected=True in the matrices' groups",
        ),
        (
            Fault(embedding_std=0.1),
            16,
            "rms",
            "embedding",
            "initialisation or η of embedding is not the plan's",
            "compare with what widthwise scale prints for this width",
        ),
    ],
    ids=["initialisation", "no decay", "no correction", "embedding"],
)
def test_a_broken_target_is_seen_and_the_fault_named(
    promised: Recipe,
    real_text: Path,
    fault: Fault,
    step: int,
    quantity: str,
    kind: str,
    cause: str,
    advice: str,
) -> None:
    plan = promised.at(width=TARGET)
    found = alarms(plan, history(plan, real_text, fault))
    at = [one for one in found if (one.quantity, one.kind) == (quantity, kind) and one.step <= step]
    assert at, found
    assert {(one.cause, one.advice) for one in found if one.step == step} == {(cause, advice)}


def test_an_alarm_is_one_line(promised: Recipe) -> None:
    watch = watch_of(promised.at(width=TARGET), evaluations=EVALUATIONS, same_data=True)
    assert watch is not None
    watcher, values = Watcher(watch), {("loss", "run"): 9.0}
    assert watcher.look(STEPS - 1, 1, values) == []  # no evaluation of the plan's
    found = [one for step in (32, 64) for one in watcher.look(step, 512 * step, values)]  # far outside
    [first] = first_of_each(map(asdict, found))
    assert first == asdict(found[0])
    line = told(first)
    assert line.startswith("alarm at step 32: validation loss 9, above the proxies' band at ")
    assert line.endswith(
        "; likely cause: no single fault explains it; look at the model, the data and the gradients; "
        "widthwise check says whether the rule holds between proxies"
    )


def test_a_value_a_little_outside_its_band_is_an_alarm_the_second_time(promised: Recipe) -> None:
    watch = watch_of(promised.at(width=TARGET), evaluations=EVALUATIONS, same_data=True)
    assert watch is not None
    [band] = [one for one in watch.bands if one.quantity == "loss"]
    edge = {step: high for step, high in zip(watch.steps, band.high, strict=True) if high is not None}
    watcher = Watcher(watch)

    def look(step: int, share: float) -> list[int]:
        return [one.step for one in watcher.look(step, 512 * step, {("loss", "run"): share * edge[step]})]

    shares = ((16, 1.01), (24, 0.99), (32, 1.01), (40, 1.01), (48, 1.01), (56, 0.99))
    assert [look(*one) for one in shares] == [[], [], [], [40], [48], []]


def test_weights_that_have_gone_are_an_alarm_too(promised: Recipe) -> None:
    watch = watch_of(promised.at(width=TARGET), evaluations=EVALUATIONS, same_data=True)
    assert watch is not None
    [alarm] = Watcher(watch).look(STEPS, 512 * STEPS, {("rms", "embedding"): 0.0})
    assert (alarm.value, alarm.cause) == (0.0, "initialisation or η of embedding is not the plan's")


def test_weights_that_outgrow_their_decay_are_laid_to_its_time(promised: Recipe) -> None:
    watch = watch_of(promised.at(width=TARGET, decay_kinds=()), evaluations=EVALUATIONS, same_data=True)
    assert watch is not None
    [alarm] = Watcher(watch).look(STEPS, 512 * STEPS, {("gain", "matrix"): 9.0})
    told = "λ has no time to act: Σηλ of the matrices is 0 over the run, the proxies had 1.4"
    assert (alarm.cause, alarm.low) == (told, None)
    assert alarm.advice == "raise λ (rule mup-independent keeps ηλ), or train longer"
