"""Pictures of a load, measured and simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qsim.calibrate.adapt.comparing import Compared
from qsim.report.figures.labels import EndLabel, label_ends
from qsim.report.figures.palette import text_color
from qsim.report.figures.style import COLORS, blank_figure, style
from qsim.report.figures.tails import percentile_axis, tail_of_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compare_figure"]

_TITLE = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}


def compare_figure(c: Compared) -> Figure:
    """Each request, simulated over measured, and both distributions, for each metric."""
    with style():
        pairs = c.pairs()
        figure = blank_figure(4.2 * len(pairs), 6.4)
        axes = figure.subplots(2, len(pairs), squeeze=False)
        ends = []
        for i, (metric, (measured, simulated)) in enumerate(pairs.items()):
            low = max(float(min(measured.min(), simulated.min())), 1e-3)
            high = max(float(max(measured.max(), simulated.max())), low * 1.01)
            above, below = axes[0][i], axes[1][i]
            above.plot([low, high], [low, high], color="0.6", linewidth=0.8)
            above.plot(np.maximum(measured, 1e-3), np.maximum(simulated, 1e-3), ".", markersize=3)
            above.set(xscale="log", yscale="log", title=f"{_TITLE[metric]}, one request a point",
                      xlabel="measured, ms", ylabel="simulated, ms")  # fmt: skip
            curves = [tail_of_values(v) for v in (measured, simulated)]
            labels = []
            for curve, name, color in zip(curves, ("measured", "simulated"), COLORS, strict=False):
                below.step(*curve, where="pre", color=color, linewidth=1.4)
                labels.append(
                    EndLabel(name, float(curve[0][-1]), float(curve[1][-1]), text_color(color))
                )
            percentile_axis(below, metric.removesuffix("_ms"), curves, ())
            ends.append((below, labels))
        figure.suptitle(f"{c.load.name} through {c.profile.id}")
        label_ends(figure, ends)
    return figure
