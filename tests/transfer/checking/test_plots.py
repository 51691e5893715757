"""Plots hold the numbers of a check: what is looked at is the data in the axes, never pixels."""

import runpy
import shutil
import sys
from collections.abc import Callable
from io import BytesIO
from math import log, log2, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from widthwise.proxies.files import write_json
from widthwise.proxies.outcome import SPECTRUM_SHARES
from widthwise.transfer.checking.observing import line
from widthwise.transfer.checking.running import CheckResult
from widthwise.transfer.cli import _parse, main
from widthwise.transfer.commands.check import Check
from widthwise.transfer.reporting import report
from widthwise.transfer.reporting.charts import panel_chart
from widthwise.transfer.reporting.check_panels import check_panels
from widthwise.transfer.reporting.figures import draw
from widthwise.transfer.reporting.panels import Panel

from ...conftest import ROOT
from ..conftest import commands

Checked = Callable[..., CheckResult]


@pytest.fixture(scope="module")
def result(checked: Checked) -> CheckResult:
    """Return a check in a world whose optima drift, and where η two octaves up diverges."""
    return checked(lr_drift=0.25, decay_drift=-0.3, coordinate=0.04, wall=2.0)


@pytest.fixture(scope="module")
def panels(result: CheckResult) -> dict[str, Panel]:
    return {panel.name: panel for panel in check_panels(result)}


@pytest.fixture(scope="module")
def axes(panels: dict[str, Panel]) -> dict[str, Axes]:
    return dict(zip(panels, draw(list(panels.values())).axes, strict=True))


@pytest.fixture
def folder(result: CheckResult, tmp_path: Path) -> Path:
    (tmp_path / "check").mkdir()
    write_json(tmp_path / "check" / "check.json", result.as_json())
    return tmp_path / "check"


def drawn(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    """Return the x and y of a line, or of the points that stand in the legend under a label."""
    handles, labels = axes.get_legend_handles_labels()
    found: Any = handles[labels.index(label)]
    data = found.lines[0] if hasattr(found, "has_yerr") else found
    return [float(x) for x in data.get_xdata()], [float(y) for y in data.get_ydata()]


def test_a_check_has_a_panel_of_every_kind(axes: dict[str, Axes]) -> None:
    assert list(axes) == ["lr", "decay", "singular-values", "spectra", "coordinates"]


@pytest.mark.parametrize(("axis", "diverged"), [("lr", " (1 value of η diverged)"), ("decay", "")])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_the_points_are_the_means_over_seeds_with_their_deviations(
    result: CheckResult, axes: dict[str, Axes], axis: Any, diverged: str, width: int
) -> None:
    losses = {x: list(by_seed.values()) for x, by_seed in line(result.observations, width, axis).items()}
    known = {
        x: [loss for loss in some if loss is not None]
        for x, some in sorted(losses.items())
        if None not in some
    }
    label = f"width {width}{diverged}"
    x, y = drawn(axes[axis], label)
    assert (x, y) == (list(known), [fmean(some) for some in known.values()])
    handles, labels = axes[axis].get_legend_handles_labels()
    bars: Any = handles[labels.index(label)]
    spans = [bar[1][1] - bar[0][1] for bar in bars[2][0].get_segments()]
    assert spans == pytest.approx([2 * stdev(some) for some in known.values()])


@pytest.mark.parametrize(("axis", "drift"), [("lr", 0.25), ("decay", -0.3)])
def test_the_minima_are_those_of_the_world_and_of_the_parabolas(
    axes: dict[str, Axes], axis: str, drift: float
) -> None:
    x, y = drawn(axes[axis], "fitted minima")
    assert x == pytest.approx([0, drift, 2 * drift], abs=0.1)
    parabolas = [one for one in axes[axis].get_lines() if len(np.asarray(one.get_xdata())) == 41]
    assert len(parabolas) == 3
    for minimum, loss, parabola in zip(x, y, parabolas, strict=True):
        across, along = np.asarray(parabola.get_xdata()), np.asarray(parabola.get_ydata())
        assert np.interp(minimum, across, along) == pytest.approx(loss, abs=1e-4)
        assert along.min() == pytest.approx(loss, abs=1e-4)


def test_the_rules_are_marked_where_their_decay_lies(axes: dict[str, Axes]) -> None:
    marked = {text.get_text(): text.xy[0] for text in axes["decay"].texts}  # type: ignore[attr-defined]
    # At four times the width fan-sqrt doubles λ, mup-coupled keeps it, and the other two quadruple it.
    assert marked == {
        "transferred by fan-sqrt": 0.0,
        "mup-coupled": -1.0,
        "mup-independent, completep": 1.0,
    }
    assert [text.get_text() for text in axes["lr"].texts] == ["transferred by fan-sqrt"]


def test_no_label_hides_a_point(axes: dict[str, Axes]) -> None:
    figure = axes["lr"].figure
    assert figure is not None
    figure.savefig(BytesIO())  # lays out
    for one in (axes["lr"], axes["decay"]):
        for text in one.texts:
            line_at = one.transData.transform((text.xy[0], 0))[0]  # type: ignore[attr-defined]
            assert text.get_window_extent().x1 < line_at - 3  # clear of a marker
    legend = axes["lr"].get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 4
    assert legend.get_window_extent().y1 < axes["lr"].get_window_extent().y0


def test_the_singular_values_are_free_of_lr_and_decay(result: CheckResult, axes: dict[str, Axes]) -> None:
    transferred = [one for one in result.observations if one.setting.is_transferred]
    x, y = drawn(axes["singular-values"], "a run")
    assert x == [one.setting.width for one in transferred]
    own = [
        sqrt(one.top_singular_values["up"] * one.top_singular_values["down"] * one.weight_decay / one.lr)
        for one in transferred
    ]
    assert y == pytest.approx(own)
    slopes = {}
    for label in axes["singular-values"].get_legend_handles_labels()[1]:
        ends, values = drawn(axes["singular-values"], label)
        slopes[label.split(":")[0]] = log(values[-1] / values[0]) / log(ends[-1] / ends[0])
    assert result.measured is not None
    assert result.measured.singular_exponent is not None
    assert slopes["measured"] == pytest.approx(result.measured.singular_exponent.value)
    # η ∝ 1/d and λ ∝ √d keep σ₁ where p = 3/4.
    assert slopes["fan-sqrt supposes (σ₁ kept)"] == pytest.approx(0.75)


def test_the_spectra_are_means_over_matrices_and_seeds(result: CheckResult, axes: dict[str, Axes]) -> None:
    for width in (32, 64, 128):
        x, y = drawn(axes["spectra"], f"width {width}")
        assert tuple(x) == SPECTRUM_SHARES
        transferred = [one for one in result.observations if one.setting.is_transferred]
        spectra = [one.spectra["up"] for one in transferred if one.setting.width == width]
        assert y == pytest.approx(np.exp(np.log(spectra).mean(axis=0)))


def test_the_coordinates_have_the_verdicts_exponents(result: CheckResult, axes: dict[str, Axes]) -> None:
    measured = result.measured
    assert measured is not None
    labels = axes["coordinates"].get_legend_handles_labels()[1]
    assert [label.split(":")[0] for label in labels] == ["embedding", "logits"]
    for layer, label in zip(("embedding", "logits"), labels, strict=True):
        x, y = drawn(axes["coordinates"], label)
        assert x == [32, 128]
        exponent = measured.coordinate_slopes[layer].value
        assert log2(y[1] / y[0]) / 2 == pytest.approx(exponent, abs=1e-12)
    points = [one for one in axes["coordinates"].get_lines() if one.get_linestyle() == "None"]
    heights = [np.asarray(one.get_ydata()).tolist() for one in points]
    assert heights == [[at.coordinates[layer] for at in measured.widths] for layer in ("embedding", "logits")]


def test_plotly_draws_what_matplotlib_draws(panels: dict[str, Panel]) -> None:
    for panel in panels.values():
        figure = panel_chart(panel)
        assert [(trace.name, list(trace.x), list(trace.y)) for trace in figure.data] == [
            (one.label, list(one.x), list(one.y)) for one in panel.series
        ]
        assert [note.text for note in figure.layout.annotations] == list(panel.marks)


def test_a_check_that_ended_early_has_the_panels_that_it_has_runs_for(checked: Checked) -> None:
    named = [panel.name for panel in check_panels(checked(coordinate=0.5))]
    assert named == ["singular-values", "spectra", "coordinates"]


def ran(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_command_writes_the_file_and_prints_its_path(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, start: bytes
) -> None:
    out = folder / name
    assert ran("plot", folder, "--out", out, "--what", "lr") == 0
    assert capsys.readouterr().out == f"{out}\n"
    content = out.read_bytes()
    assert content.startswith(start)
    # The same check is the same file.
    assert ran("plot", folder.parent, "--out", out, "--what", "lr", "--json") == 0
    assert out.read_bytes() == content


def test_several_checks_are_one_table(
    checked: Checked, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = folder.parent / "broken"
    broken.mkdir()
    write_json(broken / "check.json", checked(coordinate=0.5).as_json())
    monkeypatch.setattr(sys, "argv", ["transfer.py", str(folder), str(broken)])
    runpy.run_path(str(ROOT / "benchmarks" / "transfer.py"), run_name="__main__")
    printed = capsys.readouterr().out
    head, _, *rows = ([cell.strip() for cell in one.strip("|").split("|")] for one in printed.splitlines())
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert [one["verdict"] for one in found] == ["holds", "fails"]
    assert found[0]["optimal η, octaves per doubling"].startswith("+0.2")
    assert found[0]["κ̂ over the widths"] == "0.90, 0.90, 0.90"
    assert (found[0]["exponent of λ: rule"], found[0]["exponent of λ: loss"][:4]) == ("0.50", "+0.2")
    assert {found[1][name] for name in ("regret of λ there", "exponent of λ: loss", "penalty")} == {"–"}


def test_mistakes_are_one_line_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty").mkdir()
    running = folder.parent / "running"
    running.mkdir()
    (running / "runs.db").touch()
    kinds = "lr, decay, singular-values, coordinates"
    for where, options, message in [
        (folder, ("--out", "a.jpg"), "out: must end in .png, .svg or .pdf, got 'a.jpg'"),
        (
            folder,
            ("--out", "a.png", "--what", "l"),
            f"what: must be one of {kinds}, diagnostics, bands, front, got 'l'",
        ),
        (
            folder,
            ("--out", "a.png", "--what", "diagnostics"),
            f"what: {folder} holds no diagnostics; must be one of {kinds}",
        ),
        (
            folder / "empty",
            ("--out", "a.png"),
            f"folder: {folder / 'empty'} holds neither a sweep nor a finished check nor a target run",
        ),
        (running, ("--out", "a.png"), f"folder: the check in {running} has not finished"),
        (
            folder,
            ("--out", folder / "no" / "a.png"),
            f"out: {folder / 'no' / 'a.png'} cannot be written (No such file or directory)",
        ),
    ]:
        assert ran("plot", where, *options) == 2
        assert capsys.readouterr().err == f"widthwise: error: {message}\n"


def test_another_programs_check_is_left_out_and_a_damaged_one_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs" / "check.json").write_text('{"flour": 500}')
    shutil.copy(folder / "theirs" / "check.json", folder.parent / "check.json")
    assert ran("report", folder) == 0
    said = f"{folder}/theirs/check.json: schema: is required, must be 'widthwise/check/1'"
    assert capsys.readouterr().err == f"widthwise: left out: {said}\n"
    assert ran("plot", folder, "--out", folder / "a.png", "--what", "lr") == 0
    assert capsys.readouterr().err == f"widthwise: left out: {said}\n"
    assert ran("plot", folder.parent, "--out", folder / "a.png") == 2
    message = f"{folder.parent}/check.json: schema: is required, must be 'widthwise/check/1'"
    assert capsys.readouterr().err == f"widthwise: error: {message}\n"


def test_the_report_says_the_verdict_first_and_shows_the_table_and_the_charts(
    result: CheckResult, folder: Path
) -> None:
    page = report(folder).read_text()
    sentence = result.verdict.sentence
    assert f'<p class="headline">The transfer by fan-sqrt {sentence}</p>' in page
    for name in ("lr-1", "decay-1", "singular-values-1", "spectra-1", "coordinates-1"):
        assert f'id="chart-{name}"' in page
    assert result.measured is not None
    for at in result.measured.widths:
        assert f"<tr><td>{at.width}</td><td>{at.loss:.4f}</td>" in page


@pytest.mark.parametrize(
    ("options", "measured", "flags"),
    [({"full": True}, True, ["--full"]), ({}, True, []), ({"widths": (32, 64, 256)}, False, [])],
)
def test_the_command_of_a_check_is_one_that_is_taken(
    result: CheckResult, folder: Path, options: dict[str, Any], measured: bool, flags: list[str]
) -> None:
    document = result.as_json()
    document["options"] |= options
    if not measured:
        document |= {"measured": None, "observations": []}
        document["horizons"] = dict.fromkeys(map(str, options["widths"]), 0.1)
    write_json(folder / "check.json", document)
    [command] = commands(report(folder), "check")
    widths = "32,64,128" if measured else "32,64,256"
    usual = "--seeds 3 --seed 0 --rule fan-sqrt --data python --lr-octaves 1.0 --decay-octaves 1.0 --points 5"
    assert command == [*f"recipe.json --widths {widths} {usual}".split(), *flags, "--out", "check"]
    assert isinstance(read := _parse("check", Check, command), Check)
    assert (read.widths, read.full) == (widths, bool(flags))
