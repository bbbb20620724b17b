"""The sections of the searches: what each looks for, among what, within which limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from qsim.bounds import MAX_GPUS, MAX_REPLICAS, MAX_RUNS, Items, Text, Whole
from qsim.checks import is_number
from qsim.scenario.fields import (
    MOST,
    Amount,
    Factor,
    Share,
    Texts,
    Values,
    Word,
    empty_dict,
    empty_list,
    text_or_number,
)
from qsim.scenario.section import Checked, Field, Section
from qsim.scenario.sections import ProfileName

#: what a timetable is compared with
Policy = Literal["static", "reactive", "predictive", "consolidation", "mixed"]
#: what a study shows
Level = Literal["application", "workload", "parallelism", "hardware"]
_Replicas = Annotated[int, Whole(1, MAX_REPLICAS)]
_Gpus = Annotated[int, Whole(1, MAX_GPUS)]
_Runs = Annotated[int, Whole(1, MAX_RUNS)]


def _a_floor(value: Any) -> float:
    """Any number > 0: what the search says of one that is out of range tells what was meant."""
    if is_number(value) and 0 < value < 1e18:
        return float(value)
    raise ValueError


_Percent = Annotated[
    float,
    Checked(
        "from 50 to 100, percent of the 16-bit model's score that is kept",
        _a_floor,
        {"type": "number", "minimum": 50, "maximum": 100},
    ),
]
_Names = Annotated[list[Word], Items(MOST)]


class SearchSection(Section):
    """Among which servers a search chooses; those of the fleet's pools if nothing is said."""

    model: Word | None = Field(default=None, description="The shipped profiles of this model.")
    gpus: _Names = Field(default_factory=empty_list, description="Only on these GPUs.")
    methods: _Names = Field(default_factory=empty_list, description="Only by these methods.")
    profiles: Annotated[list[ProfileName], Items(MOST)] = Field(
        default_factory=empty_list, description="More candidates, by id or file."
    )
    min_quality: _Percent | None = Field(
        default=None,
        description="Percent of the 16-bit model's score that the low end of the 90% interval "
        "must reach.",
    )
    beyond_measured: bool = Field(
        default=False,
        description="Also recommend settings beyond what the profiles' measurements cover.",
    )


class PlanSection(SearchSection):
    """``plan``: the smallest fleet of each method that meets the SLOs."""

    objective: Literal["cost", "energy", "gpus", "carbon"] = "cost"
    min_goodput: Share | None = Field(
        default=None, description="Share of requests within every goodput limit; 0.99 unless given."
    )
    max_gpus: _Gpus | None = None
    max_usd_per_hour: Amount | None = None
    max_power_kw: Amount | None = Field(default=None, description="On average over the trace.")
    max_peak_power_kw: Amount | None = Field(default=None, description="In any 1/400 of the trace.")
    stock: Annotated[dict[Word, _Gpus], Items(1000)] = Field(
        default_factory=dict,
        description="GPUs that there are, by type, such as {h100_sxm: 8}; of others none. Mixed "
        "fleets are looked for, too.",
    )
    survive: Annotated[int, Whole(0, MAX_REPLICAS)] = Field(
        default=0, description="Meet every limit with any so many servers down, too."
    )
    headroom: bool = Field(
        default=True, description="Find how much more traffic the best fleet carries."
    )
    search: Values = Field(
        default_factory=empty_list,
        description="Settings to search too, such as max_num_seqs: [64, 128].",
    )
    trials: _Runs | None = Field(default=None, description="Settings to try; 60 unless given.")
    sampler: Literal["tpe", "random", "nsga2", "grid"] | None = None
    replications: Annotated[int, Whole(0, MAX_RUNS)] | None = Field(
        default=None,
        description="Runs of the best fleet with other traffic, seeds and profile errors.",
    )
    min_confidence: Share | None = Field(
        default=None, description="Share of the replications that must meet every limit."
    )
    sensitivity: bool = False
    bottlenecks: bool = False
    explain: bool = Field(
        default=False, description="sensitivity, bottlenecks and 20 replications."
    )
    max_replicas: _Replicas = 128


class TuneSection(SearchSection):
    """``tune``: the fleets and settings that nothing beats in every objective."""

    objectives: _Names = Field(default_factory=lambda: ["latency", "energy", "cost"])
    stock: Annotated[dict[Word, _Gpus], Items(1000)] = Field(
        default_factory=dict,
        description="GPUs that there are, by type, such as {h100_sxm: 8}; of others none.",
    )
    constraints: Texts = Field(
        default_factory=empty_list, description="Such as 'p99_ttft_ms<=500' or 'gpus<=8'."
    )
    search: Values = Field(default_factory=empty_list, description="What else is decided.")
    fix: Values = Field(
        default_factory=empty_list, description="What is not decided, with its value."
    )
    sampler: Literal["nsga2", "tpe", "random", "grid"] = "nsga2"
    trials: _Runs = 200
    batch: Annotated[int, Whole(1, MOST)] = 10
    population: Annotated[int, Whole(2, 100_000)] = 20
    pick: Annotated[str, Text(longest=10_000)] | None = Field(
        default=None, description="The point of the front to take; the knee."
    )
    max_replicas: _Replicas = 128


class ScheduleSection(SearchSection):
    """``schedule``: which servers are on when."""

    objective: Literal["energy", "cost", "carbon"] = "energy"
    window: Annotated[
        Any, text_or_number("a time in whole minutes, such as 10min or 1h, or seconds")
    ] = Field(default="1h", description="How long a fleet stays as it is.")
    policies: Annotated[list[Policy], Items(MOST)] = Field(
        default_factory=lambda: [*get_args(Policy)],
        description="What the timetable is compared with.",
    )
    max_replicas: _Replicas = 32
    max_gpus: _Gpus | None = None
    owned_gpus: _Gpus | None = Field(
        default=None, description="GPUs that are paid for in any case."
    )
    off_w: Amount = Field(default=80.3, description="Power of an owned GPU without a server, W.")
    forecast: Literal["perfect", "day-before"] = "perfect"
    forecast_margin: Factor | None = Field(
        default=None, description="Plan for so many times the traffic; 1 for perfect, else 1.15."
    )
    trials: _Runs = Field(
        default=6, description="Simulations of the trace for each policy's search."
    )


class SweepSection(Section):
    """``sweep``: one simulation for every point of a grid."""

    over: Values = Field(
        default_factory=empty_list, description="What is varied, such as max_num_seqs: [64, 128]."
    )
    lhs: _Runs | None = Field(
        default=None,
        description="Run so many points of a Latin hypercube instead of every combination.",
    )


class CapacitySection(SearchSection):
    """``capacity``: the most that given GPUs carry within the SLOs, by layout."""

    gpus: Annotated[dict[Word, _Gpus], Items(1000)] = Field(  # type: ignore[assignment]
        default_factory=empty_dict, description="GPUs by type, such as {h100_sxm: 8}."
    )
    objective: Literal["rate", "cost", "energy"] = "rate"
    min_goodput: Share | None = Field(
        default=None, description="Share of requests within every goodput limit; 0.99 unless given."
    )
    users: bool = Field(
        default=False,
        description="Find the most users instead of the highest rate; they think for "
        "traffic.think_time_s after an answer.",
    )
    precision: Factor = Field(
        default=0.02, description="Search until a rate at most so much higher misses a limit."
    )


class CurveSection(Section):
    """``curve``: what fleets do from light load to beyond what they carry.

    A fleet each of ``profiles``, or else of the fleet's pools.
    """

    profiles: Annotated[list[ProfileName], Items(MOST)] = Field(
        default_factory=empty_list, description="Ids or files, a fleet each."
    )
    replicas: _Replicas | None = Field(
        default=None, description="Servers of each fleet; those of the pools, or 1."
    )
    gpus: _Gpus | None = Field(
        default=None, description="Or GPUs of each fleet: as many servers as fit."
    )
    rates: Annotated[list[Factor], Items(200)] = Field(
        default_factory=empty_list,
        description="Requests a second; by default shares of what each fleet carries.",
    )


class StudySection(SearchSection):
    """``study``: what quantization does to a model; levels, findings, decisions.

    ``min_quality`` is the floor of the decision table; findings and figures are of all methods.
    """

    applications: _Names = Field(
        default_factory=list,
        description="Tasks of the application level, such as chat; all of them unless given.",
    )
    levels: Annotated[list[Level], Items(MOST)] = Field(
        default_factory=lambda: [*get_args(Level)], description="What is shown."
    )
