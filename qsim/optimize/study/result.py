"""The answer of a study: four levels, the runs below them, findings and decisions above them.

What the rows of each level hold is said in :mod:`qsim.optimize.study.levels`; the figures and
their units in :mod:`qsim.optimize.study.figures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qsim.optimize.study.figures import Band, bands_dict
from qsim.optimize.study.levels import (
    ApplicationRow,
    Axis,
    HardwareRow,
    ParallelismRow,
    Run,
    WorkloadRow,
)

__all__ = [
    "LEVELS",
    "SCHEMA",
    "Decision",
    "Finding",
    "Level",
    "Provenance",
    "StudyResult",
    "TaskShape",
]

SCHEMA = "qsim-study/1"
Level = Literal["application", "workload", "parallelism", "hardware"]
LEVELS: tuple[Level, ...] = ("application", "workload", "parallelism", "hardware")


@dataclass(frozen=True)
class TaskShape:
    """A task of the application level.

    Attributes
    ----------
    name : str
        Such as ``chat``.
    trace : str
        Its traffic, as TRACE of a command.
    mean_prompt_tokens, mean_output_tokens : float
    benchmarks : mapping
        What its quality is of: shares by benchmark, which sum to 1.
    source : str
        Where lengths and arrivals come from.
    """

    name: str
    trace: str
    mean_prompt_tokens: float
    mean_output_tokens: float
    benchmarks: Mapping[str, float]
    source: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "benchmarks": dict(self.benchmarks)}


@dataclass(frozen=True)
class Finding:
    """Something that the levels show, and that their errors do not explain.

    Attributes
    ----------
    rank : int
        From 1, the most important first.
    kind : str
        One of :data:`qsim.optimize.study.findings.KINDS`.
    level : {"application", "workload", "parallelism", "hardware"}
    gpu : str
        Or "" if it is about several.
    methods : tuple of str
        The methods that it is about.
    statement : str
        One sentence with its numbers.
    numbers : mapping
        What is compared, each with its band: ``{"fp8-w8a8 at 24": Band, ...}``.
    figure : str
        Name of the figure that is compared: of :data:`~qsim.optimize.study.figures.FIGURES`, or
        ``quality``, ``highest_rps`` or ``usd_per_1m_at_highest``.
    ratio : float
        How large the difference is: the larger value over the smaller one.
    error_percent : float
        The part of the difference that the stated errors of both sides could explain.
    axis : str or None
        Of a crossing: one of :data:`~qsim.optimize.study.levels.AXES`.
    at : float or None
        Of a crossing: where on the axis the order changes.
    runs : tuple of str
        Ids of the runs that it rests on.
    commands : tuple of str
        What gives its numbers again.
    versions : tuple of str
        Versions of vLLM that the profiles of its runs are of, the oldest first. With several of
        them the sentence names each method's: what vLLM changed is part of the difference.
    """

    rank: int
    kind: str
    level: Level
    gpu: str
    methods: tuple[str, ...]
    statement: str
    numbers: Mapping[str, Band]
    figure: str
    ratio: float
    error_percent: float
    runs: tuple[str, ...]
    commands: tuple[str, ...]
    axis: Axis | None = None
    at: float | None = None
    versions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **vars(self),
            "methods": list(self.methods),
            "numbers": bands_dict(self.numbers),
            "runs": list(self.runs),
            "commands": list(self.commands),
            "versions": list(self.versions),
        }


@dataclass(frozen=True)
class Decision:
    """Which method to take, for one traffic and one goal, on one GPU type.

    Attributes
    ----------
    traffic : str
        A task's name.
    goal : str
        ``latency`` (mean E2EL), ``first token`` (mean TTFT), ``throughput`` (highest requests/s),
        ``energy`` (J per request), ``cost`` (USD per million output tokens at the highest rate) or
        ``quality``.
    method : str
        The best one.
    value : Band
        Of the goal's figure.
    figure : str
    as_good : tuple of str
        Methods whose difference from the best lies within the stated errors; the choice among all
        of these is open.
    versions : mapping
        vLLM's version by method, of those whose profile is of another one than most of the
        methods that were compared; {} if all are of one.
    floor_pct : float or None
        Only methods whose quality is expected to be at least this were considered, percent.
    runs : tuple of str
    """

    gpu: str
    traffic: str
    goal: str
    method: str
    value: Band
    figure: str
    as_good: tuple[str, ...]
    floor_pct: float | None
    runs: tuple[str, ...]
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
        """JSON-ready."""
        return {
            **vars(self),
            "versions": dict(self.versions),
            "value": self.value.to_dict(),
            "as_good": list(self.as_good),
            "runs": list(self.runs),
            "decided": self.decided,
        }


@dataclass(frozen=True)
class Provenance:
    """What a profile of the study rests on.

    Attributes
    ----------
    source : {"measured", "transferred", "carried"}
        Measured on this GPU; composed from other measurements; or measured under another version
        of vLLM.
    error_percent : mapping
        The errors that it states, percent: of ``mean``, ``median``, ``p99``, ``energy`` and
        ``kv_tokens``.
    note : str
        What to know before relying on it; "" if nothing.
    """

    profile: str
    gpu: str
    method: str
    tensor_parallel_size: int
    source: str
    vllm_version: str
    error_percent: Mapping[str, float]
    note: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "error_percent": dict(self.error_percent)}


@dataclass(frozen=True)
class StudyResult:
    """The answer of :func:`qsim.study`.

    Attributes
    ----------
    model : str
    gpus, methods : tuple of str
        In the order in which they are shown; ``methods`` begins with the baseline.
    tasks : tuple of TaskShape
    traffic : str
        TRACE of the workload, parallelism and hardware levels.
    application, workload, parallelism, hardware : tuples of rows
        See :mod:`qsim.optimize.study.levels`. A level may be empty; ``notes`` says why.
    runs : mapping
        Every simulation by id.
    findings : tuple of Finding
        By rank.
    decisions : tuple of Decision
    provenance : tuple of Provenance
        Of every profile that was simulated.
    notes : tuple of str
        What a reader must know: what was left out, and why.
    settings : mapping
        What was asked.
    command : str
        ``qsim study ...`` that makes all of it again.
    """

    model: str
    gpus: tuple[str, ...]
    methods: tuple[str, ...]
    tasks: tuple[TaskShape, ...]
    traffic: str
    application: tuple[ApplicationRow, ...]
    workload: tuple[WorkloadRow, ...]
    parallelism: tuple[ParallelismRow, ...]
    hardware: tuple[HardwareRow, ...]
    runs: Mapping[str, Run]
    findings: tuple[Finding, ...]
    decisions: tuple[Decision, ...]
    provenance: tuple[Provenance, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
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
