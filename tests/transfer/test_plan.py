"""Plans: the values at a target, in the model's configuration and in the optimizer's groups."""

from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console

from widthwise.kernels import AdamHC
from widthwise.proxies import GPT, parameter_table
from widthwise.proxies.config import KINDS, GPTConfig, Horizon, Hyperparameters, Kind, KindSettings
from widthwise.proxies.schedule import decay_horizon, schedule
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import (
    LaunchOptions,
    Multipliers,
    Ratios,
    Recipe,
    Scaled,
    horizon_rules,
    rule,
    rules,
    scaled,
)
from widthwise.transfer.launching import _spec
from widthwise.transfer.plan_notes import cautions, common_cautions

TUNED = Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0, eps=1e-8)
RECIPE = Recipe(
    hyperparameters=TUNED,
    proxy=GPTConfig(width=32, depth=2, context=128, embedding_std=0.5, readout_std=0.25, norm_gain=True),
    horizon=Horizon(batch_tokens=2048, tokens=409_600),
)
BUILT_IN = [one.name for one in rules.values() if one.function.__module__.startswith("widthwise.")]


def build(width: int) -> GPT:
    return GPT(RECIPE.proxy.model_copy(update={"width": width}))


@pytest.mark.parametrize("horizon_rule", list(horizon_rules))
@pytest.mark.parametrize("name", BUILT_IN)
def test_at_the_proxys_own_width_the_plan_is_what_was_tuned(name: str, horizon_rule: str) -> None:
    plan = RECIPE.at(width=32, rule=name, horizon_rule=horizon_rule)
    assert plan.model == RECIPE.proxy
    assert plan.horizon == RECIPE.horizon
    assert plan.ratios == Ratios()
    assert (plan.betas, plan.residual_multiplier, plan.decay_kinds) == ((0.9, 0.95), 1, ("matrix",))
    for kind in KINDS:
        decay = 0.4 if kind == "matrix" else 0.0
        assert plan.settings(kind) == KindSettings(lr=0.02, weight_decay=decay, eps=1e-8)


def test_the_targets_model_carries_the_rules_initialisation_and_multipliers() -> None:
    model = RECIPE.at(width=128, depth=4).model
    assert model == RECIPE.proxy.model_copy(update={"width": 128, "depth": 4, "readout_multiplier": 0.25})


def test_every_multiplier_of_a_rule_reaches_the_model() -> None:
    @rule("all-of-them", source="this test")
    def all_of_them(ratios: Ratios) -> Scaled:
        """Every multiplier differs from 1."""
        w = ratios.width
        return scaled(
            matrix=Multipliers(init_std=1.0),
            embedding=Multipliers(init_std=w**-0.5),
            readout=Multipliers(init_std=w, forward=w**2),
            residual_multiplier=w**3,
        )

    plan = RECIPE.at(width=128, rule="all-of-them")
    assert plan.residual_multiplier == 64
    # matrix_std is in units of 1/√fan_in: the same standard deviation is twice as many of them.
    changed = {"matrix_std": 2.0, "embedding_std": 0.25, "readout_std": 1.0, "readout_multiplier": 16.0}
    assert plan.model == RECIPE.proxy.model_copy(update=changed | {"width": 128, "residual_multiplier": 64.0})


def test_ratios_are_target_divided_by_proxy() -> None:
    plan = RECIPE.at(width=48, depth=8, batch_tokens=4096, tokens=204_800)
    assert plan.ratios == Ratios(width=1.5, depth=4, batch=2, tokens=0.5)
    assert plan.horizon == Horizon(batch_tokens=4096, tokens=204_800)


def test_one_parameter_may_have_its_own_width_multiplier() -> None:
    plan = RECIPE.at(width=128)
    assert plan.settings("matrix") == KindSettings(lr=0.005, weight_decay=0.8, eps=1e-8)
    assert plan.settings("matrix", 16.0) == KindSettings(lr=0.00125, weight_decay=1.6, eps=1e-8)
    assert plan.settings("gain", 16.0) == KindSettings(lr=0.02, weight_decay=0.0, eps=1e-8)


def test_groups_cover_the_model_with_the_plans_settings() -> None:
    plan = RECIPE.at(width=128, rule="mup-independent")
    model, table = build(128), parameter_table(build, 128, 32)
    kinds = {parameter: table[name].kind for name, parameter in model.named_parameters()}
    seen: dict[torch.nn.Parameter, dict[str, Any]] = {}
    for group in plan.parameter_groups(model, table):
        seen |= dict.fromkeys(group["params"], group)
    assert set(seen) == set(kinds)
    for parameter, group in seen.items():
        expected = plan.settings(kinds[parameter])
        assert group["betas"] == plan.betas
        assert KindSettings(**{name: group[name] for name in KindSettings.model_fields}) == expected


def test_the_groups_hold_the_plans_betas_and_a_kinds_own_width() -> None:
    plan = RECIPE.at(width=128, tokens=819_200, rule="completed-p")
    groups = plan.parameter_groups(build(128), parameter_table(build, 128, 32))
    assert {group["betas"] for group in groups} == {plan.betas}
    assert plan.betas == pytest.approx((0.95, 0.975))
    optimizer = AdamHC(groups, huber_c=2.0)
    assert {group["betas"] for group in optimizer.param_groups} == {plan.betas}


def test_a_target_run_trains_with_the_plans_betas() -> None:
    plan = RECIPE.at(width=128, tokens=819_200, rule="sp", horizon_rule="sde")
    spec = _spec(plan, LaunchOptions())
    assert spec.hyperparameters == TUNED.model_copy(update={"betas": plan.betas})
    assert spec.settings["gain"] == plan.settings("gain")


def test_which_kinds_decay_is_the_rules_word() -> None:
    @rule("everything-decays", source="this test")
    def everything_decays(ratios: Ratios) -> Scaled:
        """All kinds decay, the readout twice as much."""
        return scaled(matrix=Multipliers(), readout=Multipliers(weight_decay=2.0), decay_kinds=KINDS)

    plan = RECIPE.at(width=64, rule="everything-decays")
    assert plan.decay_kinds == KINDS
    assert [plan.settings(kind).weight_decay for kind in KINDS] == [0.4, 0.4, 0.8, 0.4, 0.4]
    assert plan.settings("gain", 1.0).weight_decay == 0.4


@pytest.mark.parametrize(
    ("name", "chosen", "expected"),
    [
        # A vector-like kind that decays has the recipe's λ as it is, where the rule says nothing else of it.
        ("fan-sqrt", ("embedding", "matrix"), {"matrix": 0.8, "embedding": 0.4}),
        # As AdamHD's own runs (arXiv 2511.14721).
        ("fan-sqrt", ("readout", "embedding"), {"embedding": 0.4, "readout": 0.4}),
        ("completed-p", ("readout",), {"readout": 1.6}),
        ("sp", KINDS, dict.fromkeys(KINDS, 0.4)),
        ("sp", (), {}),
    ],
)
def test_which_kinds_decay_is_the_users_to_override(
    name: str, chosen: tuple[Kind, ...], expected: dict[Kind, float]
) -> None:
    plan = RECIPE.at(width=128, rule=name, decay_kinds=chosen)
    assert plan.decay_kinds == tuple(kind for kind in KINDS if kind in expected)
    for kind in KINDS:
        assert plan.settings(kind).weight_decay == expected.get(kind, 0.0)
        assert plan.settings(kind, 4.0).weight_decay == expected.get(kind, 0.0)


def test_the_notes_say_what_decays_where_it_was_not_tuned() -> None:
    notes = RECIPE.at(width=128, decay_kinds=["embedding", "readout"]).notes()
    assert notes[-1] == (
        "note: decay on embedding, readout; λ was tuned on proxies whose matrices alone decay"
    )
    notes = RECIPE.at(width=128, decay_kinds=[]).notes()
    assert notes[-1] == "note: decay on nothing; λ was tuned on proxies whose matrices alone decay"


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("fan-sqrt", {"width": 128}, []),
        ("fan-sqrt", {"depth": 8}, ["depth ×4 is not followed by fan-sqrt"]),
        (
            "fan-sqrt",
            {"depth": 8, "batch_tokens": 4096, "tokens": 3_276_800},
            [
                "depth ×4 is not followed by fan-sqrt",
                "horizon rule none: nothing is changed for batch ×2, tokens ×8",
            ],
        ),
        (
            "completep",
            {"depth": 8, "tokens": 819_200},
            ["horizon rule none: nothing is changed for tokens ×2"],
        ),
        # A number of tokens that is not quite the same, for the sake of whole steps.
        ("fan-sqrt", {"tokens": 409_601}, []),
        # s = 1, where completed-p changes nothing either: it says so.
        ("completed-p", {"depth": 8, "batch_tokens": 4096, "tokens": 819_200}, []),
        (
            "sp",
            {"depth": 1, "tokens": 819_200, "horizon_rule": "sde"},
            ["depth ×0.5 is not followed by sp"],
        ),
    ],
)
def test_the_notes_say_what_no_rule_follows(name: str, target: dict[str, Any], expected: list[str]) -> None:
    plan = RECIPE.at(**{"width": 64, **target}, rule=name)
    assert list(cautions(plan)) == [f"note: {note}" for note in expected]
    assert set(cautions(plan)) <= set(plan.notes())


def test_what_to_beware_of_in_several_plans_is_said_once_with_their_rules() -> None:
    plans = [
        RECIPE.at(width=128, depth=4, horizon_rule="tau-const", tokens=819_200, rule=name)
        for name in BUILT_IN
    ]
    depth, *laws = common_cautions([*plans, plans[0]])
    assert (
        depth == "note: depth ×2 is not followed by fan-sqrt, sp, sp-embedding, mup-coupled, mup-independent"
    )
    tail = ": it holds with a rule that keeps ηλ, such as mup-independent"
    law = "note: tau-const is a law of ηλ, which is multiplied by"
    assert laws == [
        f"{law} 0.5 besides by fan-sqrt{tail}",
        f"{law} 0.25 besides by mup-coupled, qiu-compute-optimal{tail}",
    ]


def test_a_kind_that_does_not_decay_has_no_reason_for_its_decay() -> None:
    for name in rules:
        for kind, planned in RECIPE.at(width=128, rule=name, decay_kinds=[]).kinds.items():
            assert "λ" not in planned.why.replace("ηλ", ""), (name, kind)
    readout = RECIPE.at(width=128, rule="completed-p").kinds["readout"].why
    assert readout == "η and the initial std ∝ 1/w instead of a multiplier on the logits"
    decaying = RECIPE.at(width=128, rule="completed-p", decay_kinds=["readout"]).kinds["readout"].why
    assert decaying == f"{readout}; λ ∝ w keeps ηλ"


def test_independent_weight_decay_has_two_meanings_with_one_sum() -> None:
    plan = RECIPE.at(width=128, decay_kinds=["matrix", "embedding"])
    steps = plan.horizon.steps
    for kind, lr, weight_decay, power in (("matrix", 0.005, 0.8, 2), ("embedding", 0.02, 0.4, 1)):
        scheduled, constant = (
            plan.independent_weight_decay(kind, with_schedule=scheduled)  # type: ignore[arg-type]
            for scheduled in (True, False)
        )
        assert scheduled == lr * weight_decay
        # AdamC's correction is a second factor η_t/η_max, on matrices.
        total = sum(scheduled * schedule(plan.horizon, step) ** power for step in range(steps))
        assert constant * steps == pytest.approx(total)
    assert plan.independent_weight_decay("gain") == 0


def test_a_table_of_other_widths_is_refused() -> None:
    model, plan = build(128), RECIPE.at(width=128)
    with pytest.raises(ConfigError) as target:
        plan.parameter_groups(model, parameter_table(build, 64, 32))
    assert str(target.value) == "table.width: must be the plan's width = 128, got 64"
    with pytest.raises(ConfigError) as base:
        plan.parameter_groups(model, parameter_table(build, 128, 64))
    assert str(base.value) == "table.base_width: must be the proxy's width = 32, got 64"


def test_a_kind_whose_decay_the_rule_multiplies_by_0_cannot_decay() -> None:
    @rule("never-readout", source="this test")
    def never_readout(ratios: Ratios) -> Scaled:
        """The readout's λ is 0."""
        return scaled(matrix=Multipliers(), readout=Multipliers(weight_decay=0.0))

    with pytest.raises(ConfigError) as caught:
        RECIPE.at(width=64, rule="never-readout", decay_kinds=["readout"])
    assert (
        str(caught.value) == "decay_kinds: rule 'never-readout' multiplies the weight decay of 'readout' by 0"
    )


def test_the_json_document_is_exactly_this() -> None:
    vector: dict[str, Any] = {"lr": 1.0, "weight_decay": 0.0, "eps": 1.0, "init_std": 1.0, "forward": 1.0}
    document = RECIPE.at(width=128, tokens=819_200).as_json()
    reasons = [document["kinds"][kind].pop("why") for kind in KINDS]
    assert all(reasons)
    unchanged = {"lr": 0.02, "weight_decay": 0.0, "eps": 1e-8, "multipliers": vector}
    independent = document.pop("independent_weight_decay")
    assert independent["with_schedule"] == dict.fromkeys(KINDS, 0.0) | {"matrix": 0.004}
    assert independent["without_schedule"]["matrix"] == pytest.approx(
        0.004 * (0.1 / 3 + 0.9 * 3 / 8), rel=0.01
    )
    assert document == {
        "rule": "fan-sqrt",
        "horizon_rule": "none",
        "ratios": {"width": 4.0, "depth": 1.0, "batch": 1.0, "tokens": 2.0},
        "kinds": {
            "matrix": {
                "lr": 0.005,
                "weight_decay": 0.8,
                "eps": 1e-8,
                "multipliers": vector | {"lr": 0.25, "weight_decay": 2.0, "init_std": 0.5},
            },
            "embedding": unchanged,
            "readout": unchanged | {"multipliers": vector | {"forward": 0.25}},
            "gain": unchanged,
            "bias": unchanged,
        },
        "hyperparameters": {
            "lr": 0.02,
            "weight_decay": 0.4,
            "huber_c": 2.0,
            "betas": [0.9, 0.95],
            "eps": 1e-8,
            "decay": "huber",
            "threshold": "mean",
            "corrected": True,
            "clip_norm": None,
        },
        "horizon": {
            "batch_tokens": 2048,
            "tokens": 819_200,
            "warmup_fraction": 0.1,
            "schedule": "cosine",
            "final_fraction": 0.0,
            "decay_fraction": 0.2,
        },
        "residual_multiplier": 1.0,
        "decay_kinds": ["matrix"],
        "decay_horizon": pytest.approx(400 * 0.004 * (0.1 / 3 + 0.9 * 3 / 8), rel=0.01),
        "notes": [
            "horizon rule none: nothing is changed for tokens ×2",
            "Σηλ is below 1.5: weight decay has little time to act",
        ],
    }


def test_the_plans_hyperparameters_are_the_recipes_with_the_plans_betas() -> None:
    plan = RECIPE.at(width=128, tokens=819_200, rule="completed-p")
    assert plan.hyperparameters == TUNED.model_copy(update={"betas": plan.betas})
    assert plan.as_json()["hyperparameters"]["betas"] == list(plan.betas)


@pytest.mark.parametrize(
    ("tuned", "horizon", "line"),
    [
        (
            {"huber_c": 2.0},
            {},
            "optimizer: decay huber with c = 2, threshold mean; corrected (AdamC) on matrices; "
            "β1 and β2 0.9 and 0.95; no clipping; 200 steps of 2048 tokens; "
            "schedule cosine to 0 of the peak, warm-up 0.1 of the steps",
        ),
        (
            {"decay": "l2", "huber_c": 2.0, "corrected": False, "clip_norm": 1.0, "betas": (0.8, 0.99)},
            {"schedule": "wsd", "final_fraction": 0.1, "warmup_fraction": 0.05},
            "optimizer: decay l2; not corrected; β1 and β2 0.8 and 0.99; gradients clipped to norm 1; "
            "200 steps of 2048 tokens; schedule wsd to 0.1 of the peak over the last 0.2 of the steps, "
            "warm-up 0.05 of the steps",
        ),
    ],
)
def test_the_notes_say_what_all_kinds_are_trained_with(
    tuned: dict[str, Any], horizon: dict[str, Any], line: str
) -> None:
    recipe = Recipe(
        hyperparameters=Hyperparameters(lr=0.02, weight_decay=0.4, **tuned),
        proxy=RECIPE.proxy,
        horizon=Horizon(**horizon),
    )
    assert line in recipe.at(width=128).notes()


def test_the_decay_horizon_of_a_long_run_is_close_to_the_full_sum() -> None:
    plan = RECIPE.at(width=128, tokens=2048 * 20_000)
    full = decay_horizon(plan.horizon, 0.005, 0.8, corrected=True)
    assert plan.decay_horizon == pytest.approx(full, rel=0.01)
    assert plan.notes()[-1] == f"horizon Σηλ of the matrices over 20000 steps: {plan.decay_horizon:.3g}"


def test_a_horizon_too_short_for_weight_decay_is_noted() -> None:
    short = RECIPE.at(width=128)
    assert short.notes()[-1] == "note: Σηλ is below 1.5: weight decay has little time to act"
    assert short.as_json()["notes"] == ["Σηλ is below 1.5: weight decay has little time to act"]
    tuned = RECIPE.hyperparameters.model_copy(update={"decay": "none"})
    undecayed = RECIPE.model_copy(update={"hyperparameters": tuned}).at(width=128)
    assert [note for note in undecayed.notes() if "ηλ" in note or "independent" in note] == []
    # In a run's plan.json they would be read as decisions of the run.
    assert not {"notes", "decay_horizon"} & short.document().keys()


@pytest.mark.parametrize(
    ("decay", "turns"), [("l2", True), ("huber", True), ("huber-prox", False), ("none", False)]
)
def test_a_decay_that_turns_signs_is_noted(decay: str, turns: bool) -> None:
    tuned = {"weight_decay": 101.0, "decay": decay}
    strong = RECIPE.model_copy(update={"hyperparameters": RECIPE.hyperparameters.model_copy(update=tuned)})
    note = "ηλ of kind matrix reaches 1.01 at width 128 with fan-sqrt: from 1 on, a step's decay turns weights' signs"
    assert strong.at(width=128).as_json()["notes"] == ([note] if turns else [])
    assert (f"note: {note}" in strong.at(width=128).notes()) == turns
    assert strong.at(width=512).as_json()["notes"] == []


def test_the_table_shows_values_and_multipliers() -> None:
    console = Console(file=StringIO(), width=100)
    console.print(RECIPE.at(width=128).table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "fan-sqrt: width 32 → 128, depth 2 → 2" in text
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert ["matrix", "0.005 (×0.25)", "0.8 (×2)", "1e-08", "×0.5", "×1"] in cells
    assert ["readout", "0.02", "0 (×0)", "1e-08", "×1", "×0.25"] in cells


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"width": 0}, "width: must be >= 1, got 0"),
        ({"width": -64}, "width: must be >= 1, got -64"),
        ({"width": 100}, "width: must be a multiple of head_dim = 16, got 100"),
        ({"width": 64.0}, "width: must be a whole number, got 64.0"),
        ({"width": 64, "depth": 0}, "depth: must be >= 1, got 0"),
        ({"width": 64, "batch_tokens": 100}, "batch_tokens: must be a multiple of context = 128, got 100"),
        ({"width": 64, "batch_tokens": 0}, "batch_tokens: must be >= 1, got 0"),
        (
            {"width": 64, "decay_kinds": ["matrix", "embeding"]},
            "decay_kinds: must be one of matrix, embedding, readout, gain, bias, got 'embeding'; "
            "did you mean 'embedding'?",
        ),
        ({"width": 64, "decay_kinds": "matrix"}, "decay_kinds: must be a list of kinds, got 'matrix'"),
        ({"width": 64, "tokens": 1}, "tokens: must be >= batch_tokens = 2048, got 1"),
    ],
)
def test_an_impossible_target_is_refused(target: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RECIPE.at(**target)
    assert str(caught.value) == message


# A tied readout


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_tied_readout_is_refused_by_rules_that_scale_it_otherwise_than_the_embedding(name: str) -> None:
    proxy = GPTConfig(width=32, depth=2, context=128, tied=True)
    recipe = RECIPE.model_copy(update={"proxy": proxy})
    if name not in ("completed-p", "qiu-compute-optimal", "sp-embedding"):
        scaled_logits = 1.0 if name == "sp" else 0.25
        assert recipe.at(width=128, rule=name).model.readout_multiplier == 4 / 32 * scaled_logits
        return
    with pytest.raises(ConfigError) as caught:
        recipe.at(width=128, rule=name)
    assert str(caught.value) == (
        f"proxy.tied: must be false for rule {name!r}, which scales a readout's η or initial std otherwise than an "
        "embedding's"
    )
    assert recipe.at(width=32, rule=name).model == proxy


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_tied_model_of_ones_own_is_refused_by_the_same_rules(name: str) -> None:
    def tied(width: int) -> GPT:
        return GPT(RECIPE.proxy.model_copy(update={"width": width, "tied": True}))

    plan, table = RECIPE.at(width=128, rule=name), parameter_table(tied, width=128, base_width=32)
    if name not in ("completed-p", "qiu-compute-optimal", "sp-embedding"):
        assert plan.parameter_groups(tied(128), table)
        return
    for fault in (plan.parameter_groups, plan.initialise):
        with pytest.raises(ConfigError) as caught:
            fault(tied(128), table)
        assert str(caught.value) == (
            f"table: must have a readout of its own for rule {name!r}, which scales a readout's η or initial std "
            "otherwise than an embedding's; a tied one has none"
        )
    base = RECIPE.at(width=32, rule=name)
    assert base.parameter_groups(tied(32), parameter_table(tied, width=32, base_width=32))


# Of one's own model


def test_initialising_the_gpt_draws_what_it_draws_itself() -> None:
    plan = RECIPE.at(width=128, rule="completed-p")
    table = parameter_table(build, width=128, base_width=32)
    model, own = build(128), GPT(plan.model)
    torch.manual_seed(0)
    plan.initialise(model, table)
    torch.manual_seed(0)
    own.initialise()
    for name, parameter in model.named_parameters():
        expected = own.get_parameter(name)
        assert parameter.std().item() == pytest.approx(expected.std().item(), rel=0.05), name
        assert (parameter.std() > 0) == (table[name].kind != "gain")


def test_a_table_of_other_widths_initialises_nothing() -> None:
    table = parameter_table(build, width=64, base_width=32)
    with pytest.raises(ConfigError, match=r"^table\.width: must be the plan's width = 128, got 64$"):
        RECIPE.at(width=128).initialise(build(128), table)
