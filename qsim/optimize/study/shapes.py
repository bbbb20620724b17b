"""The tasks of the application level as traffic, and the benchmarks that stand for them.

All arrive at Poisson times: bursts are looked at on the workload level.
"""

from __future__ import annotations

from dataclasses import dataclass

from qsim.checks import near_names
from qsim.errors import ScenarioError

#: the traffic of the workload, parallelism and hardware levels where none is given
DEFAULT_TRAFFIC = "azure-conv-2023"
_STEADY = "azure-conv-2023"


@dataclass(frozen=True)
class Shape:
    """A task."""

    name: str
    #: the preset whose lengths and arrivals are taken
    preset: str
    #: parameters of the preset that change it
    params: tuple[str, ...]
    #: shares by benchmark or family of :mod:`qsim.quality.tasks`
    benchmarks: dict[str, float]
    #: where the lengths come from, and what is assumed
    source: str

    def trace(self, requests: int, rate_rps: float) -> str:
        """TRACE of a command: so many requests at a mean rate."""
        params = [f"requests={requests}", f"rate={rate_rps:.5g}", "cv=1", *self.params]
        return f"{self.preset}:{','.join(params)}"


SHAPES: dict[str, Shape] = {
    s.name: s
    for s in (
        Shape("chat", "azure-conv-2023", (), {"chat": 1.0},
              "lengths of Azure's conversations of 2023"),
        Shape("code", "azure-code-2023", (), {"code": 1.0},
              "lengths of Azure's code completion of 2023"),
        Shape("summarization", _STEADY,
              ("prompt=lognormal:1450/0.6/16000", "output=lognormal:80/0.5/1000"),
              {"long-context": 0.5, "knowledge": 0.5},
              "also for answers from retrieved text (RAG); mean lengths as of LongBench in "
              "DistServe (OSDI 2024): prompts of 1738 and outputs of 91 tokens; that they are "
              "log-normal is assumed"),
        Shape("reasoning", _STEADY, ("lengths=deepseek-r1",), {"reasoning": 1.0},
              "lengths of DeepSeek-R1's traffic (ServeGen 2025)"),
        Shape("maths", _STEADY,
              ("prompt=lognormal:200/0.5/4000", "output=lognormal:250/0.5/4000"),
              {"maths": 1.0},
              "assumed: word problems without examples, answered step by step; no public trace"),
    )
}  # fmt: skip


def find_shape(name: str) -> Shape:
    """A task by its name.

    Raises
    ------
    ScenarioError
        If there is none, with near names.
    """
    if name in SHAPES:
        return SHAPES[name]
    raise ScenarioError(f"task {name!r} is unknown; {near_names(name, SHAPES)}")
