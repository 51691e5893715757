"""Ctrl-C while Ray starts: the line that says how to go on, wherever the folder holds something to resume."""

from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies.config import GPTConfig, Horizon, Hyperparameters
from widthwise.transfer import Recipe, cli

INTERRUPTED = "widthwise: error: interrupted\n"
SAME = "widthwise: stopped; go on with the same command and --resume ({out})\n"
SWEEP = "sweep --width 16 --depth 1 --head-dim 8 --context 32 --tokens 2560 --batch-tokens 256"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Press Ctrl-C where Ray would be started; a recipe and a text lie in the current folder."""

    def pressed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for module in ("search.executing", "transfer.launching"):
        monkeypatch.setattr(f"widthwise.{module}.ray_session", pressed)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Some text, long enough for a batch or two. " * 500)
    Recipe(
        hyperparameters=Hyperparameters(lr=0.05, weight_decay=4.0, huber_c=2.0),
        proxy=GPTConfig(width=16, depth=1, head_dim=8, context=32),
        horizon=Horizon(batch_tokens=256, tokens=256 * 60),
    ).save("recipe.json")


def said(capsys: pytest.CaptureFixture[str], command: str, out: str = "out") -> str:
    """Return what an interrupted command says at its end."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--data", "text.txt", "--out", out])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out) == (130, "")
    return captured.err.splitlines(keepends=True)[-1]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            SWEEP,
            "widthwise: stopped; no trial has ended yet; go on with: widthwise sweep --resume --out 'my out'\n",
        ),
        ("check recipe.json", SAME.format(out="my out")),
    ],
)
def test_what_has_begun_can_be_gone_on_with(
    capsys: pytest.CaptureFixture[str], command: str, line: str
) -> None:
    assert said(capsys, command, "my out") == line
    assert said(capsys, f"{command} --resume", "my out") == line


def test_a_target_run_that_has_written_nothing_is_only_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from widthwise.transfer import launching

    kept: dict[str, Any] = {}
    require = launching.require_folder

    def remembered(out: Path, document: dict[str, Any], *, resume: bool) -> None:
        kept.update(document)
        require(out, document, resume=resume)

    monkeypatch.setattr(launching, "require_folder", remembered)
    launch = "launch recipe.json --width 32"
    assert said(capsys, launch) == INTERRUPTED
    launching.write_json(Path("out/plan.json"), kept)
    assert said(capsys, f"{launch} --resume") == SAME.format(out="out")
