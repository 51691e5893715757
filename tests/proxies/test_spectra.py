"""α of known spectra, against SciPy's singular values and an estimator written anew; AlphaDecay's multipliers."""

import math
import re
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from widthwise.proxies import GPT, GPTConfig
from widthwise.proxies.spectra import assigned, hill_alphas
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import decay_scales, hill_alpha

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int = 0) -> Tensor:
    """Return a random orthogonal matrix in float64."""
    return torch.linalg.qr(gaussian(size, size, seed=seed).double()).Q


def with_eigenvalues(values: Tensor) -> Tensor:
    """Return a float32 matrix whose squared singular values are `values`."""
    size = len(values)
    return ((orthogonal(size) * values.double().sqrt()) @ orthogonal(size, seed=1)).float()


def heavy_tailed(rows: int, columns: int, freedom: float = 3.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_t(freedom, (rows, columns)))


def all_fits(eigenvalues: Any) -> Any:
    """Return α for every x_min, as weightwatcher's power-law fit does, in a loop over the sorted eigenvalues."""
    ordered = np.sort(eigenvalues)
    return np.array(
        [
            1 + len(tail) / np.sum(np.log(tail / tail[0]))
            for tail in (ordered[i:] for i in range(len(ordered) - 1))
        ]
    )


def reference_alpha(*matrices: Tensor) -> float:
    """Return the median-x_min α of the pooled SciPy singular values of matrices, in float64."""
    values = np.concatenate([scipy.linalg.svdvals(matrix.double().numpy()) ** 2 for matrix in matrices])
    return float(all_fits(values)[len(values) // 2])


# α


@pytest.mark.parametrize(("n", "ratio"), [(512, 1.01), (512, 1.002), (512, 1.06), (333, 1.01)])
def test_alpha_of_geometric_spectra(n: int, ratio: float) -> None:
    exact = 1 + 2 / ((n - n // 2 - 1) * math.log(ratio))
    if (n, ratio) == (512, 1.01):
        assert exact == pytest.approx(1.78823, abs=1e-5)
    values = ratio ** torch.arange(n, dtype=torch.float64)
    assert hill_alpha(with_eigenvalues(values)) == pytest.approx(exact, rel=1e-5)


def test_alpha_of_eight_eigenvalues() -> None:
    assert hill_alpha(torch.diag(torch.arange(1.0, 9.0).sqrt())) == pytest.approx(5.045318, abs=1e-6)


@pytest.mark.parametrize(("aspect", "alpha"), [(1, 2.1217), (2, 2.7058), (4, 3.4546), (8, 4.4699)])
def test_alpha_of_a_random_matrix_measures_its_aspect_ratio_but_not_at_a_fixed_aspect(
    aspect: int, alpha: float
) -> None:
    weight = gaussian(256 * aspect, 256)
    assert hill_alpha(weight) == pytest.approx(alpha, rel=0.02)
    assert hill_alpha(weight, fixed_aspect=True) == pytest.approx(2.1217, rel=0.02)


@pytest.mark.parametrize(
    "weight",
    [
        gaussian(96, 96),
        gaussian(51, 200),
        gaussian(200, 51).T,
        gaussian(64, 128)[:, ::2],
        heavy_tailed(128, 300).float(),
        heavy_tailed(300, 128),
        gaussian(96, 96).bfloat16(),
        1e-30 * gaussian(64, 64),
        1e30 * gaussian(64, 64),
        gaussian(3, 5),
    ],
)
def test_alpha_is_that_of_scipys_singular_values(weight: Tensor) -> None:
    assert hill_alpha(weight) == pytest.approx(reference_alpha(weight.float()), abs=2e-5)


def test_ill_conditioned_spectra_are_computed_in_float64() -> None:
    # λ_max/λ_median = 1e9: in float32, the Gram matrix leaves nothing of the median.
    weight = with_eigenvalues(torch.logspace(-9, 9, 128, dtype=torch.float64))
    expected = reference_alpha(weight)
    assert hill_alpha(weight) == pytest.approx(expected, rel=1e-6)
    rounded = torch.linalg.eigvalsh(weight @ weight.T).clamp(min=1e-30)[64:].double().log()
    assert abs(1 + 1 / (rounded - rounded[0]).mean().item() - expected) > 1e-4


def test_a_convolution_pools_the_matrices_of_its_kernel() -> None:
    weight = gaussian(24, 16, 3, 3)
    matrices = [weight[:, :, i, j] for i in range(3) for j in range(3)]
    assert hill_alpha(weight) == pytest.approx(reference_alpha(*matrices), abs=2e-5)


def test_the_fixed_aspect_pools_windows_that_cover_the_longer_side() -> None:
    weight = gaussian(250, 100)
    windows = [weight[:100], weight[75:175], weight[150:]]
    for turned in (weight, weight.T):
        assert hill_alpha(turned, fixed_aspect=True) == pytest.approx(reference_alpha(*windows), abs=2e-5)


def test_together_is_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widthwise.proxies.spectra.TOGETHER", 3 * 64 * 80)
    ill = with_eigenvalues(torch.logspace(-9, 9, 64, dtype=torch.float64))
    weights = [gaussian(64, 80, seed=seed) for seed in range(8)] + [ill, torch.full((64, 80), NAN), ill.T]
    alone = [hill_alpha(weight) for weight in weights]
    assert hill_alphas(weights) == pytest.approx(alone, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("fixed_aspect", [False, True])
@pytest.mark.parametrize(
    ("weight", "alpha"),
    [
        (torch.zeros(64, 64), NAN),
        (torch.full((64, 64), NAN), NAN),
        (gaussian(64, 64).index_fill(0, torch.tensor(3), INF), NAN),
        (orthogonal(512).float(), INF),
        (0.3 * orthogonal(64), INF),
        (torch.ones(64, 1), INF),
    ],
)
def test_alpha_of_degenerate_weights(weight: Tensor, alpha: float, fixed_aspect: bool) -> None:
    assert hill_alpha(weight, fixed_aspect=fixed_aspect) == pytest.approx(alpha, nan_ok=True)


def test_alpha_of_a_matrix_of_low_rank_is_finite() -> None:
    assert 1 < hill_alpha(gaussian(128, 4) @ gaussian(4, 128)) < 2
    assert 1 < hill_alpha(torch.ones(64, 64)) < 3


@pytest.mark.parametrize("shape", [(), (64,), (0, 8)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    message = f"weight: must have two dimensions or more and no empty one, got shape {shape}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        hill_alpha(torch.zeros(shape))


# Multipliers

SCORES = {"blocks.0.a": 2.0, "blocks.0.b": 3.0, "blocks.1.a": 5.0, "blocks.1.b": 4.0}


def test_the_linear_assignment_of_known_scores() -> None:
    multipliers = assigned(SCORES, "linear", 0.6666, 5.0)
    assert [0.1 * multipliers[name] for name in SCORES] == pytest.approx(
        [0.06666, 0.211107, 0.5, 0.355553], abs=1e-6
    )


def test_the_other_assignments_of_known_scores() -> None:
    roots = [math.sqrt(score) for score in SCORES.values()]
    assert list(assigned(SCORES, "sqrt").values()) == pytest.approx([4 * root / sum(roots) for root in roots])
    logs = [math.log2(score) for score in SCORES.values()]
    assert list(assigned(SCORES, "log2").values()) == pytest.approx([4 * log / sum(logs) for log in logs])
    # Each block has z-scores ±1.
    low, high = 2 / (1 + math.exp(4)), 2 / (1 + math.exp(-4))
    assert list(assigned(SCORES, "sigmoid").values()) == pytest.approx([low, high, high, low])


def test_without_blocks_all_names_are_one_block() -> None:
    low, high = 2 / (1 + math.exp(4)), 2 / (1 + math.exp(-4))
    assert assigned({"a": 1.5, "b": 2.5}, "sigmoid") == pytest.approx({"a": low, "b": high})


@pytest.mark.parametrize("assign", ["linear", "sqrt", "log2", "sigmoid"])
@pytest.mark.parametrize("scores", [{}, {"a": 2.0}, {"a": 2.0, "b": 2.0, "c": 2.0 + 1e-6}])
def test_equal_scores_get_1(assign: Any, scores: dict[str, float]) -> None:
    assert assigned(scores, assign) == pytest.approx(dict.fromkeys(scores, 1.0), abs=1e-5)


def weights() -> dict[str, Tensor]:
    """Return weights of four different α."""
    return {f"layers.{k}.w": gaussian(64 * (k + 1), 64, seed=k) for k in range(4)}


def test_decay_scales_are_alphas_assigned() -> None:
    alphas = {name: reference_alpha(weight) for name, weight in weights().items()}
    for assign in ("linear", "sqrt", "log2"):
        found = decay_scales(weights(), assign=assign, low=0.5, high=2.0)
        assert found == pytest.approx(assigned(alphas, assign, 0.5, 2.0), rel=1e-4)
    linear = decay_scales(weights())
    assert (min(linear.values()), max(linear.values())) == pytest.approx((0.6666, 5.0))
    assert list(linear.values()) == sorted(linear.values())


@pytest.mark.parametrize("assign", ["linear", "sqrt", "log2", "sigmoid"])
@pytest.mark.parametrize("fixed_aspect", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_mean_preserving_multipliers_have_mean_1_and_the_same_ratios(
    assign: Any, fixed_aspect: bool, seed: int
) -> None:
    names = [f"layers.{place // 3}.{place % 3}" for place in range(9)]
    given = {name: heavy_tailed(60, 60 + 7 * place) for place, name in enumerate(names)}
    options: dict[str, Any] = {"assign": assign, "fixed_aspect": fixed_aspect, "high": 1.0 + seed}
    plain, preserving = decay_scales(given, **options), decay_scales(given, **options, mean_preserving=True)
    assert math.fsum(preserving.values()) / 9 == pytest.approx(1, abs=1e-12)
    factor = preserving[names[0]] / plain[names[0]]
    assert list(preserving.values()) == pytest.approx([factor * value for value in plain.values()])


def test_only_the_matrices_of_the_blocks_are_tuned() -> None:
    model = GPT(GPTConfig(width=64, depth=2, bias=True), seed=0)
    scales = decay_scales(dict(model.named_parameters()))
    tuned = {name for name, scale in scales.items() if scale != 1}
    assert scales.keys() == dict(model.named_parameters()).keys()
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert tuned == linear - {"readout.weight"}


def test_names_without_blocks_are_all_tuned() -> None:
    assert sorted(decay_scales({"a": gaussian(64, 64), "head": gaussian(256, 64)}).values()) == [0.6666, 5.0]


def test_fewer_than_50_eigenvalues_are_not_tuned() -> None:
    scales = decay_scales(
        {**weights(), "layers.4.w": heavy_tailed(49, 490), "layers.5.w": heavy_tailed(50, 60)}
    )
    assert scales["layers.4.w"] == 1
    assert scales["layers.5.w"] != 1


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(64, 64), orthogonal(64).float(), torch.full((64, 64), NAN), torch.full((64, 64), INF)],
    ids=["zero", "orthogonal", "nan", "inf"],
)
@pytest.mark.parametrize("assign", ["linear", "sqrt", "log2", "sigmoid"])
@pytest.mark.parametrize("mean_preserving", [False, True])
def test_a_degenerate_weight_keeps_its_decay_and_moves_no_other(
    bad: Tensor, assign: Any, mean_preserving: bool
) -> None:
    options: dict[str, Any] = {"assign": assign, "mean_preserving": mean_preserving}
    alone = decay_scales(weights(), **options)
    assert decay_scales({**weights(), "layers.0.bad": bad}, **options) == {**alone, "layers.0.bad": 1.0}


@pytest.mark.parametrize("assign", ["linear", "sqrt", "log2", "sigmoid"])
def test_weights_that_are_equal_up_to_rounding_keep_their_decay(assign: Any) -> None:
    weight = gaussian(80, 64)
    same = {"0.a": weight, "0.b": weight.flip(0), "0.c": 7 * weight[:, torch.randperm(64)], "1.a": weight}
    assert decay_scales(same, assign=assign) == pytest.approx(dict.fromkeys(same, 1.0), abs=1e-5)


def test_a_convolution_counts_the_eigenvalues_of_all_its_matrices() -> None:
    scales = decay_scales({**weights(), "layers.4.w": heavy_tailed(8, 8 * 9).reshape(8, 8, 3, 3)})
    assert scales["layers.4.w"] != 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 3, "high": 2}, "low: 0 <= low <= high must hold, and high > 0, got low=3, high=2"),
        ({"low": -1.0}, "low: 0 <= low <= high must hold, and high > 0, got low=-1.0, high=5.0"),
        ({"high": INF}, "low: 0 <= low <= high must hold, and high > 0, got low=0.6666, high=inf"),
        ({"low": 0, "high": 0}, "low: 0 <= low <= high must hold, and high > 0, got low=0, high=0"),
        (
            {"assign": "log"},
            "assign: must be one of linear, sqrt, log2, sigmoid, got 'log'; did you mean 'log2'?",
        ),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        decay_scales(weights(), **options)
