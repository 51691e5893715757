"""What a watched run leaves in its folder, and what status, report and plot make of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import GPTConfig, Horizon, Hyperparameters
from widthwise.proxies.files import locked, write_json
from widthwise.proxies.outcome import Diagnostics, KindDiagnostics, Metrics
from widthwise.proxies.pulse import PULSE, Beat
from widthwise.proxies.validation import ConfigError
from widthwise.transfer import LaunchOptions, Recipe, cli, launch, report
from widthwise.transfer.peaks import peak_tflops
from widthwise.transfer.reporting.figures import plot
from widthwise.transfer.run_files import Log
from widthwise.transfer.waiting import WAITING
from widthwise.transfer.watching.records import Carried, Watch
from widthwise.transfer.watching.telling import told, told_all

WATCH = Watch(
    schema="widthwise/bands/1",
    steps=(5, 10),
    bands=(
        Carried(quantity="loss", kind="run", centre=(2.0, 1.5), low=(None, None), high=(2.5, 2.0)),
        Carried(quantity="gain", kind="matrix", centre=(None, 1.0), low=(None, 0.5), high=(None, 2.0)),
    ),
    left_out=("some weights are not judged: of this and that",),
)


def metrics(step: int, loss: float, *, gain: float = 1.0) -> Metrics:
    values: dict[str, Any] = dict.fromkeys(
        ("rms", "rms_ratio", "update_ratio", "update_ratio_over_law", "gradient_to_weight"), None
    )
    kind = KindDiagnostics(**values, top_singular_value=None, gain=gain, kappa=None)
    return Metrics(
        step=step,
        tokens=64 * step,
        loss=loss,
        train_loss=loss,
        grad_norm=1.0,
        lr_factor=1.0,
        seconds=2.0 * step,
        tokens_per_second=32.0,
        flops=1e12 * step,
        diagnostics=Diagnostics(parameters={}, kinds={"matrix": kind}, gradient_norm=1.0),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_writes_evaluations_and_alarms_and_says_when_to_stop(tmp_path: Path) -> None:
    log = Log(tmp_path, WATCH, peak=2e12, abort=True)
    assert not log.add(metrics(5, 2.4, gain=9.0))  # no gain is known there
    assert not (tmp_path / "alarms.jsonl").exists()
    assert log.add(metrics(10, 3.25))
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [5, 10]
    # 10¹² operations in two seconds, of 2·10¹² a second.
    assert [line["mfu"] for line in lines(tmp_path / "metrics.jsonl")] == [0.25, 0.25]
    [alarm] = lines(tmp_path / "alarms.jsonl")
    assert log.ending() == {"alarms": [alarm]}
    assert (alarm["step"], alarm["tokens"], alarm["quantity"], alarm["value"], alarm["high"]) == (
        10,
        640,
        "loss",
        3.25,
        2.0,
    )
    # A resumed run repeats a step, and it is sound now.
    resumed = Log(tmp_path, WATCH, abort=True)
    assert not resumed.add(metrics(10, 1.75))
    assert (lines(tmp_path / "alarms.jsonl"), resumed.ending()) == ([], {"alarms": []})
    assert "mfu" not in lines(tmp_path / "metrics.jsonl")[-1]


def test_a_log_that_goes_on_knows_what_was_outside_and_how_many_workers_there_were(tmp_path: Path) -> None:
    assert not Log(tmp_path, WATCH, peak=2e12, abort=True).add(metrics(5, 2.6))
    # Outside by little, but for the second time.
    assert Log(tmp_path, WATCH, peak=8e12, abort=True).add(metrics(10, 2.1))
    assert [line["step"] for line in lines(tmp_path / "alarms.jsonl")] == [10]
    # 10¹³ operations in ten seconds at 2·10¹² a second, and ten at four times as many.
    assert [line["mfu"] for line in lines(tmp_path / "metrics.jsonl")] == [0.25, 0.1]


def test_without_bands_a_log_has_no_alarms(tmp_path: Path) -> None:
    log = Log(tmp_path, None)
    assert (log.add(metrics(10, 9.0)), log.ending()) == (False, {})
    assert Log(tmp_path, WATCH.model_copy(update={"bands": ()})).ending() == {}
    assert [path.name for path in tmp_path.glob("*.*")] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A10G", None),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_the_named_device(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


@pytest.mark.parametrize(
    ("options", "evidence", "message"),
    [
        (
            {},
            None,
            "abort_on: must not be 'alarm' where nothing is watched: the recipe has no bands; a sweep measures them "
            "with three seeds or more",
        ),
        ({"unwatched": True}, None, "abort_on: must not be 'alarm' where the run is not watched"),
        (
            {},
            {"bands": {"seeds": 2, "fractions": [1.0], "run": {}, "kinds": {}}},
            "abort_on: must not be 'alarm' where nothing is watched: nothing is judged: the laws were tried with "
            "proxies of width 32 and more",
        ),
    ],
    ids=["an older recipe", "unwatched", "narrow proxies"],
)
def test_an_alarm_that_cannot_come_is_not_waited_for(
    tmp_path: Path, real_text: Path, options: dict[str, Any], evidence: dict[str, Any] | None, message: str
) -> None:
    tuned = Hyperparameters(lr=0.02, weight_decay=2.0, decay="l2")
    proxy, horizon = GPTConfig(width=16, context=64), Horizon(batch_tokens=128, tokens=1280)
    plan = Recipe(hyperparameters=tuned, proxy=proxy, horizon=horizon, evidence=evidence).at(width=64)
    given = LaunchOptions(data=str(real_text), abort_on="alarm", **options)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        launch(plan, tmp_path / "out", given)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """Return the folder of a run that left a band, and has not ended."""
    out = tmp_path / "target"
    out.mkdir()
    log = Log(out, WATCH, peak=2e12)
    for one in (metrics(5, 2.25), metrics(10, 3.25, gain=5.0)):
        log.add(one)
    (out / "bands.json").write_text(WATCH.model_dump_json(by_alias=True))
    plan = {"rule": "fan-sqrt", "ratios": {}, "kinds": {}, "model": {"width": 128}}
    (out / "plan.json").write_text(json.dumps({**plan, "horizon": {"batch_tokens": 64, "tokens": 1280}}))
    return out


def test_status_tells_the_alarms_of_a_run_in_progress_and_of_a_dead_one(
    capsys: pytest.CaptureFixture[str], watched: Path
) -> None:
    first, second = lines(watched / "alarms.jsonl")
    assert (first["step"], second["step"], first["cause"]) == (10, 10, second["cause"])
    alarms = [f"  {told(first)}", f"  {told(second).partition('likely cause')[0]}likely cause: as above"]

    def said() -> list[str]:
        with pytest.raises(SystemExit):
            cli.main(["status", str(watched)])
        return capsys.readouterr().out.splitlines()

    progress = "  640 of 1,280 tokens, validation loss 3.2500, 32 tokens/s, MFU 25.0%"
    with locked(watched):
        assert said() == [f"{watched}: target, running", f"{progress}, 20 s left", *alarms]
        write_json(
            watched / PULSE,
            Beat(started=1.0, workers=2, first_step=5, step=12, tokens_per_second=2.0).model_dump(),
        )
        write_json(watched / WAITING, {"room": 1, "fewest": 2, "held": 0})
        assert said() == [
            f"{watched}: target, running",
            "  768 of 1,280 tokens, validation loss 3.2500, 2 tokens/s, MFU 25.0%, 2 workers, 4 min left",
            "  waiting for nodes: the run needs 2 workers, and Ray has room for 1",
            *alarms,
        ]
    dead = [
        f"{watched}: target, interrupted",
        progress,
        *alarms,
        "  go on with the same command and --resume",
    ]
    assert said() == dead


def test_the_report_says_the_alarms_and_draws_the_bands(watched: Path) -> None:
    with locked(watched):
        page = report(watched).read_text()
    assert "in progress" in page
    assert "Some weights are not judged: of this and that." in page
    for line in told_all(lines(watched / "alarms.jsonl")):
        assert line.replace("'", "&#x27;") in page
    assert "target: loss and the proxies&#x27; band" in page.lower()
    assert "target: gain of matrix and the proxies&#x27; band" in page.lower()
    assert '"fill":"toself"' in page
    assert "interrupted" in report(watched).read_text()


def test_a_run_within_its_bands_is_said_to_be(watched: Path) -> None:
    (watched / "alarms.jsonl").unlink()
    assert "2 bands: every evaluation so far lies within them." in report(watched).read_text()


def test_the_bands_are_plotted(watched: Path) -> None:
    drawn = plot(watched, watched / "bands.svg", "bands").read_text()
    assert drawn.startswith("<?xml")
    assert drawn.count('<g id="axes_') == 2
