"""The report's charts, drawn by plotly; colours are Okabe and Ito's and cividis, for all kinds of sight.

Plotly reads a little HTML in its texts, links among it: whatever comes from a file is escaped first.
"""

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, log10
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from widthwise.transfer.reporting.formats import FinalistLine, TrialLine
from widthwise.transfer.reporting.markup import Html
from widthwise.transfer.reporting.panels import COLOURS, GREY, INK, LOSS, Look, Panel, Series, colour
from widthwise.transfer.reporting.reading import RunFolder
from widthwise.transfer.reporting.summary import nats, number

STATUS_COLOURS = {"completed": "#0072B2", "stopped": "#9AA4B2", "diverged": "#D55E00", "failed": "#CC79A7"}
_ARMS = {"huber": "circle", "l2": "square", "huber-prox": "diamond", "none": "triangle-up"}
_NO_LOSS = {"diverged": "x", "failed": "cross"}
_GRID = "#e2e6ec"


def chart(figure: go.Figure, name: str) -> Html:
    """Return a chart as markup; the page brings plotly's script."""
    config = {"displayModeBar": False, "responsive": True}
    return Html(
        figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"chart-{name}", config=config)
    )


def landscape(trials: Sequence[TrialLine], finalists: Sequence[FinalistLine]) -> go.Figure:
    """Draw η against λ, coloured by loss, a symbol for each form of decay and each ending."""
    figure = _figure(height=470)
    shown = [t for t in trials if t.hyperparameters.lr and t.hyperparameters.weight_decay]
    for label, marker, group in _by_symbol(shown):
        figure.add_trace(_points(group, marker, label))
    rings = [f.hyperparameters for f in finalists if f.hyperparameters.lr and f.hyperparameters.weight_decay]
    if rings:
        marker = {"symbol": "circle-open", "size": 22, "color": COLOURS[1], "line": {"width": 2}}
        x, y = [ring.lr for ring in rings], [ring.weight_decay for ring in rings]
        figure.add_trace(
            go.Scatter(x=x, y=y, mode="markers", marker=marker, name="finalist", hoverinfo="skip")
        )
    _log(figure.update_xaxes(title="learning rate η").layout.xaxis, (t.hyperparameters.lr for t in shown))
    decays = (t.hyperparameters.weight_decay for t in shown)
    _log(figure.update_yaxes(title="weight decay λ").layout.yaxis, decays)
    bar = {"title": {"text": LOSS, "side": "right"}, "thickness": 14, "outlinewidth": 0}
    figure.update_layout(coloraxis={"colorscale": "Cividis", "colorbar": bar})
    return figure


def _by_symbol(trials: Sequence[TrialLine]) -> Iterable[tuple[str, dict[str, Any], list[TrialLine]]]:
    """Yield a legend's text, its marker and its trials, for each form of decay and each ending."""
    groups: dict[tuple[str, str], list[TrialLine]] = {}
    for trial in trials:
        # Without a loss there is no colour, and the ending is all that the symbol can say.
        arm = trial.hyperparameters.decay or "none"
        groups.setdefault((trial.status, "" if trial.loss is None else arm), []).append(trial)
    for (status, arm), group in sorted(groups.items()):
        if arm:
            symbol = _ARMS.get(arm, "hexagon") + ("" if status == "completed" else "-open")
            marker = {"symbol": symbol, "coloraxis": "coloraxis", "color": [trial.loss for trial in group]}
        else:
            colour = STATUS_COLOURS.get(status, GREY)
            marker = {"symbol": _NO_LOSS.get(status, "asterisk-open"), "color": colour}
        width = 1 if status == "completed" else 2.5
        yield _label(arm, status), {**marker, "size": 12, "line": {"width": width}}, group


def _label(*parts: str) -> str:
    return escape(", ".join(part for part in parts if part), quote=False)


def _points(trials: list[TrialLine], marker: dict[str, Any], label: str) -> go.Scatter:
    drawn = [trial.hyperparameters for trial in trials]
    return go.Scatter(
        x=[one.lr for one in drawn],
        y=[one.weight_decay for one in drawn],
        mode="markers",
        marker=marker,
        name=label,
        text=[_described(trial) for trial in trials],
        hovertemplate="%{text}<extra></extra>",
    )


def _described(trial: TrialLine) -> str:
    drawn = trial.hyperparameters
    values = f"η = {number(drawn.lr)}, λ = {number(drawn.weight_decay)}, c = {number(drawn.huber_c)}"
    ending = f"{trial.status}: {nats(trial.loss)} nats per token after {trial.tokens:,} tokens"
    return f"trial {trial.number}, {_label(drawn.decay or '–')}<br>{values}<br>{_label(ending)}"


def slices(trials: Sequence[TrialLine]) -> go.Figure:
    """Draw the loss against each hyperparameter, completed trials filled."""
    names = {"lr": "learning rate η", "weight_decay": "weight decay λ", "huber_c": "Huber coefficient c"}
    figure = _figure(make_subplots(cols=3, shared_yaxes=True, horizontal_spacing=0.03), height=350)
    for status in dict.fromkeys(trial.status for trial in trials if trial.loss is not None):
        for column, name in enumerate(names, start=1):
            group = [
                t
                for t in trials
                if t.status == status and t.loss is not None and getattr(t.hyperparameters, name)
            ]
            marker = {"color": STATUS_COLOURS.get(status, GREY), "size": 9}
            marker["symbol"] = "circle" if status == "completed" else "circle-open"
            trace = go.Scatter(
                x=[getattr(trial.hyperparameters, name) for trial in group],
                y=[trial.loss for trial in group],
                mode="markers",
                marker=marker,
                name=_label(status),
                legendgroup=status,
                showlegend=column == 1,
                text=[_described(trial) for trial in group],
                hovertemplate="%{text}<extra></extra>",
            )
            figure.add_trace(trace, row=1, col=column)
    for column, (name, title) in enumerate(names.items(), start=1):
        axis = figure.layout["xaxis" if column == 1 else f"xaxis{column}"]
        axis.title = title
        _log(axis, (getattr(trial.hyperparameters, name) for trial in trials if trial.loss is not None))
    return figure.update_yaxes(title=LOSS, col=1)


def curves(trials: Sequence[TrialLine], best: TrialLine | None) -> go.Figure:
    """Draw every trial's validation loss over its steps, the best one thick."""
    figure = _figure(height=400).update_xaxes(title="step").update_yaxes(title=LOSS)
    seen: set[str] = set()
    for trial in trials:
        if not trial.curve:
            continue
        is_best = trial is best
        label = "best" if is_best else _label(trial.status)
        colour = INK if is_best else STATUS_COLOURS.get(trial.status, GREY)
        trace = go.Scatter(
            x=[step for step, _ in trial.curve],
            y=[loss for _, loss in trial.curve],
            mode="lines+markers",
            line={"color": colour, "width": 3 if is_best else 1.3},
            marker={"size": 6 if is_best else 4},
            name=label,
            legendgroup=label,
            showlegend=label not in seen,
            text=[_described(trial)] * len(trial.curve),
            hovertemplate="step %{x}: %{y:.4f}<br>%{text}<extra></extra>",
        )
        seen.add(label)
        figure.add_trace(trace)
    return figure


def seeds(finalists: Sequence[FinalistLine]) -> go.Figure:
    """Draw each finalist's losses by seed, and their mean with the standard deviation."""
    labels = [finalist_label(finalist) for finalist in finalists]
    figure = _figure(height=130 + 45 * len(labels))
    figure.update_xaxes(title=LOSS).update_yaxes(
        range=[len(labels) - 0.5, -0.5], automargin=True, type="category"
    )
    points = [
        (loss, label, _label(f"seed {seed}"))
        for label, finalist in zip(labels, finalists, strict=True)
        for seed, loss in finalist.losses.items()
        if loss is not None
    ]
    x, y, text = ([point[place] for point in points] for place in range(3))
    marker = {"color": COLOURS[5], "size": 11, "line": {"width": 1, "color": COLOURS[0]}}
    hover = {"text": text, "hovertemplate": "%{text}: %{x:.4f}<extra></extra>"}
    figure.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=marker, name="one seed", **hover))
    means = go.Scatter(
        x=[finalist.mean for finalist in finalists],
        y=labels,
        mode="markers",
        marker={"symbol": "line-ns", "size": 20, "line": {"width": 3, "color": INK}},
        error_x={"array": [finalist.spread or 0 for finalist in finalists], "color": INK, "thickness": 1.5},
        name="mean ± standard deviation",
        hovertemplate="mean %{x:.4f}<extra></extra>",
    )
    return figure.add_trace(means)


def finalist_label(finalist: FinalistLine) -> str:
    """Return what an axis calls a finalist."""
    drawn = finalist.hyperparameters
    tail = "" if drawn.huber_c is None else f", c = {number(drawn.huber_c, 3)}"
    start = f"trial {finalist.number}: {drawn.decay or '–'}"
    return _label(f"{start}, η = {number(drawn.lr, 3)}, λ = {number(drawn.weight_decay, 3)}{tail}")


def targets(runs: Sequence[RunFolder]) -> go.Figure:
    """Draw the target runs' losses over their tokens: validation as lines, training dotted."""
    figure = _figure(height=450).update_xaxes(title="tokens").update_yaxes(title="loss (nats per token)")
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        tokens = [line.tokens for line in run.metrics]
        for kind, line_style, mode in (
            ("validation", "solid", "lines+markers"),
            ("training", "dot", "lines"),
        ):
            losses = [line.loss if kind == "validation" else line.train_loss for line in run.metrics]
            trace = go.Scatter(
                x=tokens,
                y=losses,
                mode=mode,
                line={"color": colour, "dash": line_style, "width": 2.5 if mode != "lines" else 1.8},
                name=_label(f"{run.name} ({run.rule})", kind),
                hovertemplate="%{x:,} tokens: %{y:.4f}",
            )
            figure.add_trace(trace)
    return figure


_LOOKS: dict[Look, dict[str, Any]] = {
    "points": {"mode": "markers", "marker": {"size": 9}},
    "joined": {"mode": "lines+markers", "line": {"width": 0.8}, "marker": {"size": 9}},
    "line": {"mode": "lines+markers", "line": {"width": 2}, "marker": {"size": 4}},
    "dashed": {"mode": "lines", "line": {"width": 1.5, "dash": "dash"}},
    "dotted": {"mode": "lines", "line": {"width": 1.5, "dash": "dot"}},
    "stars": {"mode": "lines+markers", "line": {"width": 1.5}, "marker": {"symbol": "star", "size": 13}},
    # Its colours come from the line's.
    "area": {"mode": "none", "fill": "toself", "opacity": 0.35},
}


def panel_chart(panel: Panel) -> go.Figure:
    """Draw a panel, but a plain sweep's, whose looks `figures` alone knows."""
    figure = _figure(height=460)
    figure.add_traces([_trace(one) for one in panel.series])
    figure.update_xaxes(title=panel.x_label).update_yaxes(title=panel.y_label)
    if "y" in panel.log:
        _log(figure.layout.yaxis, (y for one in panel.series for y in one.y))
    if panel.log == "xy":
        ticks = [f"{tick:g}" for tick in panel.ticks]
        figure.update_xaxes(type="log", tickvals=list(panel.ticks), ticktext=ticks)
    for label, x in panel.marks.items():
        text = {"annotation_text": _label(label), "annotation_textangle": -90, "annotation_font_color": GREY}
        # Beside the line, from its top downwards.
        place = {"annotation_position": "top left", "annotation_yanchor": "top"}
        figure.add_vline(x=x, line={"color": GREY, "width": 1, "dash": "dot"}, **text, **place)
    return figure


def _trace(series: Series) -> go.Scatter:
    looks, own = _LOOKS[series.look], {"color": colour(series)}
    error = None if series.error is None else {"array": list(series.error), "thickness": 1.2}
    return go.Scatter(
        x=list(series.x),
        y=list(series.y),
        mode=looks["mode"],
        line={**looks.get("line", {}), **own},
        marker={**looks.get("marker", {}), **own},
        error_y=error,
        fill=looks.get("fill"),
        fillcolor=own["color"] if "fill" in looks else None,
        opacity=looks.get("opacity"),
        name=_label(series.label),
        showlegend=bool(series.label),
        hovertemplate="%{x:.4g}: %{y:.4g}<extra>" + _label(series.label) + "</extra>",
    )


def _figure(figure: go.Figure | None = None, *, height: int) -> go.Figure:
    figure = figure or go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        font={
            "family": "system-ui, Segoe UI, Roboto, Liberation Sans, DejaVu Sans, sans-serif",
            "color": INK,
            "size": 13,
        },
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": None},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(gridcolor=_GRID, linecolor=_GRID, ticks="outside", tickcolor=_GRID, zeroline=False)
    return figure.update_yaxes(gridcolor=_GRID, linecolor=_GRID, zeroline=False)


def _log(axis: Any, values: Iterable[float | None]) -> None:
    """Make an axis logarithmic, with round ticks in plain numbers: plotly's own are too many or too few."""
    known = [value for value in values if value]
    low, high = min(known, default=1.0), max(known, default=1.0)
    # Six ticks or so, whatever the range.
    steps: tuple[float, ...] = (1,)
    if high <= 300 * low:
        steps = (1, 2, 5) if high > 6 * low else (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 4, 5, 6, 8)
    decades = range(floor(log10(low)), floor(log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    axis.update(type="log", tickvals=ticks, ticktext=[f"{tick:.4g}" for tick in ticks])
