"""How all pictures look, and how they are saved.

Figures are made without pyplot, so that nothing global is touched, and saved without dates, so
that the same result gives the same file.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsim.errors import MissingExtraError
from qsim.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "blank_figure", "figure_svg", "plain_log_axis", "save_figure", "style"]

# Okabe and Ito's colours, told apart by people with any colour vision; for what is no method
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_STYLE: Any = {
    "font.size": 9,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "qsim",
    "svg.fonttype": "none",
}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write as .png, .svg or .pdf by the ending of ``path``; whole or not at all."""
    with style(), atomic_path(path) as temporary:
        metadata = {".png": {"Software": None}, ".svg": {"Date": None}}.get(
            Path(path).suffix.lower(), {"CreationDate": None}
        )
        figure.savefig(
            temporary, dpi=150, metadata=metadata, format=Path(path).suffix.lower().lstrip(".")
        )


def figure_svg(figure: Figure) -> str:
    """The ``<svg>`` element, to be put into a page."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def style() -> Any:
    """matplotlib's settings for the time of a ``with`` block."""
    try:
        import matplotlib as mpl
    except ImportError as e:
        raise MissingExtraError("matplotlib", "report", "drawing a picture") from e
    return mpl.rc_context(_STYLE)


def blank_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_log_axis(ax: Axes, axis: str = "y") -> None:
    """A logarithmic axis with numbers as people write them, about five of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    (ax.set_yscale if axis == "y" else ax.set_xscale)("log")
    low, high = ax.get_ylim() if axis == "y" else ax.get_xlim()
    one = ax.yaxis if axis == "y" else ax.xaxis
    subs: tuple[float, ...] = (1.0,) if high > 3000 * low else (1.0, 2.0, 5.0)
    if high < 4 * low:
        subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    one.set_major_locator(LogLocator(subs=subs))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    one.set_minor_formatter(NullFormatter())
