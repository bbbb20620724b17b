"""The answer of a study: four levels, the runs below them, findings and decisions above them.

What the rows of each level hold is said in :mod:`qsim.optimize.study.levels`; the figures and
their units in :mod:`qsim.optimize.study.figures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qsim.as_json import JsonReady
from qsim.optimize.study.figures import Band
from qsim.optimize.study.levels import (
    ApplicationRow,
    Axis,
    HardwareRow,
    ParallelismRow,
    Run,
    WorkloadRow,
)

SCHEMA = "qsim-study/1"
Level = Literal["application", "workload", "parallelism", "hardware"]
LEVELS: tuple[Level, ...] = ("application", "workload", "parallelism", "hardware")


@dataclass(frozen=True)
class TaskShape(JsonReady):
    """A task of the application level."""

    #: such as ``chat``
    name: str
    #: its traffic, as TRACE of a command
    trace: str
    mean_prompt_tokens: float
    mean_output_tokens: float
    #: what its quality is of: shares by benchmark, which sum to 1
    benchmarks: Mapping[str, float]
    #: where lengths and arrivals come from
    source: str


@dataclass(frozen=True)
class Finding(JsonReady):
    """Something that the levels show, and that their errors do not explain."""

    #: from 1, the most important first
    rank: int
    #: one of :data:`qsim.optimize.study.findings.KINDS`
    kind: str
    level: Level
    #: or "" if it is about several
    gpu: str
    #: the methods that it is about
    methods: tuple[str, ...]
    #: one sentence with its numbers
    statement: str
    #: what is compared, each with its band: ``{"fp8-w8a8 at 24": Band, ...}``
    numbers: Mapping[str, Band]
    #: name of the figure that is compared: of :data:`~qsim.optimize.study.figures.FIGURES`, or
    #: ``quality``, ``highest_rps`` or ``usd_per_1m_at_highest``
    figure: str
    #: how large the difference is: the larger value over the smaller one
    ratio: float
    #: the part of the difference that the stated errors of both sides could explain
    error_percent: float
    #: ids of the runs that it rests on
    runs: tuple[str, ...]
    #: what gives its numbers again
    commands: tuple[str, ...]
    #: of a crossing: one of :data:`~qsim.optimize.study.levels.AXES`
    axis: Axis | None = None
    #: of a crossing: where on the axis the order changes
    at: float | None = None
    #: versions of vLLM that the profiles of its runs are of, the oldest first. With several of them
    #: the sentence names each method's: what vLLM changed is part of the difference
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision(JsonReady):
    """Which method to take, for one traffic and one goal, on one GPU type."""

    gpu: str
    #: a task's name
    traffic: str
    #: ``latency`` (mean E2EL), ``first token`` (mean TTFT), ``throughput`` (highest requests/s),
    #: ``energy`` (J per request), ``cost`` (USD per million output tokens at the highest rate) or
    #: ``quality``
    goal: str
    #: the best one
    method: str
    #: of the goal's figure
    value: Band
    figure: str
    #: methods whose difference from the best lies within the stated errors; the choice among all of
    #: these is open
    as_good: tuple[str, ...]
    #: only methods whose quality is expected to be at least this were considered, percent
    floor_pct: float | None
    runs: tuple[str, ...]
    #: vLLM's version by method, of those whose profile is of another one than most of the methods
    #: that were compared; {} if all are of one
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """Whether the errors leave one method only."""
        return not self.as_good

    def named(self, method: str) -> str:
        """A method with its version, where that is not the others'."""
        version = self.versions.get(method)
        return f"{method} (vLLM {version})" if version else method

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: every field, and whether it is decided."""
        return {**super().to_dict(), "decided": self.decided}


@dataclass(frozen=True)
class Provenance(JsonReady):
    """What a profile of the study rests on."""

    profile: str
    gpu: str
    method: str
    tensor_parallel_size: int
    #: ``measured`` on this GPU; ``transferred``, composed from other measurements; or ``carried``,
    #: measured under another version of vLLM
    source: str
    vllm_version: str
    #: the errors that it states, percent: of ``mean``, ``median``, ``p99``, ``energy`` and
    #: ``kv_tokens``
    error_percent: Mapping[str, float]
    #: what to know before relying on it; "" if nothing
    note: str


@dataclass(frozen=True)
class StudyResult:
    """The answer of :func:`qsim.study`."""

    model: str
    #: in the order in which they are shown; ``methods`` begins with the baseline
    gpus: tuple[str, ...]
    methods: tuple[str, ...]
    tasks: tuple[TaskShape, ...]
    #: TRACE of the workload, parallelism and hardware levels
    traffic: str
    #: see :mod:`qsim.optimize.study.levels`. A level may be empty; ``notes`` says why
    application: tuple[ApplicationRow, ...]
    workload: tuple[WorkloadRow, ...]
    parallelism: tuple[ParallelismRow, ...]
    hardware: tuple[HardwareRow, ...]
    #: every simulation by id
    runs: Mapping[str, Run]
    #: by rank
    findings: tuple[Finding, ...]
    decisions: tuple[Decision, ...]
    #: of every profile that was simulated
    provenance: tuple[Provenance, ...]
    #: what a reader must know: what was left out, and why
    notes: tuple[str, ...] = ()
    #: what was asked
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: ``qsim study ...`` that makes all of it again
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with every number."""
        from qsim import __version__

        return {
            "schema": SCHEMA,
            "qsim_version": __version__,
            "command": self.command,
            "model": self.model,
            "gpus": list(self.gpus),
            "methods": list(self.methods),
            "traffic": self.traffic,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "findings": [f.to_dict() for f in self.findings],
            "decisions": [d.to_dict() for d in self.decisions],
            "tasks": [t.to_dict() for t in self.tasks],
            "levels": {n: [r.to_dict() for r in getattr(self, n)] for n in LEVELS},
            "runs": {i: r.to_dict() for i, r in self.runs.items()},
            "provenance": [p.to_dict() for p in self.provenance],
        }
