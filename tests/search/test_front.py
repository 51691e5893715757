"""Loss against tokens: a sweep that searches its horizon too, its books, its front, and what commands say of it."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import Trial, TrialState
from rich.console import Console

from widthwise.proxies.config import Hyperparameters
from widthwise.proxies.validation import RunError
from widthwise.search import SearchSpace
from widthwise.search.front import front
from widthwise.search.ledger import Ledger
from widthwise.search.sweeping import SweepResult, result_of
from widthwise.transfer import cli
from widthwise.transfer.commands.sweep import save_recipe, show
from widthwise.transfer.recipe import Recipe
from widthwise.transfer.reporting.front_panels import front_panels, front_rows
from widthwise.transfer.reporting.reading import read_contents

from .conftest import configured

TOKENS = [8192, 15360, 30720, 61440]
SEARCHED: dict[str, Any] = {"min_tokens": 7000, "trials": 8, "finalists": 1, "seeds": 2}


def made_up_loss(tokens: int, tried: Hyperparameters) -> float:
    """Return a loss that falls with the tokens, and whose best η does."""
    octaves = math.log2(tried.lr / 0.03) + math.log2(tokens / 61440) / 4
    return 2 + (61440 / tokens) ** 0.3 + 0.01 * octaves**2


def begin(ledger: Ledger) -> tuple[int, int, Hyperparameters]:
    """Take the next trial; return its number, the tokens it trains on, and its settings."""
    trial = ledger.next()
    assert isinstance(trial, Trial)
    spec = ledger.run(trial).spec
    return trial.number, spec.horizon.tokens, spec.hyperparameters


def play(ledger: Ledger, count: int) -> list[dict[str, Any]]:
    """Run the next `count` trials to their ends, an evaluation halfway; return what each tried."""
    played = []
    for _ in range(count):
        number, tokens, tried = begin(ledger)
        loss = made_up_loss(tokens, tried)
        assert not ledger.report(number, tokens // 2048, loss + 1)
        ledger.finish(number, "completed", {"loss": loss, "tokens": tokens, "seconds": 1.0})
        played.append({"tokens": tokens, "loss": loss, **tried.model_dump()})
    return played


def test_the_front_is_what_no_trial_beats_with_as_few_tokens() -> None:
    def line(number: int, tokens: int, loss: float | None, **fields: Any) -> dict[str, Any]:
        common = {"status": "completed", "confirms": None, "fitted": False, "hyperparameters": {"lr": 0.1}}
        return {"number": number, "tokens": tokens, "loss": loss, **common, **fields}

    records = [
        line(0, 400, 2.5),
        line(1, 100, 3.0),
        line(2, 100, 3.1),
        line(3, 200, 3.0),
        line(4, 200, 3.2),
        line(5, 400, 2.4),
        line(6, 100, 1.0, confirms=5),
        line(7, 400, 1.0, fitted=True),
        line(8, 200, None, status="diverged"),
    ]
    assert front(records) == [
        {"number": 1, "tokens": 100, "loss": 3.0, "hyperparameters": {"lr": 0.1}, "trials": 2},
        {"number": 5, "tokens": 400, "loss": 2.4, "hyperparameters": {"lr": 0.1}, "trials": 2},
    ]
    assert front([]) == []


@dataclass(frozen=True)
class Swept:
    """A finished sweep: its folder, what it found, and what was tried in it."""

    out: Path
    result: SweepResult
    tried: list[dict[str, Any]]

    @property
    def front(self) -> list[dict[str, Any]]:
        assert self.result.front is not None
        return self.result.front


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    out = tmp_path_factory.mktemp("swept") / "sweep"
    ledger = Ledger(configured(**SEARCHED), out, resume=False)
    tried = play(ledger, 9)
    result = result_of(ledger, "data")
    ledger.close()
    save_recipe(result, out)
    return Swept(out, result, tried)


def test_every_horizon_is_tried_and_the_whole_one_recommended(swept: Swept) -> None:
    *tried, confirmation = swept.tried
    assert [one["tokens"] for one in tried[:4]] == TOKENS[::-1]
    whole = min((one for one in tried if one["tokens"] == TOKENS[-1]), key=lambda one: one["loss"])
    # The best at the whole horizon again with another seed, as long.
    assert confirmation == whole
    result = swept.result
    assert result.finished
    for name in ("lr", "weight_decay", "decay", "huber_c"):
        assert getattr(result.best.hyperparameters, name) == whole[name]
    assert result.luckiest == tried.index(whole)
    assert result.best_by_decay[whole["decay"]] == whole["loss"]
    assert [one["horizon"] for one in result.records] == [one["tokens"] for one in swept.tried]
    best = [min(one["loss"] for one in tried if one["tokens"] == tokens) for tokens in TOKENS]
    assert best == sorted(best, reverse=True)
    assert [(one["tokens"], one["loss"]) for one in swept.front] == list(zip(TOKENS, best, strict=True))


def test_the_study_has_two_objectives_and_each_trial_its_curve(opened: Callable[..., Ledger]) -> None:
    ledger = opened(**SEARCHED)
    [first] = play(ledger, 1)
    number, tokens, _ = begin(ledger)
    for step, loss in ((5, 4.0), (10, 3.5), (10, 9.0), (15, math.nan)):
        assert not ledger.report(number, step, loss)
    ledger.finish(number, "diverged", {"loss": math.inf, "tokens": 15 * 1024})
    told = [trial.values for trial in ledger.study.get_trials()]
    assert told == [[first["loss"], math.log2(61440)], [math.inf, math.log2(tokens)]]
    assert [record["curve"] for record in ledger.records()] == [
        [[30, first["loss"] + 1]],
        [[5, 4.0], [10, 3.5]],
    ]


def test_a_killed_sweep_goes_on_as_if_it_had_never_stopped(
    opened: Callable[..., Ledger], tmp_path: Path
) -> None:
    undisturbed = play(opened(tmp_path / "undisturbed", **SEARCHED), 9)
    ledger = opened(**SEARCHED)
    played = play(ledger, 5)
    number, tokens, _ = begin(ledger)
    ledger.report(number, 5, 4.0)
    ledger.close()
    again = opened(resume=True, **SEARCHED)
    assert begin(again)[:2] == (number, tokens)
    assert not again.report(number, 5, 9.0)
    assert again.record(number)["curve"] == [[5, 4.0]]
    again.close()
    assert played + play(opened(resume=True, **SEARCHED), 4) == undisturbed


def test_a_trial_is_too_short_by_its_own_horizon(opened: Callable[..., Ledger]) -> None:
    space = SearchSpace(lr=(0.1, 0.1), weight_decay=(0.4, 0.4), decay=("l2",))
    # 60 steps of a cosine come to Σηλ = 0.04 × 33 × 0.68 (with the correction), half as many to half of it.
    ledger = opened(**SEARCHED, space=space, min_horizon=0.6)
    assert {one["tokens"] for one in play(ledger, 3)} == {61440}
    refused = [trial for trial in ledger.study.get_trials() if trial.user_attrs.get("status") == "refused"]
    assert {trial.values[0] for trial in refused} == {math.inf}
    assert {trial.state for trial in refused} == {TrialState.COMPLETE}


def test_without_a_whole_horizon_there_is_nothing_to_recommend(opened: Callable[..., Ledger]) -> None:
    ledger = opened(**{**SEARCHED, "trials": 4, "seeds": 1})
    number, *_ = begin(ledger)
    ledger.finish(number, "diverged", {"loss": math.inf, "tokens": 2048})
    play(ledger, 3)
    with pytest.raises(RunError) as caught:
        result_of(ledger, "data")
    why = "no trial of 61,440 tokens completed with every seed: all diverged; lower the bounds of space.lr"
    assert str(caught.value) == why


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run a command; return what it printed."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in argv])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_status_says_the_front(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in said(capsys, "status", swept.out).splitlines() if line.startswith("  front: ")]
    assert [", ".join(line.split(", ")[:3]) for line in lines] == [
        f"  front: trial {one['number']}, loss {one['loss']:.4f}, tokens {one['tokens']:,}"
        for one in swept.front
    ]
    [part] = json.loads(said(capsys, "status", swept.out, "--json"))["parts"]
    shown = [(one["trial"], one["tokens"], one["loss"], one["lr"]) for one in part["front"]]
    assert shown == [
        (str(one["number"]), one["tokens"], one["loss"], one["hyperparameters"]["lr"]) for one in swept.front
    ]


def test_a_finished_sweep_is_told_with_what_it_recommends_and_what_comes_next(
    swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    [part] = json.loads(said(capsys, "status", swept.out, "--json"))["parts"]
    best = swept.result.best
    assert (part["state"], part["recommended"]["losses"]) == ("finished", best.as_json()["losses"])
    tuned = best.hyperparameters
    c = [] if tuned.huber_c is None else [f"huber_c {tuned.huber_c:.4g}"]
    expected = [
        f"  recommended: trial {best.number}",
        f"mean loss {best.mean:.4f} ± {best.spread:.4f} over 2 seeds",
        f"lr {tuned.lr:.4g}",
        f"weight_decay {tuned.weight_decay:.4g}",
        f"decay {tuned.decay}",
        *c,
    ]
    lines = said(capsys, "status", swept.out).splitlines()
    [recommended] = [line for line in lines if line.startswith("  recommended: ")]
    assert sorted(recommended.split(", ")) == sorted(expected)
    assert lines[-1] == f"  next: widthwise scale {swept.out} --width 1024"


def test_a_finished_sweep_prints_its_front_and_keeps_it_in_the_recipe(
    swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    show(swept.result, swept.out, Console(width=120))
    printed = capsys.readouterr().out
    assert "least loss against tokens, one seed each" in printed
    for one in front_rows(swept.front):
        assert [*one] in [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    last, least = swept.front[-2:]
    assert front_rows(swept.front)[-2][4] == f"{100 * (last['loss'] / least['loss'] - 1):.1f}%"
    recipe = Recipe.load(swept.out / "recipe.json")
    assert recipe.evidence is not None
    assert [*recipe.evidence["front"]] == swept.front
    assert recipe.horizon.tokens == TOKENS[-1]


def test_the_report_and_the_plot_show_loss_and_rate_against_tokens(
    swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss, rate = front_panels(read_contents(swept.out).sweeps)
    trials = [one for one in swept.result.records if one["confirms"] is None]
    for panel, of in (
        (loss, lambda one: one["loss"]),
        (rate, lambda one: one["hyperparameters"]["lr"]),
    ):
        every, best = panel.series
        assert list(zip(every.x, every.y, strict=True)) == [(one["tokens"], of(one)) for one in trials]
        assert list(zip(best.x, best.y, strict=True)) == [(one["tokens"], of(one)) for one in swept.front]
    written = said(capsys, "report", swept.out, "--out", tmp_path / "report.html").strip()
    page = Path(written).read_text()
    assert "<h3>Loss against tokens</h3>" in page
    assert f'id="chart-front-{loss.name}"' in page
    assert "--min-tokens 7000" in page
    said(capsys, "plot", swept.out, "--what", "front", "--out", tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_sweep_searches_its_horizon(
    real_text: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    options = (
        "--width 32 --context 64 --batch-tokens 1024 --tokens 40960 --min-tokens 10240 --trials 5 --seeds 1"
    )
    out = tmp_path / "sweep"
    sweep = ["sweep", *options.split(), "--data", real_text, "--out", out, "--json"]
    running = start(*sweep)
    running.until(lambda: (out / "trials.jsonl").exists() and (out / "trials.jsonl").read_text())
    running.kill()
    code, printed, errors = start("sweep", "--resume", "--out", out, "--json").finish()
    assert (code, running.out.read_text()) == (0, ""), errors
    front = json.loads(printed)["front"]
    assert front[-1]["tokens"] == 40960
    assert [one["loss"] for one in front] == sorted((one["loss"] for one in front), reverse=True)
    records = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert [one["horizon"] for one in records][:3] == [40960, 20480, 10240]
    assert [(one["status"], one["tokens"]) for one in records] == [
        ("completed", one["horizon"]) for one in records
    ]
    assert all(one["curve"][-1] == [one["tokens"] // 1024, one["loss"]] for one in records)
