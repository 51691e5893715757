"""Bands: made of runs, kept in a recipe, and carried to another width by their laws."""

import json
from typing import Any

import pytest

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import Recipe
from widthwise.transfer.watching.alarms import watch_of
from widthwise.transfer.watching.bands import bands_of, decay_share, judged, stored
from widthwise.transfer.watching.laws import Course

NAMES = ("rms", "update_ratio", "gradient_to_weight", "top_singular_value", "gain", "kappa")
PROXY, HORIZON = GPTConfig(width=32, context=64), Horizon(batch_tokens=64, tokens=64 * 40)


def evaluation(step: int, scale: float, **matrix: float | None) -> dict[str, Any]:
    values = {**dict.fromkeys(NAMES, scale), **matrix}
    return {"step": step, "loss": 2 * scale, "gradient_norm": scale, "kinds": {"matrix": values}}


def promising(bands: dict[str, Any] | None, **changes: Any) -> Recipe:
    tuned = Hyperparameters(lr=0.02, weight_decay=2.0, decay="l2")
    evidence = None if bands is None else {"bands": bands}
    return Recipe(
        **{"hyperparameters": tuned, "proxy": PROXY, "horizon": HORIZON, "evidence": evidence, **changes}
    )


@pytest.fixture
def kept() -> dict[str, Any]:
    """Return two runs' bands, as JSON has them."""
    courses = {0: [evaluation(20, 1.0), evaluation(40, 2.0)], 1: [evaluation(20, 4.0), evaluation(40, 2.0)]}
    bands = bands_of(courses, 40)
    assert bands is not None
    document: dict[str, Any] = json.loads(bands.model_dump_json())
    return document


def test_a_band_is_the_mean_and_the_extremes_over_the_seeds(kept: dict[str, Any]) -> None:
    assert (kept["seeds"], kept["fractions"]) == (2, [0.5, 1.0])
    for name in NAMES:
        band = {"centre": pytest.approx([2.0, 2.0]), "low": [1.0, 2.0], "high": [4.0, 2.0]}
        assert kept["kinds"]["matrix"][name] == band
    assert kept["run"]["loss"]["high"] == [8.0, 4.0]


def test_what_not_every_seed_has_is_in_no_band() -> None:
    courses = {0: [evaluation(20, 1.0), evaluation(40, 2.0)], 1: [evaluation(40, 2.0, kappa=None)]}
    bands = bands_of(courses, 40)
    assert bands is not None
    assert bands.fractions == (1.0,)
    assert bands.kinds["matrix"]["kappa"].high == (None,)
    assert decay_share(bands, "matrix") == 1.0
    assert bands_of({0: [evaluation(40, 2.0)]}, 40) is None


def test_a_recipe_without_bands_is_not_watched_and_a_damaged_one_is_refused() -> None:
    assert watch_of(promising(None).at(width=64), evaluations=2, same_data=True) is None
    with pytest.raises(ConfigError, match=r"^evidence\.bands: seeds: must be a whole number, got 'two'"):
        stored(promising({"seeds": "two", "fractions": [], "run": {}, "kinds": {}}))


def test_bands_are_carried_by_their_laws(kept: dict[str, Any]) -> None:
    plan = promising(kept).at(width=128)
    watch = watch_of(plan, evaluations=4, same_data=True)
    assert watch is not None
    assert (watch.steps, watch.left_out) == ((10, 20, 30, 40), ())
    bands = {(band.quantity, band.kind): band for band in watch.bands}
    assert set(bands) == {(n, "matrix") for n in ("rms", "update_ratio", "gain")} | {
        ("gradient_norm", "run"),
        ("loss", "run"),
    }
    # Before the proxies' first evaluation nothing is known; between two it is interpolated. Where the seeds differ
    # by 4, their extremes are moved by 2.
    loss, gain, rms = bands["loss", "run"], bands["gain", "matrix"], bands["rms", "matrix"]
    assert loss.high == (
        None,
        pytest.approx(16 * 1.05),
        pytest.approx(8 * 1.05),
        pytest.approx(4 * 1.05),
    )
    assert loss.low == gain.low == (None,) * 4
    assert gain.high[1] == pytest.approx(8.0 * 1.25 * 4**0.25)
    assert gain.centre[1] == pytest.approx(2.0 * 4**0.25)
    base, target = (Course.of(plan.recipe.at(width=width), "matrix", 2.0).at([20, 40]) for width in (32, 128))
    for place, share in ((1, 0), (3, 1)):
        assert rms.centre[place] == pytest.approx(2.0 * target[share].rms / base[share].rms)
    assert rms.low[1] == pytest.approx(0.5 * target[0].rms / base[0].rms / (1.08 * 4**0.05))
    assert rms.high[1] == pytest.approx(8.0 * target[0].rms / base[0].rms * (1.08 * 4**0.05))


SMALLER = "loss and gradient norm are not judged: the target is smaller than the proxies, or its batch other"


@pytest.mark.parametrize(
    ("target", "same_data", "even", "names", "left_out"),
    [
        ({"width": 128}, True, True, "rms rms update_ratio gain gain gradient_norm loss", []),
        (
            {"width": 128},
            False,
            True,
            "rms rms update_ratio gain gain",
            ["loss and gradient norm are not judged: the data are not those of the proxies"],
        ),
        (
            {"width": 128},
            True,
            False,
            "gradient_norm loss",
            ["the weights are not judged: λ is shared out among modules"],
        ),
        ({"width": 16}, True, True, "rms rms update_ratio gain gain", [SMALLER]),
        (
            {"width": 128, "tokens": 64 * 80},
            True,
            True,
            "rms gain gain gradient_norm loss",
            ["some weights are not judged: the target has other than the proxies' steps"],
        ),
        (
            {"width": 128, "batch_tokens": 128, "tokens": 128 * 40},
            True,
            True,
            "rms rms update_ratio gain gain",
            [SMALLER],
        ),
        (
            {"width": 128, "tokens": 64 * 400},
            True,
            True,
            "",
            [
                "nothing is judged: the target has ×10 the proxies' steps, ×1 their batch, ×1 their depth; "
                "the laws were tried to ×2"
            ],
        ),
    ],
    ids=["equal", "other data", "module decay", "narrower", "longer", "larger batch", "much longer"],
)
def test_what_cannot_be_carried_honestly_is_left_out(
    target: dict[str, int], same_data: bool, even: bool, names: str, left_out: list[str]
) -> None:
    quantities, told = judged(promising(None).at(**target), same_data=same_data, even=even)
    assert (" ".join(one.name for one in quantities), told) == (names, left_out)


def test_proxies_narrower_than_the_laws_were_tried_with_promise_nothing(kept: dict[str, Any]) -> None:
    plan = promising(kept, proxy=GPTConfig(width=16, context=64)).at(width=64)
    told = "nothing is judged: the laws were tried with proxies of width 32 and more"
    watch = watch_of(plan, evaluations=4, same_data=True)
    assert watch is not None
    assert (watch.bands, watch.left_out, watch.suspicions) == ((), (told,), ())
