"""The traffic of a study: one shape of requests at many rates, lengths and gaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING

from qsim.errors import ScenarioError
from qsim.optimize.capacity.rate_search import base_rate_rps
from qsim.optimize.study.point import Traffic
from qsim.optimize.study.shapes import Shape
from qsim.scenario.resolve import load_traffic
from qsim.traces.load import preset_names, split_params
from qsim.traces.reshape import Reshaping
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.scenario.sections import Traffic as Section


#: requests/s of a trace whose clients wait for answers: its times do not matter
_ANY_RPS = 10.0
#: parameters of a preset that the study sets itself
_OWN = ("requests", "rate", "duration", "hours", "day", "scale")


@dataclass(frozen=True)
class MainTraffic:
    """The traffic of the workload, parallelism and hardware levels."""

    #: TRACE, and the options that shape it
    words: tuple[str, ...]
    #: TRACE if it is a preset, with the parameters that were given; None for a file
    preset: str | None
    #: of a file, as it is; 1 for a preset
    rate_rps: float
    #: of a file, how many there are
    requests: int

    def at(self, rate_rps: float, requests: int, cv: float | None = None) -> Traffic:
        """So many requests at a rate; with gaps of a CV, if it is given (presets only)."""
        if self.preset is None:
            speed = float(f"{rate_rps / self.rate_rps:.5g}")
            return Traffic(self.words, speed, min(requests, self.requests))
        extra = [f"requests={requests}", f"rate={rate_rps:.5g}"]
        if cv is not None:
            extra.append(f"cv={cv:g}")
        colon = "," if ":" in self.preset else ":"
        return Traffic((f"{self.preset}{colon}{','.join(extra)}", *self.words[1:]))

    def closed(self, requests: int) -> Traffic:
        """So many requests whose times do not matter."""
        if self.preset is None:
            return Traffic(self.words, 1.0, min(requests, self.requests))
        return self.at(_ANY_RPS, requests)


def main_traffic(section: Section, seed: int) -> MainTraffic:
    """What a scenario's traffic is to a study.

    Raises
    ------
    ScenarioError
        If it says what the study varies, or what it does not simulate.
    TraceError
        If it cannot be read.
    """
    for name in (
        "speed",
        "merge",
        "peak_hour",
        "concurrency",
        "think_time_s",
        "client_timeout_s",
        "stream",
    ):
        if getattr(section, name):
            raise ScenarioError(
                f"traffic.{name} is given, and study does not take it: leave it out (--set "
                f"traffic.{name}=), or use simulate or sweep"
            )
    if section.growth != 1:
        raise ScenarioError(
            "traffic.growth is given, and study varies the rate itself: leave it out"
        )
    trace = section.trace
    if isinstance(trace, Trace):
        raise ScenarioError("study names its runs' traffic by file or preset; give one as a text")
    text = str(trace)
    words = (text, *_options(section))
    name, params = split_params(text)
    if name in preset_names():
        own = [p for p in params if p in _OWN]
        if own or section.head is not None:
            raise ScenarioError(
                f"traffic is {text!r}; study sets {own[0] if own else 'head'} itself: leave it out"
            )
        return MainTraffic(words, text, 1.0, 0)
    whole = load_traffic(section.model_copy(update={"head": None}), seed)
    count = len(whole) if section.head is None else min(len(whole), section.head)
    return MainTraffic(words, None, base_rate_rps(whole.head(count)), count)


def _options(section: Section) -> list[str]:
    """Format, columns and what cuts and scales, as options of a command."""
    words: list[str] = []
    names = ["format", "columns", "sort", *(f.name for f in fields(Reshaping))]
    for name in names:
        value = getattr(section, name)
        if value in (None, False) or name in ("speed", "head"):
            continue
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


def task_traffic(shape: Shape, rate_rps: float | None, requests: int) -> Traffic:
    """A task's requests at a rate; without one their times do not matter."""
    return Traffic((shape.trace(requests, _ANY_RPS if rate_rps is None else rate_rps),))


def steady(prompt_tokens: int, output_tokens: int, requests: int) -> Traffic:
    """Requests that are all of the same lengths."""
    params = f"requests={requests},prompt={prompt_tokens},output={output_tokens}"
    return Traffic((f"azure-conv-2023:{params}",))


def loader(section: Section, seed: int) -> Callable[[Traffic], Trace]:
    """What reads the trace of a traffic: the same object for the same, a file only once."""

    @cache
    def base(text: str, shaped: bool) -> Trace:
        plain = type(section)(trace=text)
        asked = section.model_copy(update={"trace": text, "head": None}) if shaped else plain
        return load_traffic(asked, seed)

    @cache
    def load(traffic: Traffic) -> Trace:
        trace = base(traffic.words[0], len(traffic.words) > 1)
        if traffic.speed != 1.0:
            trace = trace.speed(traffic.speed)
        if traffic.head is not None and traffic.head < len(trace):
            trace = trace.head(traffic.head)
        return trace

    return load
