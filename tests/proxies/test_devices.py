"""The training loop compiled, and on a CUDA device in bf16."""

from pathlib import Path

import pytest

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters, RunOptions
from widthwise.proxies.runs import RunSpec, base_settings, run

HYPERPARAMETERS = Hyperparameters(lr=0.02, weight_decay=1.0, huber_c=2.0, clip_norm=1.0)
SPEC = RunSpec(
    model=GPTConfig(width=64, context=64),
    base_width=64,
    horizon=Horizon(batch_tokens=1024, tokens=20480),
    hyperparameters=HYPERPARAMETERS,
    settings=base_settings(HYPERPARAMETERS),
    data="python",
)


def loss(**options: object) -> float:
    return run(SPEC, RunOptions(evaluations=2, validation_batches=2, diagnostics=True, **options)).loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")  # torch's own, while it compiles
def test_a_compiled_model_learns_what_it_learns_uncompiled() -> None:
    assert loss(compile=True) == pytest.approx(loss(), abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_bf16_on_a_gpu_learns_what_fp32_learns_on_a_cpu(compile: bool) -> None:
    assert loss(device="cuda", precision="bf16", compile=compile) == pytest.approx(loss(), abs=0.03)


@pytest.mark.gpu
def test_a_run_on_a_gpu_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    whole = loss(device="cuda")
    options = RunOptions(device="cuda", evaluations=2, validation_batches=2, checkpoint=tmp_path / "c.pt")
    stopped = run(SPEC, options, lambda metrics: True)
    assert (stopped.status, stopped.steps) == ("stopped", 10)
    assert run(SPEC, options).loss == pytest.approx(whole, abs=1e-5)
