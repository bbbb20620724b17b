"""Keyword arguments of ``qsim.plan`` and its like: each stands for a field of a scenario.

``build`` (:mod:`qsim.scenario.names`) puts them where they belong; what they mean is said there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from qsim.profiles.schema import Profile
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions


class _Priced(TypedDict, total=False):
    prices: Mapping[str, float] | None
    provider: str
    seed: int
    text_prompts: bool


class CommonArguments(_Priced, total=False):
    """What every search and a sweep take."""

    slos: Sequence[Slo | str]
    tasks: Mapping[str, float] | str | None
    region: str | float | None
    pue: float | None


class _Candidates(TypedDict, total=False):
    methods: Sequence[str]
    profiles: Sequence[Profile | str]
    min_quality: float | None
    router: str
    options: EngineOptions | None
    beyond_measured: bool


class SearchArguments(CommonArguments, _Candidates, total=False):
    """What every search takes."""

    gpus: Sequence[str]
    growth: float
    peak_hour: bool
    max_replicas: int
    too_long: str
    allow_backlog: bool


class PlanArguments(SearchArguments, total=False):
    """Of ``plan``: see :class:`qsim.scenario.searches.PlanSection`."""

    goodput: Sequence[str]
    min_goodput: float | None
    objective: str
    price_list: Mapping[str, float] | str | None
    max_gpus: int | None
    max_usd_per_hour: float | None
    max_power_kw: float | None
    max_peak_power_kw: float | None
    stock: Mapping[str, int] | None
    survive: int
    headroom: bool
    search: Mapping[str, Any] | Sequence[str]
    trials: int | None
    sampler: str | None
    replications: int | None
    min_confidence: float | None
    sensitivity: bool
    bottlenecks: bool
    explain: bool


class TuneArguments(SearchArguments, total=False):
    """Of ``tune``: see :class:`qsim.scenario.searches.TuneSection`."""

    objectives: Sequence[str]
    stock: Mapping[str, int] | None
    constraints: Sequence[str]
    search: Mapping[str, Any] | Sequence[str]
    fix: Mapping[str, Any] | Sequence[str]
    sampler: str
    trials: int
    batch: int
    population: int


class ScheduleArguments(SearchArguments, total=False):
    """Of ``schedule``: see :class:`qsim.scenario.searches.ScheduleSection`."""

    lifecycle: Lifecycle | None
    objective: str
    window: str | float
    policies: Sequence[str]
    carbon_series: str | None
    max_gpus: int | None
    owned_gpus: int | None
    off_w: float
    forecast: str
    forecast_margin: float | None
    trials: int


class SweepArguments(CommonArguments, total=False):
    """Of ``sweep``: see :class:`qsim.scenario.searches.SweepSection`."""

    lhs: int | None


class CapacityArguments(_Priced, _Candidates, total=False):
    """Of ``capacity``: see :class:`qsim.scenario.searches.CapacitySection`."""

    slos: Sequence[Slo | str]
    goodput: Sequence[str]
    min_goodput: float | None
    objective: str
    tasks: Mapping[str, float] | str | None
    users: bool
    think_time_s: float | None
    precision: float
    too_long: str


class CurveArguments(_Priced, total=False):
    """Of ``curve``: see :class:`qsim.scenario.searches.CurveSection`."""

    replicas: int | None
    gpus: int | None
    rates: Sequence[float]
    slos: Sequence[Slo | str]
    router: str
    options: EngineOptions | None
    too_long: str


class StudyArguments(_Priced, _Candidates, total=False):
    """Of ``study``: see :class:`qsim.scenario.searches.StudySection`."""

    gpus: Sequence[str]
    applications: Sequence[str]
    levels: Sequence[str]
