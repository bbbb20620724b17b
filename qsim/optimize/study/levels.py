"""The rows of a study's four levels. One row is one method at one point, with its figures.

Every row has

``gpu``, ``method``
    Ids of the catalogue (``h200_sxm``, ``fp8-w8a8``).
``run``
    Id of the simulation that the row's ``figures`` are of (:class:`Run` in
    :attr:`StudyResult.runs`, which has the command that repeats it).
``figures``
    :class:`~qsim.optimize.study.figures.Band` by the names of
    :data:`~qsim.optimize.study.figures.FIGURES`; None for what is not known (a statistic over
    nothing, a price that nobody gave). The band is the error that the profile states.

The levels, and what a row is:

* application (:class:`ApplicationRow`): a task x method. All methods of a task and GPU answer the
  same requests at the same rate; quality is that of the task's benchmarks.
* workload (:class:`WorkloadRow`): a method at one point of an ``axis``:
  ``rate`` (x: requests/s that arrive, up to beyond saturation), ``lengths`` (x: prompt tokens, y:
  output tokens of every request), ``concurrency`` (x: clients, each of which sends a request when
  the one before is answered), ``burstiness`` (x: CV of the gaps between arrivals) or ``batch`` (x:
  ``max_num_seqs``, with more clients than that).
* parallelism (:class:`ParallelismRow`): a method at a tensor-parallel size, with as many replicas
  as fill the same number of GPUs.
* hardware (:class:`HardwareRow`): a method on a GPU type, same requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qsim.as_json import JsonReady
from qsim.optimize.study.figures import Band

Axis = Literal["rate", "concurrency", "lengths", "burstiness", "batch"]
AXES: tuple[Axis, ...] = ("rate", "concurrency", "lengths", "burstiness", "batch")
#: what ``x`` is on each axis, for people
AXIS_TITLES: Mapping[str, str] = {
    "rate": "requests/s",
    "concurrency": "concurrent requests",
    "lengths": "prompt tokens",
    "burstiness": "CV of the gaps between arrivals",
    "batch": "max_num_seqs",
}
#: ``busy``: requests arrive at a rate; ``saturated``: so many clients send their next request when
#: the last one is answered that batches are full, which tells the highest throughput
Load = Literal["busy", "saturated"]

Figures = Mapping[str, Band | None]


@dataclass(frozen=True)
class Run(JsonReady):
    """One simulation."""

    #: such as ``r0012``
    id: str
    #: the level that asked for it first
    level: str
    profile: str
    gpu: str
    method: str
    tensor_parallel_size: int
    replicas: int
    #: TRACE of the command
    trace: str
    #: ``qsim simulate ...``, which gives the same figures again
    command: str
    #: the figures as simulated, without their error, by name
    values: Mapping[str, float | None]
    #: whether the fleet kept up: the ``verdict`` of :class:`qsim.sim.results.backlog.Load`
    load: str
    #: share of the steps beyond the profile's measured range, from 0 to 1
    beyond_measured: float
    requests: int
    #: the version of vLLM that the profile is of, such as ``0.33``
    vllm_version: str = ""


@dataclass(frozen=True)
class ApplicationRow(JsonReady):
    """A task by a method."""

    #: such as ``chat``; what it is stands in :attr:`StudyResult.tasks`
    task: str
    gpu: str
    method: str
    #: requests/s that arrive; the same for all methods of a task and GPU
    rate_rps: float
    #: percent of the 16-bit model's score on the task's benchmarks, with a 90% interval; None for a
    #: method that nothing is known of
    quality: Band | None
    #: ``measured``, ``published`` or ``estimated``; "" without a quality
    quality_status: str
    run: str
    figures: Figures
    #: requests/s under saturation: as many clients as its batches hold, each of which sends the
    #: next request when the last one is answered
    highest_rps: Band | None
    #: the run which that is from
    highest_run: str
    #: USD per million output tokens at that rate
    usd_per_1m_at_highest: Band | None
    #: no other method has better quality and fewer J per request, at values without errors
    on_front: bool


@dataclass(frozen=True)
class WorkloadRow(JsonReady):
    """A method at a point of one axis of the traffic; the others stay as they are."""

    axis: Axis
    gpu: str
    method: str
    #: see :data:`AXIS_TITLES`
    x: float
    #: output tokens, on the axis ``lengths``; None on the others
    y: float | None
    #: ``saturated`` where the throughput is the highest that the method has there
    load: Load
    #: whether it finishes what arrives; latencies of one that does not depend on the length of the
    #: trace. True where clients wait for answers
    kept_up: bool
    run: str
    figures: Figures


@dataclass(frozen=True)
class ParallelismRow(JsonReady):
    """A method at a tensor-parallel size on a number of GPUs."""

    gpu: str
    method: str
    tensor_parallel_size: int
    replicas: int
    #: GPUs in all: ``tensor_parallel_size * replicas``; the same for all rows of a GPU type
    gpus: int
    load: Load
    #: tokens of KV cache of all replicas
    kv_tokens: Band
    run: str
    figures: Figures


@dataclass(frozen=True)
class HardwareRow(JsonReady):
    """A method on one server of a GPU type."""

    gpu: str
    method: str
    #: the smallest that the method has on this type
    tensor_parallel_size: int
    #: ``busy`` is one rate for all GPU types and methods
    load: Load
    #: tokens of KV cache
    kv_tokens: Band
    #: power of the server's GPUs when idle, the power that any step adds to it before its work is
    #: counted, and the limit
    idle_w: float
    busy_w: float
    cap_w: float
    run: str
    figures: Figures
