"""The learning curve as a picture: training loss by step, and the validation figure beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential average, corrected for its start."""
    out, mean = [], 0.0
    for number, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**number))
    return out


def learning_curve(records: Sequence[Mapping[str, Any]], metric: str, title: str = "") -> str:
    """An SVG of a run's log: records with `loss` by `step`, and some with `validation`."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    scores = [(r["step"], r["validation"][metric]) for r in records if metric in r.get("validation", {})]
    with matplotlib.rc_context({"svg.hashsalt": "luthier", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 3.6))
        figure.subplots_adjust(left=0.11, right=0.89, bottom=0.15, top=0.9)
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        if losses:
            steps, values = zip(*losses)
            axes.plot(steps, values, color="#9db4c8", linewidth=0.8, label="loss of each batch")
            axes.plot(steps, smooth(values), color="#1f4e79", linewidth=1.6, label="its moving average")
        axes.set(xlabel="step", ylabel="training loss", title=title.replace("$", r"\$"))
        axes.spines[["top", "right"]].set_visible(False)
        if scores:
            other = axes.twinx()
            other.plot(
                *zip(*scores),
                color="#c0561f",
                marker="o",
                markersize=4,
                linewidth=1.2,
                label=f"validation {metric}",
            )
            other.set_ylabel(f"validation {metric}")
            other.spines[["top", "left"]].set_visible(False)
            other.legend(loc="upper right", frameon=False, fontsize=8)
        if losses:
            axes.legend(loc="lower left", frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
