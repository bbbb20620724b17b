"""Pictures of a load, measured and simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qsim.calibrate.adapt.comparing import Compared
from qsim.report.figures.style import blank_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compare_figure"]

_TITLE = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}


def compare_figure(c: Compared) -> Figure:
    """Each request, simulated over measured, and both distributions, for each metric."""
    with style():
        pairs = c.pairs()
        figure = blank_figure(3.6 * len(pairs), 6.4)
        axes = figure.subplots(2, len(pairs), squeeze=False)
        for i, (metric, (measured, simulated)) in enumerate(pairs.items()):
            low = max(float(min(measured.min(), simulated.min())), 1e-3)
            high = max(float(max(measured.max(), simulated.max())), low * 1.01)
            above, below = axes[0][i], axes[1][i]
            above.plot([low, high], [low, high], color="0.6", linewidth=0.8)
            above.plot(np.maximum(measured, 1e-3), np.maximum(simulated, 1e-3), ".", markersize=3)
            above.set(xscale="log", yscale="log", title=f"{_TITLE[metric]}, one request a point",
                      xlabel="measured, ms", ylabel="simulated, ms")  # fmt: skip
            share = (np.arange(len(measured)) + 1) / len(measured)
            below.plot(np.sort(measured), share, label="measured")
            below.plot(np.sort(simulated), share, label="simulated", linestyle="--")
            below.set(xscale="log", xlabel=f"{_TITLE[metric]}, ms", ylabel="share of requests")
            below.legend()
        figure.suptitle(f"{c.load.name} through {c.profile.id}")
    return figure
