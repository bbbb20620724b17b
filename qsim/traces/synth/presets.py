"""Workloads named after public traces, with parameters that were measured from them.

A preset is asked for as ``NAME`` or ``NAME:key=value,key=value``; the keys are in ``PARAMS``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from qsim.errors import ScenarioError, TraceError
from qsim.traces.synth.arrivals import Bursts, Gaps, RateProfile
from qsim.traces.synth.lengths import LengthModel, QuantileTable, parse_lengths
from qsim.traces.synth.prefixes import PrefixModel
from qsim.traces.synth.synthesize import Span, Workload

#: Every preset, in the order in which they are listed.
PRESETS: tuple[str, ...] = (
    "azure-conv-2023",
    "azure-code-2023",
    "mooncake-conversation",
    "burstgpt",
    "azure-conv-2024-week",
)

#: What may follow a preset's name, and what it means.
PARAMS: Mapping[str, str] = {
    "start": "seconds into the rate profile to begin at",
    "duration": "seconds of traffic",
    "hours": "hours of traffic (instead of duration)",
    "day": "one day of the profile, from 1 (instead of start and duration)",
    "requests": "stop after so many requests",
    "rate": "mean requests a second; the profile keeps its shape",
    "scale": "multiplies the rate (0.1: a tenth of the traffic)",
    "grid": "seconds that arrival times are rounded down to (0: not at all)",
    "seed": "of the random draw",
    "lengths": "prompts and outputs as long as those of another preset, or of deepseek-r1",
    "prompt": "prompt tokens: 512, or lognormal:MEDIAN/SIGMA[/MAX], exponential:MEAN",
    "output": "output tokens, in the same way",
    "cv": "arrivals at a constant rate instead of the profile's, with gaps of this CV (1: Poisson)",
}

#: parameters that are no numbers
_TEXTS = ("lengths", "prompt", "output")


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
    data = read_data(name)
    profile = data["profile"]
    return Workload(
        name=name,
        description=data["description"],
        profile=RateProfile.steps(np.array(profile["rates_rps"]), profile["step_s"]),
        gaps=Gaps(**data["gaps"]),
        lengths=LengthModel(
            table_of(data["prompt_tokens"]), table_of(data["output_tokens"]), data["rho"]
        ),
        bursts=_bursts(data["spells"]) if "spells" in data else None,
        prefixes=_prefixes(data["prefixes"]) if "prefixes" in data else None,
        grid_s=data.get("grid_s", 0.0),
        duration_s=data["duration_s"],
        facts={"sources": data["_sources"], **data["facts"]},
    )


def read_data(name: str) -> dict[str, Any]:
    """A data file of this package."""
    text = resources.files("qsim.traces").joinpath("data", f"{name}.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def table_of(data: Mapping[str, Any]) -> QuantileTable:
    """A quantile table as the data files hold it."""
    if "exponential" in data:
        return QuantileTable.exponential(data["exponential"])
    return QuantileTable.of(data["p"], data["values"])


def _bursts(data: Mapping[str, Any]) -> Bursts:
    rest = {k: v for k, v in data.items() if k not in ("busy_s", "quiet_s")}
    return Bursts(table_of(data["busy_s"]), table_of(data["quiet_s"]), **rest)


def _prefixes(data: Mapping[str, Any]) -> PrefixModel:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    values["age_s"] = table_of(data["age_s"])
    return PrefixModel(**values)


@dataclass(frozen=True)
class PresetRequest:
    """A preset with its parameters, resolved."""

    workload: Workload
    span: Span
    seed: int


def resolve_preset(name: str, params: Mapping[str, str], seed: int = 0) -> PresetRequest:
    """The workload, span and seed that a preset and its parameters mean; ``seed`` by default.

    Raises
    ------
    TraceError
        If the preset or a parameter is unknown, or a value is not allowed.
    """
    workload = load_preset(name)
    numbers = _numbers(name, {k: v for k, v in params.items() if k not in _TEXTS})
    workload = _with_lengths(workload, name, params)
    if "cv" in numbers:
        workload = _with_gaps(workload, name, numbers["cv"])
    if "grid" in numbers:
        if not 0 <= numbers["grid"] < float("inf"):
            raise TraceError(f"{name}: grid is {params['grid']!r}; must be >= 0")
        workload = replace(workload, grid_s=numbers["grid"])
    start_s, duration_s = numbers.get("start", 0.0), numbers.get("duration")
    if "hours" in numbers:
        duration_s = numbers["hours"] * 3600
    if "day" in numbers:
        days = workload.profile.period_s / 86400
        if not 1 <= numbers["day"] <= max(days, 1):
            raise TraceError(
                f"{name}: day is {params['day']!r}; must be from 1 to {max(days, 1):g}"
            )
        start_s, duration_s = (numbers["day"] - 1) * 86400, 86400.0
    span = Span(
        start_s=start_s,
        duration_s=duration_s,
        requests=int(numbers["requests"]) if "requests" in numbers else None,
        rate_rps=numbers.get("rate"),
        scale=numbers.get("scale", 1.0),
    )
    return PresetRequest(workload, span, int(numbers["seed"]) if "seed" in numbers else seed)


def _with_lengths(workload: Workload, name: str, params: Mapping[str, str]) -> Workload:
    """With other lengths, if they are given; prompts of other lengths share no beginnings."""
    if not set(_TEXTS) & set(params):
        return workload
    model = workload.lengths if "lengths" not in params else _named_lengths(name, params["lengths"])
    for key in ("prompt", "output"):
        if key in params:
            try:
                table = parse_lengths(key, params[key].replace("/", ","))
            except ScenarioError as e:
                raise TraceError(f"{name}: {e}") from None
            model = replace(model, **{key: table}, rho=0.0)
    return replace(workload, lengths=model, prefixes=None)


def _named_lengths(name: str, other: str) -> LengthModel:
    """The lengths of a preset, or of a model whose traffic ServeGen published completely."""
    if other in PRESETS:
        return load_preset(other).lengths
    tables = read_data("servegen-lengths")["models"]
    if other != "deepseek-r1":  # the others lack clients, or prompts
        raise TraceError(
            f"{name}: lengths is {other!r}; must be deepseek-r1 or one of {', '.join(PRESETS)}"
        )
    table = tables[other]
    return LengthModel(table_of(table["prompt_tokens"]), table_of(table["output_tokens"]))


def _with_gaps(workload: Workload, name: str, cv: float) -> Workload:
    """At the mean rate all the time, with Gamma gaps."""
    try:
        gaps = Gaps() if cv == 1 else Gaps("gamma", cv)
    except ScenarioError as e:
        raise TraceError(f"{name}: {e}") from None
    rate_rps = workload.profile.mean_rps
    return replace(
        workload, profile=RateProfile.constant(rate_rps), gaps=gaps, bursts=None, grid_s=0.0
    )


def _numbers(name: str, params: Mapping[str, str]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, text in params.items():
        if key not in PARAMS:
            raise TraceError(
                f"{name}: parameter {key!r} is unknown; the parameters are {', '.join(PARAMS)}"
            )
        try:
            numbers[key] = float(text)
            if key in ("day", "requests", "seed") and numbers[key] != int(numbers[key]):
                raise ValueError
        except (ValueError, OverflowError):
            kind = "a whole number" if key in ("day", "requests", "seed") else "a number"
            raise TraceError(f"{name}: {key} is {text!r}; must be {kind}") from None
    if numbers.get("seed", 0) < 0:
        raise TraceError(f"{name}: seed is {params['seed']!r}; must be >= 0")
    for one, others in (("day", ("start", "duration", "hours")), ("hours", ("duration",))):
        for other in others:
            if one in numbers and other in numbers:
                raise TraceError(f"{name}: {one} and {other} are both given; drop one")
    return numbers
