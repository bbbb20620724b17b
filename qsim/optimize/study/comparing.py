"""Comparing two servers by a figure, with what the errors of both leave of the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsim.optimize.study.figures import FIGURES, Band
from qsim.optimize.study.levels import HardwareRow, ParallelismRow, WorkloadRow

#: figures of a row that are none of its run: name -> what people call it
QUALITY = "quality"
_OTHERS = {
    QUALITY: "quality, % of the 16-bit score",
    "highest_rps": "requests/s under saturation",
    "usd_per_1m_at_highest": "USD per million output tokens under saturation",
}
#: figures in a sentence, with their unit behind the number
_SAID = {
    "mean_ttft_ms": ("mean TTFT", " ms"),
    "p99_ttft_ms": ("p99 TTFT", " ms"),
    "mean_tpot_ms": ("mean TPOT", " ms"),
    "p99_tpot_ms": ("p99 TPOT", " ms"),
    "mean_e2el_ms": ("mean E2EL", " ms"),
    "request_throughput": ("throughput", " requests/s"),
    "output_throughput": ("throughput", " output tokens/s"),
    "output_throughput_per_gpu": ("throughput", " output tokens/s per GPU"),
    "joules_per_request": ("energy", " J per request"),
    "joules_per_output_token": ("energy", " J per output token"),
    "highest_rps": ("throughput under saturation", " requests/s"),
    "usd_per_1m_output_tokens": ("cost", " USD per million output tokens"),
    "usd_per_1m_at_highest": ("cost under saturation", " USD per million output tokens"),
    QUALITY: ("quality", "% of the 16-bit score"),
}
#: names in a sentence
_MOST_LISTED = 4


def title(figure: str) -> str:
    """A figure for heads of tables."""
    return FIGURES[figure].title if figure in FIGURES else _OTHERS[figure]


def said(figure: str) -> tuple[str, str]:
    """A figure in a sentence, and its unit."""
    return _SAID[figure]


def sense(figure: str) -> tuple[str, str]:
    """What a better value of a figure is called, and a worse one."""
    return ("higher", "lower") if maximized(figure) else ("lower", "higher")


def shown(value: float) -> str:
    """A number in a sentence: three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: the first few, and how many more there are."""
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def maximized(figure: str) -> bool:
    """Whether more is better."""
    return FIGURES[figure].maximize if figure in FIGURES else figure in (QUALITY, "highest_rps")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what it is, its value, and the run that it is of ("": none)."""

    label: str
    band: Band
    run: str


def side_of(
    row: WorkloadRow | ParallelismRow | HardwareRow, figure: str, label: str
) -> Side | None:
    """A figure of a row as a side; None if it is not known."""
    band = row.figures.get(figure)
    return None if band is None else Side(label, band, row.run)


@dataclass(frozen=True)
class Verdict:
    """That one side is better by more than the errors of both."""

    better: Side
    worse: Side
    #: the larger value over the smaller one
    ratio: float
    #: the same of the ends of the bands that face each other: what the errors leave, above 1
    gap: float
    #: what the errors of both together could make of no difference at all
    error_percent: float

    @classmethod
    def of(cls, better: Side, worse: Side, high: Band, low: Band) -> Verdict:
        """Of sides of which what counts lies in two bands."""
        error = (high.value / high.low) * (low.high / low.value) - 1
        return cls(better, worse, high.value / low.value, high.low / low.high, 100 * error)

    def __str__(self) -> str:
        return f"{shown(self.better.band.value)} against {shown(self.worse.band.value)}"


def better(figure: str, a: Side | None, b: Side | None) -> Verdict | None:
    """Whether ``a`` is better than ``b`` by more than the errors; None if that is not known."""
    if a is None or b is None:
        return None
    high, low = (a.band, b.band) if maximized(figure) else (b.band, a.band)
    if not (low.low > 0 and low.high < high.low):
        return None
    return Verdict.of(a, b, high, low)


def gain_of(figure: str, a: Band, b: Band) -> Band:
    """How many times as good ``a`` is as ``b``, with the band that both errors give."""
    over, under = (a, b) if maximized(figure) else (b, a)
    return Band(over.value / under.value, over.low / under.high, over.high / under.low)


@dataclass(frozen=True)
class Claim:
    """A finding before it has its rank."""

    kind: str
    level: str
    gpu: str
    methods: tuple[str, ...]
    statement: str
    figure: str
    verdicts: tuple[Verdict, ...]
    axis: str | None = None
    at: float | None = None
    commands: tuple[str, ...] = ()
    #: what is compared beside the sides of the verdicts
    beside: tuple[Side, ...] = ()

    @property
    def sides(self) -> tuple[Side, ...]:
        """What is compared, each once."""
        judged = [s for v in self.verdicts for s in (v.better, v.worse)]
        return tuple({s.label: s for s in (*judged, *self.beside)}.values())

    @property
    def score(self) -> float:
        """Logarithm of what the errors leave of the weakest difference; orders claims of a kind."""
        return math.log(min(v.gap for v in self.verdicts))

    @property
    def numbers(self) -> Mapping[str, Band]:
        """What is compared, by label."""
        return {s.label: s.band for s in self.sides}

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that it rests on."""
        return tuple(dict.fromkeys(s.run for s in self.sides if s.run))
