"""Latencies by percentile, the tail spread out: the axis is a logarithmic one of 1 - F.

Distribution functions of latencies meet at 1 where SLOs are set. Over 1 / (1 - F), each factor of
ten is one more nine: p90, p99 and p99.9 are as far apart as p0 and p90.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray
from qsim.report.figures.style import plain_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qsim.sim.results.slo import Slo

#: 1 / (1 - F) and the latency, ms
Curve = tuple[FloatArray, FloatArray]
_TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
_PERCENTILES = (50, 90, 95, 99, 99.9, 99.99, 99.999)
_LIMIT = "#444444"


def tail_of_values(values: npt.ArrayLike) -> Curve:
    """Each value, in order, over 1 / (share of values that are at least as large)."""
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    return n / (n - np.arange(n)), ordered


def tail_of_quantiles(at: Sequence[float], values: Sequence[float], n: int) -> Curve:
    """The same from quantiles ``at`` (0 to 1) of ``n`` values; the highest one is over ``n``."""
    share, kept = np.asarray(at, np.float64), np.asarray(values, np.float64)
    if not len(kept) or n < 1:
        return np.empty(0), np.empty(0)
    inside = share < 1 - 1 / n
    x = np.append(1 / (1 - share[inside]), float(n))
    return x, np.append(kept[inside], kept[-1])


def percentile_axis(ax: Axes, name: str, curves: Sequence[Curve], slos: Sequence[Slo]) -> None:
    """Title, axes and limits of a panel of one latency, ms, over percentiles.

    ``curves`` are as drawn: 1 / (1 - F) and ms. A percentile's limit among ``slos`` becomes a dot
    that no curve may pass above, with a dashed line.
    """
    mine = [s for s in slos if s.metric == name]
    tails = [1 / (1 - s.quantile) for s in mine if s.quantile is not None and s.quantile < 1]
    most = max([10.0, *tails, *(float(x[-1]) for x, _ in curves if len(x))])
    ax.set_title(f"{_TITLES[name]}, ms, by percentile of requests")
    ax.set_xscale("log")
    ax.set_xlim(1, most * 1.05)
    shown = [p for p in _PERCENTILES if 1 / (1 - p / 100) <= most * 1.0001]
    if 99.9 in shown:
        shown.remove(95)
    ax.set_xticks([1 / (1 - p / 100) for p in shown], [f"p{p:g}" for p in shown])
    ax.minorticks_off()
    values = np.concatenate([[float(s.limit_ms) for s in mine], *(y for _, y in curves)])
    for slo in mine:
        ax.axhline(slo.limit_ms, color=_LIMIT, linestyle="--", linewidth=0.9, zorder=1.5)
        if slo.quantile is not None:
            at = 1 / (1 - slo.quantile) if slo.quantile < 1 else most
            ax.plot([at], [slo.limit_ms], marker="o", color=_LIMIT, markersize=5, zorder=4)
        ax.annotate(
            f"{slo.statistic} at most {slo.limit_ms:g}",
            xy=(0.01, slo.limit_ms), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", fontsize=8, color=_LIMIT,
            annotation_clip=True,
        )  # fmt: skip
    positive = values[values > 0]
    if len(positive) and positive.max() > 5 * positive.min():
        plain_log_axis(ax)
    else:
        ax.set_ylim(bottom=0)
