"""How all pictures look, and how they are saved; one look for each quantization method in all.

Figures are made without pyplot, so that nothing global is touched, and saved without dates, so
that the same result gives the same file.

The colours are black and the ten of Petroff, "Accessible Color Sequences for Data Visualization"
(arXiv 2107.02270; ``petroff10`` in matplotlib), chosen to be told apart with any colour vision.
A method keeps its colour whatever else is shown beside it. Markers tell methods apart without
colour; an FP8 KV cache empties the marker of its method and dashes its line.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsim.catalog.methods import KV_FP8
from qsim.errors import MissingExtraError
from qsim.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by people with any colour vision; for what is no method
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
#: id: colour, marker. Formats that compute alike are neighbours in hue
_METHODS = {
    "bf16": ("#000000", "o"),
    "fp8-w8a8": ("#3f90da", "s"),
    "fp8-w8a8-static": ("#92dadd", "D"),
    "fp8-block": ("#717581", "p"),
    "int8-w8a8": ("#ffa90e", "^"),
    "gptq-w8a16": ("#a96b59", "v"),
    "gptq-w4a16": ("#bd1f01", "<"),
    "awq-w4a16": ("#e76300", ">"),
    "w4a8-fp8": ("#832db6", "P"),
    "nvfp4-w4a16": ("#b9ac70", "X"),
    "mxfp4-w4a16": ("#94a4a2", "h"),
}
#: of a method that the catalogue does not know
_OTHER = ("#999999", "*")
#: of what is no method
_POLICIES = dict(zip(("optimized", "static", "reactive", "predictive"), COLORS, strict=False))
_GPU_DASHES = {"h200": "-", "h100": (0, (5, 2)), "a100": (0, (1.2, 1.6))}


@dataclass(frozen=True)
class Look:
    """How something is drawn wherever it appears."""

    #: ``#rrggbb``, of lines and areas
    color: str
    #: matplotlib's name of the marker
    marker: str = "o"
    #: whether the marker is empty
    hollow: bool = False

    @property
    def face(self) -> str:
        """Colour inside the marker."""
        return "white" if self.hollow else self.color

    @property
    def dashes(self) -> Any:
        """matplotlib's line style: dashed where markers would be hollow."""
        return (0, (6, 1.5)) if self.hollow else "-"

    @cached_property
    def text(self) -> str:
        """The colour, dark enough for text."""
        return text_color(self.color)


def method_of(profile: str) -> str:
    """The method in a profile's id, or the text itself."""
    parts = profile.split("/")
    return (parts[2] if len(parts) > 2 else parts[-1]).split("@")[0]


def method_look(method: str) -> Look:
    """How a method, given by its id or by a profile's, is drawn in every picture."""
    base, plus, _ = method_of(method).partition(KV_FP8)
    return Look(*_METHODS.get(base, _OTHER), hollow=bool(plus))


def policy_look(name: str) -> Look:
    """How a scheduling policy is drawn in every picture."""
    return Look(_POLICIES.get(name.split()[0] if name else "", _OTHER[0]))


def gpu_dashes(gpu: str) -> Any:
    """The line style of a type of GPU, where several are in one panel."""
    return _GPU_DASHES.get(gpu.split("_")[0], (0, (4, 1.5, 1, 1.5)))


def distinct_names(profiles: Sequence[str]) -> list[str]:
    """What sets each profile's id apart: parts of it that not all of them share.

    The method is always among them, and no two names are equal: ids that are (one profile with
    two settings) are numbered.
    """
    split = [p.split("/") for p in profiles]
    length = max((len(s) for s in split), default=0)
    told = {
        k
        for k in range(length)
        if k == 2 or len({s[k] if k < len(s) else "" for s in split}) > 1 or length < 3
    }
    names = [" ".join(s[k] for k in range(len(s)) if k in told) or "/".join(s) for s in split]
    counted: dict[str, int] = {}
    out = []
    for name in names:
        counted[name] = counted.get(name, 0) + 1
        out.append(f"{name} ({counted[name]})" if names.count(name) > 1 else name)
    return out


def text_color(color: str) -> str:
    """``color``, darkened until text of it on white has a contrast of 4.5 (WCAG 2.2, 1.4.3)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    while 1.05 / (_luminance(parts) + 0.05) < 4.5:
        parts = [p * 0.96 for p in parts]
    return "#" + "".join(f"{round(p * 255 - 0.5):02x}" if p else "00" for p in parts)


def _luminance(parts: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2.2)."""
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


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
