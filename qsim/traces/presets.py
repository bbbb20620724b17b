"""Workloads named after public traces, with parameters that were measured from them.

A preset is asked for as ``NAME`` or ``NAME:key=value,key=value``; the keys are in ``PARAMS``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from qsim.errors import TraceError
from qsim.traces.arrivals import Gaps, RateProfile
from qsim.traces.lengths import LengthModel, table_from
from qsim.traces.synth import Span, Workload

__all__ = ["PARAMS", "PRESETS", "load_preset", "span_from"]

#: Every preset, in the order in which they are listed.
PRESETS: tuple[str, ...] = ("azure-conv-2023",)

#: What may follow a preset's name, and what it means.
PARAMS: Mapping[str, str] = {
    "start": "seconds into the rate profile to begin at",
    "duration": "seconds of traffic",
    "hours": "hours of traffic (instead of duration)",
    "day": "one day of the profile, from 1 (instead of start and duration)",
    "requests": "stop after so many requests",
    "rate": "mean requests a second; the profile keeps its shape",
    "scale": "multiplies the rate (0.1: a tenth of the traffic)",
    "seed": "of the random draw",
}


@cache
def load_preset(name: str) -> Workload:
    """The workload of a preset.

    Raises
    ------
    TraceError
        If there is none of that name.
    """
    if name not in PRESETS:
        raise TraceError(f"preset is {name!r}; must be one of {', '.join(PRESETS)}")
    text = resources.files("qsim.traces").joinpath("data", f"{name}.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    profile = data["profile"]
    return Workload(
        name=name,
        description=data["description"],
        profile=RateProfile.steps(np.array(profile["rates_rps"]), profile["step_s"]),
        gaps=Gaps(**data["gaps"]),
        lengths=LengthModel(
            table_from(data["p"], data["prompt_tokens"]),
            table_from(data["p"], data["output_tokens"]),
            data["rho"],
        ),
        duration_s=data["duration_s"],
        facts=data["facts"],
    )


def span_from(name: str, params: Mapping[str, str]) -> tuple[Span, int | None]:
    """The span and the seed that a preset's parameters ask for.

    Raises
    ------
    TraceError
        If a parameter is unknown or its value is not a number.
    """
    numbers: dict[str, float] = {}
    for key, text in params.items():
        if key not in PARAMS:
            raise TraceError(
                f"{name}: parameter {key!r} is unknown; the parameters are {', '.join(PARAMS)}"
            )
        try:
            numbers[key] = float(text)
        except ValueError:
            raise TraceError(f"{name}: {key} is {text!r}; must be a number") from None
        if key in ("day", "requests", "seed") and numbers[key] != int(numbers[key]):
            raise TraceError(f"{name}: {key} is {text!r}; must be a whole number")
    for one, others in (("day", ("start", "duration", "hours")), ("hours", ("duration",))):
        for other in others:
            if one in numbers and other in numbers:
                raise TraceError(f"{name}: {one} and {other} are both given; drop one")
    seed = int(numbers["seed"]) if "seed" in numbers else None
    start_s, duration_s = numbers.get("start", 0.0), numbers.get("duration")
    if "hours" in numbers:
        duration_s = numbers["hours"] * 3600
    if "day" in numbers:
        if numbers["day"] < 1:
            raise TraceError(f"{name}: day is {params['day']!r}; days count from 1")
        start_s, duration_s = (numbers["day"] - 1) * 86400, 86400.0
    return Span(
        start_s=start_s,
        duration_s=duration_s,
        requests=int(numbers["requests"]) if "requests" in numbers else None,
        rate_rps=numbers.get("rate"),
        scale=numbers.get("scale", 1.0),
    ), seed
