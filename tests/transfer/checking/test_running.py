"""The check itself: real training at tiny widths, where a false "holds" is provoked; and what it writes."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import Trial

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.outcome import RunOptions
from widthwise.proxies.runs import coordinate_deltas, run
from widthwise.proxies.validation import ConfigError, RunError
from widthwise.search.grid import Grid, Outcome, Run
from widthwise.search.trial import _measured
from widthwise.transfer import (
    CheckOptions,
    CheckResult,
    Multipliers,
    Ratios,
    Recipe,
    Scaled,
    calibrated,
    rule,
    rules,
    scaled,
)
from widthwise.transfer.checking import running
from widthwise.transfer.checking.alternatives import alternatives, better_rule
from widthwise.transfer.checking.estimates import Estimate
from widthwise.transfer.checking.judging import Verdict, gate, judge
from widthwise.transfer.checking.measuring import measure
from widthwise.transfer.checking.observing import Observation
from widthwise.transfer.checking.rounds import Design, wanted
from widthwise.transfer.checking.running import check
from widthwise.transfer.custom_rule import CustomRule

# λ is high and the runs are short, so that the horizon suffices at little cost.
RECIPE = Recipe(
    hyperparameters=Hyperparameters(lr=0.05, weight_decay=4.0, huber_c=2.0, clip_norm=1.0),
    proxy=GPTConfig(width=16, depth=1, head_dim=8, context=32),
    horizon=Horizon(batch_tokens=256, tokens=256 * 60, schedule="linear"),
)
# As wide as the base of the worlds whose truth is known.
AT_32 = RECIPE.model_copy(update={"proxy": RECIPE.proxy.model_copy(update={"width": 32})})
QUICK = CheckOptions(validation_batches=2)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train one run after the other here: what Ray does with them is tested in tests/search."""

    def run_all(
        more: Callable[[Mapping[str, Outcome]], Sequence[Run]], out: Path, **_: Any
    ) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        while todo := [one for one in more(outcomes) if one.key not in outcomes]:
            outcomes |= {one.key: trained(one) for one in todo}
        return outcomes

    monkeypatch.setattr(running, "run_all", run_all)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(one: Run) -> Outcome:
    chosen = dict(one.options)
    follows = chosen.pop("coordinates")
    result = run(one.spec, RunOptions(seed=one.seed, **chosen))
    deltas = coordinate_deltas(one.spec, RunOptions(seed=one.seed)) if follows else None
    told = json.loads(json.dumps(_measured(result, deltas)), parse_constant=lambda _: None)
    loss = result.loss if math.isfinite(result.loss) else None
    status = "diverged" if loss is None else "completed"
    return Outcome(
        status=status, loss=loss, tokens=result.tokens, seconds=result.seconds, curve=(), measured=told
    )


@rule("mup-without-readout", source="a mistake that people make")
def without_readout(ratios: Ratios) -> Scaled:
    """µP whose logits are not divided by the width."""
    width = ratios.width
    return scaled(matrix=Multipliers(lr=1 / width, weight_decay=width**0.5, init_std=width**-0.5))


@rule("mup-without-rates", source="a mistake that people make")
def without_rates(ratios: Ratios) -> Scaled:
    """µP whose matrices keep their learning rate."""
    return scaled(
        matrix=Multipliers(init_std=ratios.width**-0.5), readout=Multipliers(forward=1 / ratios.width)
    )


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("name", "layer"), [("mup-without-readout", "logits"), ("mup-without-rates", "blocks.0"), ("sp", None)]
)
def test_a_broken_parametrisation_fails_after_the_fewest_runs(
    tmp_path: Path, name: str, layer: str | None
) -> None:
    result = check(RECIPE, tmp_path, QUICK.model_copy(update={"rule": name}))
    assert result.verdict.outcome == "fails"
    reason = result.verdict.reasons[0]
    assert reason.check == "coordinates"
    assert reason.text.endswith("tolerance ±0.1: the parametrisation is broken")
    assert layer is None or f"the change of {layer} in the first steps follows width^+" in reason.text
    assert len(result.observations) == 9
    assert {one.setting.width for one in result.observations} == {16, 32, 64}
    document = json.loads((tmp_path / "check.json").read_text())
    assert document["schema"] == "widthwise/check/1"
    assert document == json.loads(json.dumps(result.as_json()))


@pytest.mark.usefixtures("in_this_process")
def test_what_a_sound_parametrisation_changes_does_not_depend_on_the_width() -> None:
    study = running._Study(RECIPE, QUICK)
    transferred = wanted(study.design, {})
    outcomes = {setting.key: trained(study._run(setting)) for setting in transferred}
    measured = study.result(study.seen(outcomes), None).measured
    assert measured is not None
    assert set(measured.coordinate_slopes) == {"embedding", "blocks.0", "logits"}
    assert all(abs(one.value) < 0.15 for one in measured.coordinate_slopes.values())
    assert not any(one.beyond(0.1) for one in measured.coordinate_slopes.values())
    # Every reading of real runs has arrived.
    assert all(at.top_singular_value and at.kappa and at.rms_ratio for at in measured.widths)
    assert measured.singular_exponent is not None
    assert 0.5 < measured.singular_exponent.value < 1.2
    assert measured.rule_decay_exponent == pytest.approx(0.5)


def test_a_rule_that_takes_all_decay_away_has_no_alternatives(
    carried_out: Callable[..., list[Observation]],
) -> None:
    @rule("undecayed", source="this test")
    def undecayed(ratios: Ratios) -> Scaled:
        """µP without weight decay in wider models."""
        outcome = rules["mup-coupled"](ratios)
        matrix = replace(outcome.kinds["matrix"], weight_decay=float(ratios.width == 1))
        return replace(outcome, kinds={**outcome.kinds, "matrix": matrix})

    runs = carried_out()
    assert {"mup-coupled", "mup-independent"} <= set(alternatives(RECIPE.at(width=128), runs))
    assert alternatives(RECIPE.at(width=128, rule="undecayed"), runs) == {}


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        (
            {"decay_drift": 0.8, "seed_noise": 0.003},
            r"rule 'mup-independent', with 2 times this λ X by 0\.05\d\d Y",
        ),
        (
            {"decay_drift": -0.8, "seed_noise": 0.003},
            r"rule 'mup-coupled', with 0\.5 times this λ X by 0\.05\d\d Y",
        ),
        ({}, ""),
    ],
)
def test_the_rule_that_fits_better_is_the_one_with_the_lower_loss(
    carried_out: Callable[..., list[Observation]], truth: dict[str, float], said: str
) -> None:
    pattern = said.replace("X", "at the largest width, fits better there").replace("Y", "nats per token")
    found = better_rule(alternatives(AT_32.at(width=128), carried_out(**truth)))
    assert re.fullmatch(pattern, found), found


@pytest.mark.parametrize(
    ("truth", "horizons", "finding"),
    [
        ({"decay_drift": 0.8, "seed_noise": 0.003}, {128: 2.0}, ("fails", "regret")),
        ({"decay_drift": 1.5}, {128: 2.0}, ("fails", "drift")),
        (
            {"decay_drift": 0.6, "seed_noise": 0.03, "coordinate_noise": 1.0},
            {128: 2.0},
            ("inconclusive", "coordinates"),
        ),
        ({"decay_drift": 0.8}, {128: 1.0}, ("inconclusive", "horizon")),
        ({"decay_drift": 0.6, "seed_noise": 0.03}, {128: 2.0}, ("holds", "evidence")),
    ],
)
def test_the_rule_that_fits_better_is_said_unless_the_transfer_holds(
    carried_out: Callable[..., list[Observation]],
    design: Callable[..., Design],
    truth: dict[str, float],
    horizons: dict[int, float],
    finding: tuple[str, str],
) -> None:
    seen = {one.setting: one for one in carried_out(design(full=True), **truth)}
    result = running._Study(AT_32, CheckOptions()).result(seen, gate(horizons, 1000))
    verdict, better = result.verdict, better_rule(result.alternatives)
    assert (verdict.outcome, verdict.reasons[0].check) == finding
    assert better.startswith("rule 'mup-independent', with 2 times this λ")
    tail = "" if verdict.outcome == "holds" else f"; {better}"
    assert verdict.sentence == f"{verdict.outcome}: {verdict.reasons[0].text}{tail}"


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_decay_that_was_not_tuned_is_no_ground_for_a_verdict(tmp_path: Path) -> None:
    wrong = {"weight_decay": 16.0, "decay": "l2", "huber_c": None}
    tuned = RECIPE.hyperparameters.model_copy(update=wrong)
    longer = RECIPE.horizon.model_copy(update={"tokens": 256 * 200})
    recipe = RECIPE.model_copy(update={"hyperparameters": tuned, "horizon": longer})
    verdict = check(recipe, tmp_path, CheckOptions()).verdict
    assert verdict.outcome == "inconclusive"
    assert any(one.check == "base" and "λ" in one.text for one in verdict.reasons)


def test_too_short_a_horizon_trains_nothing(tmp_path: Path) -> None:
    result = check(RECIPE, tmp_path / "out", CheckOptions(tokens=256 * 10))
    assert result.verdict.outcome == "inconclusive"
    assert "weight decay has no time to act; tune the recipe over" in result.verdict.sentence
    assert (result.measured, result.observations) == (None, ())
    assert min(result.horizons.values()) == pytest.approx(RECIPE.at(width=64, tokens=256 * 10).decay_horizon)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["check.json"]


@pytest.fixture
def begun(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return the folder of a check of `RECIPE` of which two runs at a width have ended, the recipe's own by default."""
    width = getattr(request, "param", 16)
    study, out = running._Study(RECIPE, QUICK), tmp_path / "begun"
    runs = [study._run(setting) for setting in wanted(study.design, {}) if setting.width == width][:2]
    grid = Grid(lambda _: runs, out, study.identity(), data="", what="check", resume=False)
    for loss in (3.0, 3.1):
        trial = grid.next()
        assert isinstance(trial, Trial)
        grid.finish(
            trial.number, "completed", {"loss": loss, "tokens": 15_360, "seconds": 1.0, "measured": {}}
        )
    grid.close()
    return out


@pytest.mark.parametrize("resume", [False, True])
def test_a_verdict_without_runs_takes_no_other_checks_place(begun: Path, resume: bool) -> None:
    too_short = QUICK.model_copy(update={"tokens": 256 * 10})
    with pytest.raises(ConfigError) as caught:
        check(RECIPE, begun, too_short, resume=resume)
    assert str(caught.value) == (
        f"tokens: must be as the check in {begun} was started, 15360, got 2560"
        if resume
        else f"out: {begun} holds a check already; add --resume to go on with it, or name another folder"
    )
    assert not (begun / "check.json").exists()


@pytest.mark.parametrize(("begun", "kept"), [(16, [(16, 3.05)]), (32, None)], indirect=["begun"])
def test_a_verdict_without_runs_may_come_in_a_check_that_goes_on_at_more_widths(
    begun: Path, kept: list[tuple[int, float]] | None
) -> None:
    # The horizon suffices at widths 16 to 64, and not at 512.
    wider = QUICK.model_copy(update={"widths": (16, 32, 64, 128, 256, 512)})
    result = check(RECIPE, begun, wider, resume=True)
    assert result.verdict.reasons[0].check == "horizon"
    # What was measured before is kept, and tells nothing without the width that the others are compared with.
    measured = result.measured and [(at.width, at.loss) for at in result.measured.widths]
    assert measured == (kept and [(width, pytest.approx(loss)) for width, loss in kept])
    assert json.loads((begun / "check.json").read_text()) == json.loads(json.dumps(result.as_json()))


def test_a_verdict_without_runs_needs_a_folder_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        check(RECIPE, tmp_path / "file", CheckOptions(tokens=256 * 10))
    assert str(caught.value) == f"out: {tmp_path / 'file'} cannot be written (File exists)"


@pytest.mark.usefixtures("in_this_process")
def test_a_full_check_measures_but_the_horizon_keeps_its_word(tmp_path: Path) -> None:
    short = QUICK.model_copy(update={"tokens": 256 * 10, "seeds": 1, "points": 3, "full": True})
    result = check(RECIPE, tmp_path, short)
    assert (result.verdict.outcome, result.verdict.reasons[0].check) == ("inconclusive", "horizon")
    assert result.measured is not None
    assert {one.setting.width for one in result.observations} == {16, 32, 64}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [16, 32]}, "widths: must be three different ones or more, got [16, 32]"),
        ({"widths": [32, 64, 128]}, "widths: must include the recipe's own width 16, got [32, 64, 128]"),
        ({"widths": [16, 32, 36]}, "width: must be a multiple of head_dim = 8, got 36"),
        ({"points": 4}, "points: must be odd, the rule's own value in the middle, got 4"),
        ({"seeds": 0}, "seeds: must be >= 1, got 0"),
        ({"lr_octaves": 0.0}, "lr_octaves: must be > 0, got 0.0"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(RECIPE, tmp_path, CheckOptions.parse(options))
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_a_check_goes_on_only_with_what_the_rule_did_and_the_same_validation() -> None:
    def identity(exponent: float = 0.6, **options: Any) -> dict[str, Any]:
        own = CustomRule(name="calibrated", weight_decay_exponent=exponent)
        recipe = RECIPE.model_copy(update={"rule": own})
        found = running._Study(recipe, QUICK.model_copy(update=options)).identity()
        assert json.loads(json.dumps(found)) == found
        return found

    same = identity()
    assert same["rule"] == "calibrated"
    assert identity(seeds=5, widths=(16, 32, 128), points=7) == same
    assert identity(0.7) != same
    assert identity(validation_batches=3) != same


@pytest.fixture
def result_in(carried_out: Callable[..., list[Observation]]) -> Callable[..., CheckResult]:
    """Return a function that makes a check's result in the world that the truth makes."""

    def make(recipe: Recipe = RECIPE, checked: str = "fan-sqrt", **truth: float) -> CheckResult:
        runs = carried_out(**truth)
        found = measure(runs, base_width=32)
        return CheckResult(
            recipe=recipe,
            options=CheckOptions(),
            rule=checked,
            verdict=judge(found),
            horizons={},
            measured=found,
            alternatives={},
            observations=tuple(runs),
        )

    return make


def test_calibration_writes_the_exponent_that_the_loss_supports(
    tmp_path: Path, result_in: Callable[..., CheckResult]
) -> None:
    recipe = calibrated(result_in(decay_drift=0.3, singular=0.9))
    recipe.save(tmp_path / "recipe.json")
    loaded = Recipe.load(tmp_path / "recipe.json")
    own = loaded.rule
    assert own is not None
    assert own.weight_decay_exponent == pytest.approx(0.8, abs=0.1)
    assert (own.name, own.base) == ("calibrated", "fan-sqrt")
    assert own.evidence is not None
    interval = own.evidence["weight_decay_exponent"]
    assert interval["low"] < 0.8 < interval["high"]
    # σ₁ has another opinion, and it stands beside.
    assert own.evidence["exponent_that_keeps_top_singular_values"]["value"] == pytest.approx(0.8, abs=0.1)
    assert own.evidence["verdict"].startswith("holds: ")
    plan = loaded.at(width=256)
    assert plan.kinds["matrix"].weight_decay == pytest.approx(4.0 * 16**own.weight_decay_exponent)
    ends = f"[{interval['low']:.2f}, {interval['high']:.2f}]"
    assert (
        f"note: rule calibrated has λ ∝ w^{own.weight_decay_exponent:.3g} {ends}, from a check of fan-sqrt at widths "
        f"32 to 128: {own.evidence['verdict']}"
    ) in plan.notes()
    assert not any("calibrated" in note for note in loaded.at(width=256, rule="fan-sqrt").notes())


def test_a_function_of_ones_own_is_nothing_that_a_recipe_can_follow(
    result_in: Callable[..., CheckResult],
) -> None:
    with pytest.raises(ConfigError) as caught:
        calibrated(result_in(checked="my_rules:mine", decay_drift=0.3))
    assert str(caught.value) == (
        "calibrate: must follow a registered rule, which a recipe can name, got 'my_rules:mine'"
    )


def test_a_calibrated_recipe_can_be_calibrated_again(result_in: Callable[..., CheckResult]) -> None:
    before = CustomRule(name="calibrated", base="mup-coupled", weight_decay_exponent=0.1)
    recipe = RECIPE.model_copy(update={"rule": before})
    again = calibrated(result_in(recipe, "calibrated")).rule
    assert again is not None
    assert (again.name, again.base) == ("calibrated", "mup-coupled")


def test_without_an_optimal_decay_at_every_width_there_is_nothing_to_calibrate(
    result_in: Callable[..., CheckResult],
) -> None:
    with pytest.raises(RunError) as caught:
        calibrated(result_in(curvature=0.0))
    message = "calibrate: no exponent of λ can be measured: how the optimal λ moves is open: at width "
    assert str(caught.value).startswith(message)


def broken(result: CheckResult) -> Verdict:
    assert result.measured is not None
    slopes = {"logits": Estimate(value=0.5, low=0.4, high=0.6)}
    return judge(replace(result.measured, coordinate_slopes=slopes))


def diverged(result: CheckResult) -> Verdict:
    assert result.measured is not None
    *narrower, largest = result.measured.widths
    return judge(replace(result.measured, widths=(*narrower, replace(largest, diverged=2))))


def too_short(result: CheckResult) -> Verdict:
    found = gate({128: 1.0}, 1000)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("finding", "advice"),
    [
        (
            diverged,
            "2 runs diverged at width 128 with the transferred setting; tune the recipe again, or check another rule",
        ),
        (
            broken,
            "the change of logits in the first steps follows width^+0.50 [+0.40, +0.60], tolerance ±0.1: the "
            "parametrisation is broken; check another rule, or wider widths",
        ),
        (
            too_short,
            "Σηλ is 1 at width 128 and must be >= 1.5: weight decay has no time to act; tune the recipe over 1,500 "
            "tokens instead of 1,000",
        ),
    ],
)
def test_what_says_nothing_of_decay_is_not_calibrated_by(
    checked: Callable[..., CheckResult],
    design: Callable[..., Design],
    finding: Callable[[CheckResult], Verdict],
    advice: str,
) -> None:
    # Everything was trained, and the optimal λ is known at every width.
    result = checked(design(full=True), decay_drift=0.3)
    assert calibrated(result).rule is not None
    with pytest.raises(RunError) as caught:
        calibrated(replace(result, verdict=finding(result)))
    assert str(caught.value) == f"calibrate: this check says nothing of λ: {advice}"
