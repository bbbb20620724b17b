"""``simulate_dynamic``: a trace through pools of servers that a policy switches on and off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.errors import ScenarioError
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import Setup
from qsim.sim.fleet.lifecycle import STATES
from qsim.sim.fleet.parts import WholeRun, run_whole
from qsim.sim.fleet.policy import Policy
from qsim.sim.fleet.pool import Pool, ResolvedPool, resolve_servers
from qsim.sim.fleet.server import Server
from qsim.sim.results.finished import request_columns
from qsim.sim.results.result import SimulationResult
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import refuse_queue_limits
from qsim.traces.trace import Trace


@dataclass(frozen=True)
class PoolOutcome:
    """What one pool did."""

    profile: str
    gpus_per_server: int
    #: answered by it
    requests: int
    #: from off, and from asleep
    starts: int
    wakes: int
    #: server-seconds and energy by state; the energy of draining is in that of ``on``
    state_s: dict[str, float]
    state_j: dict[str, float]
    #: GPU-seconds that are paid for
    billed_gpu_s: float


@dataclass(frozen=True, eq=False)
class DynamicResult:
    """A run of a fleet that changes."""

    #: latencies by request, as for an unchanging fleet; its energy is that of every state
    requests: SimulationResult
    #: the pool that answered each request; -1 if it was rejected
    pool: IntArray
    pools: tuple[PoolOutcome, ...]
    #: energy and rent are of [0, end_s)
    end_s: float
    #: width of the bins of ``energy_bins_j``
    bin_s: float
    #: energy of all GPUs by bin, from time 0
    energy_bins_j: FloatArray
    #: as of :class:`qsim.sim.fleet.lives.Lives`
    changes: list[tuple[float, int, int, int, int, int]] = field(repr=False)
    decisions: list[tuple[float, tuple[int, ...]]] = field(repr=False)

    @property
    def energy_j(self) -> float:
        """Energy of all GPUs, J."""
        return self.requests.energy_j

    @property
    def gpu_hours(self) -> float:
        """GPU-hours that are paid for."""
        return sum(p.billed_gpu_s for p in self.pools) / 3600

    @property
    def starts(self) -> int:
        """Starts from off; the servers that are on at time 0 are not among them."""
        return sum(p.starts for p in self.pools)

    @property
    def wakes(self) -> int:
        """Starts from asleep."""
        return sum(p.wakes for p in self.pools)

    def windows(self, window_s: float) -> IntArray:
        """The window in which each request arrived."""
        return np.asarray(self.requests.arrival_s // window_s, np.int64)

    def attainment(self, slos: Sequence[Slo], window_s: float) -> FloatArray:
        """Share of the requests within every limit by window of arrival; nan without requests."""
        good = self.requests.meets(slos)
        at = self.windows(window_s)
        count = np.bincount(at)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.bincount(at, weights=good) / count)

    def values(self, slo: Slo, window_s: float) -> FloatArray:
        """The statistic of an SLO by window of arrival, ms; nan without requests.

        Raises
        ------
        ScenarioError
            For ``itl``, which is not kept by window.
        """
        if slo.metric == "itl":
            raise ScenarioError(f"SLO {slo} is of itl, which is not kept by window; use tpot")
        at = self.windows(window_s)
        values: FloatArray = getattr(self.requests, f"{slo.metric}_ms")
        edges = np.searchsorted(at, np.arange(int(at.max()) + 2))
        return np.array([slo.of(values[a:b]) for a, b in pairwise(edges)])

    def energy_by(self, window_s: float) -> FloatArray:
        """Energy by window, J; a window must be a whole number of bins."""
        each = round(window_s / self.bin_s)
        if each < 1 or abs(each * self.bin_s - window_s) > 1e-9:
            raise ScenarioError(
                f"window is {window_s!r} s; must be a whole number of {self.bin_s:g} s"
            )
        count = -(-len(self.energy_bins_j) // each)
        padded = np.zeros(count * each)
        padded[: len(self.energy_bins_j)] = self.energy_bins_j
        return np.asarray(padded.reshape(count, each).sum(axis=1))


def simulate_dynamic(
    trace: Trace,
    pools: Sequence[Pool],
    policy: Policy,
    *,
    end_s: float | None = None,
    bin_s: float = 60.0,
    pack: int = 0,
    too_long: str = "error",
    text_prompts: bool = False,
    frontend: bool = True,
    jump: bool = True,
    keep_gaps: bool = False,
    progress: Callable[[float], None] | None = None,
) -> DynamicResult:
    """Replay ``trace`` against pools of servers, of which ``policy`` says how many are on.

    Parameters
    ----------
    pools : sequence of Pool
        ``replicas`` is the most servers that may exist at a time, those that start, drain or sleep
        included.
    end_s : float, optional
        Count energy and rent to this time; to the last token if that is later, or if not given.
    bin_s : float
        Width of the bins of energy over time, s.
    pack : int
        With 0 a request goes to the server with the fewest requests outstanding per weight; else
        to the first one, in a fixed order, that has fewer than ``pack`` times its weight, and to
        the one with the fewest if all are full.
    too_long : {"error", "reject"}
        As for :func:`qsim.simulate`; a prompt must fit into every pool's ``max_model_len``.
    text_prompts, frontend, jump
        As for :func:`qsim.simulate`.
    keep_gaps : bool
        Keep the inter-token gaps, for ITL; they take much memory in long runs.

    Raises
    ------
    ScenarioError
        If there is no pool, or an option or a decision of the policy is not allowed; or the trace
        has sessions whose turns wait for answers.
    TraceError
        If a prompt is too long and ``too_long`` is "error".
    """
    if not pools:
        raise ScenarioError("no pool is given; a fleet needs at least one")
    if trace.turns is not None:
        raise waits_for_answers(trace)
    if not bin_s > 0:
        raise ScenarioError(f"bin_s is {bin_s!r}; must be > 0")
    for p in pools:
        refuse_queue_limits(p.options.to_dict(), "a schedule")
    setup = Setup(
        resolve_servers(pools), "least-requests", 0, too_long, frontend,
        text_prompts=text_prompts, pack=pack,
    )  # fmt: skip
    run = run_whole(
        trace,
        setup,
        keep_gaps=keep_gaps,
        jump=jump,
        progress=progress,
        policy=policy,
        end_s=0.0 if end_s is None else end_s,
        bin_s=bin_s,
    )
    return _collect(run, setup, trace, bin_s)


def waits_for_answers(trace: Trace) -> ScenarioError:
    """What to raise for a trace with sessions whose turns wait for answers."""
    return ScenarioError(
        f"{trace.name}: later turns of its sessions wait for answers, which is not simulated for "
        "servers that come and go; give :turns=open after the path to let each turn come its "
        "delay after the turn before it, as if answers took no time"
    )


def _collect(run: WholeRun, setup: Setup, trace: Trace, bin_s: float) -> DynamicResult:
    fleet, answered = run.fleet, run.finished
    servers = fleet.lives.servers
    answers = np.bincount(answered.replica, minlength=len(servers))
    timeline = fleet.timeline.columns(fleet.end_ps, len(servers))
    bins = round(fleet.end_ps / PS_PER_S / bin_s + 0.4999)
    energy = np.zeros(max(bins, len(timeline["t_s"])))
    width = np.full(len(timeline["t_s"]), bin_s)
    if len(width):
        width[-1] = min(bin_s, fleet.end_ps / PS_PER_S - bin_s * (len(width) - 1))
    energy[: len(width)] = timeline["power_w"] * width
    requests = SimulationResult(
        **request_columns(trace, run.output_tokens, run.admissible, answered),
        completed=run.admissible,
        itl=run.gaps,
        duration_s=fleet.end_ps / PS_PER_S,
        replica_stats=[
            {"replica": s.index, "requests": int(answers[s.index]), **s.row()} for s in servers
        ],
        timeline=timeline,
        gpus=setup.gpus,
        scenario={"trace": trace.name, "requests": len(trace)},
    )
    pools = np.array([*(s.pool for s in servers), -1])  # by server; the last: of no server, -1
    return DynamicResult(
        requests,
        pools[requests.replica],
        tuple(
            _outcome(
                pool,
                [s for s in servers if s.pool == k],
                sum(int(answers[s.index]) for s in servers if s.pool == k),
            )
            for k, pool in enumerate(setup.pools)
        ),
        fleet.end_ps / PS_PER_S,
        bin_s,
        energy,
        fleet.lives.changes,
        fleet.lives.decisions,
    )


def _outcome(pool: ResolvedPool, servers: Sequence[Server], requests: int) -> PoolOutcome:
    gpus = pool.profile.identity.tensor_parallel_size
    state_s = {
        name: sum(s.state_ps[k] for s in servers) / PS_PER_S for k, name in enumerate(STATES)
    }
    billed = sum(state_s[name] for k, name in enumerate(STATES) if pool.lifecycle.billed(k))
    return PoolOutcome(
        pool.profile.id,
        gpus,
        requests,
        sum(s.starts for s in servers),
        sum(s.wakes for s in servers),
        state_s,
        {name: float(sum(s.state_j[k] for s in servers)) for k, name in enumerate(STATES)},
        billed * gpus,
    )
