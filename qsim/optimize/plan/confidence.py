"""How sure a plan is: its fleet simulated again with other traffic, seeds and machines."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qsim.checks import whole
from qsim.errors import TraceError
from qsim.optimize.plan.resample import Resampling
from qsim.optimize.plan.what_if import scaled_memory, scaled_times, stated_kv_sigma, stated_sigma
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, run_fleet
from qsim.profiles.factors import FACTORS, Factors, apply
from qsim.profiles.schema import Profile
from qsim.sim.machines import machine_at

#: runs of one fleet with other draws
MAX_REPLICATIONS = 10_000


#: a value over its limit in a run that could not serve its traffic at all
_MOST = 1e9

#: number of a replication; by pool the factors of times, of KV blocks, and those of the machine
_Job = tuple[int, tuple[float, ...], tuple[float, ...], tuple[Factors, ...]]

#: the machine of the profile
_OWN = Factors()
_DRAWN = {
    "known": "on machines drawn as known ones differ",
    "adapted": "on machines drawn within the intervals of its factors",
}


@dataclass(frozen=True)
class Replication:
    """One more run of a fleet."""

    #: from 1 on; seed of the draw, and added to the router's
    number: int
    replicas: int
    #: what every time of the profile, and its KV blocks, were multiplied by; of a mixed fleet that
    #: of its first pool
    factor: float
    kv_factor: float
    #: value over limit by goal, as :attr:`FleetOutcome.goals` have it
    goals: dict[str, float]
    #: no goal's value is above its limit
    met: bool
    #: it missed a goal, or had the requests that it takes to judge every SLO
    enough: bool = True
    #: what its machine is beside the profile's; of a mixed fleet that of its first pool
    machine: Factors = _OWN


@dataclass(frozen=True)
class Confidence:
    """How many replications met every goal."""

    #: of the fleet as planned, with the profile's error
    runs: tuple[Replication, ...]
    #: those of them that missed a goal with a slower profile or on another machine, run again with
    #: the profile as it is
    exact: tuple[Replication, ...]
    #: all of them with one replica more; empty if every run met the goals
    more: tuple[Replication, ...]
    #: relative standard error of the profile's times that was drawn from, ``kv_sigma`` that of its
    #: KV blocks; 0 if none is stated
    sigma: float
    #: how other traffic was drawn
    traffic: str
    kv_sigma: float = 0.0
    #: ``measured`` or ``transferred``, as the profile says
    source: str = "measured"
    #: the command that would measure what the profile describes
    calibrate: str = "qsim calibrate run"
    pools: int = 1
    #: which machines were drawn: ``known``, as known machines differ; ``adapted``, within the
    #: intervals of an adapted profile; or ``""``, none
    machines: str = ""

    @property
    def met(self) -> int:
        """Replications that met every goal."""
        return sum(r.met for r in self.runs)

    @property
    def by_profile(self) -> int:
        """Replications that missed a goal only because of the profile's error."""
        return sum(r.met for r in self.exact)

    @property
    def judged(self) -> int:
        """Replications that missed a goal, or had the requests to judge every SLO."""
        return sum(r.enough for r in self.runs)

    def missed(self) -> dict[str, int]:
        """Replications that missed each goal; those that none missed are left out."""
        counts = {g: sum(r.goals[g] > 1 for r in self.runs) for g in self.runs[0].goals}
        return {g: n for g, n in counts.items() if n}

    def text(self) -> list[str]:
        """Sentences for people."""
        n = len(self.runs)
        size = self.runs[0].replicas
        fleet = "1 replica" if size == 1 else f"{size} replicas"
        if self.judged:
            does = "meets every SLO" if size == 1 else "meet every SLO"
        else:
            does = f"{'is' if size == 1 else 'are'} within every limit"
        head = (
            f"confidence: {fleet} {does} in {self.met} of {n} "
            f"replications ({self.traffic}; other seeds"
        )
        if self.machines:
            head += f"; {_DRAWN[self.machines]}"
        if self.sigma and self.pools > 1:
            head += (
                f"; all times of each pool's {self.source} profile times 1 + e of its own, e of up "
                f"to {self.sigma:.1%}"
            )
        elif self.sigma:
            head += f"; all times of the {self.source} profile times 1 + e, e of {self.sigma:.1%}"
        if self.kv_sigma:
            head += f", its KV cache likewise, e of {self.kv_sigma:.1%}"
        lines = [head + ")"]
        if self.missed():
            often = {1: "once", 2: "twice"}
            named = ", ".join(f"{g} {often.get(k, f'{k} times')}" for g, k in self.missed().items())
            lines[0] += f"; missed: {named}"
        if self.judged < n:
            lines.append(
                f"{n - self.judged} of the {n} had too few requests to judge every SLO: take a "
                "longer trace"
            )
        if self.more:
            good = sum(r.met for r in self.more)
            which = " of the first pool" if self.pools > 1 else ""
            lines.append(f"with one replica more{which}: {good} of {n}")
        if self.by_profile:
            misses = n - self.met
            what = (
                "the one miss comes"
                if misses == 1
                else f"{self.by_profile} of the {misses} misses come"
            )
            if self.machines and not self.sigma:
                lines.append(
                    f"{what} from the machine alone, since on the profile's own the fleet meets "
                    "every SLO; 'qsim calibrate adapt' makes the profile one of your machine"
                )
            else:
                cause = "the machine or the error" if self.machines else "the error"
                lines.append(
                    f"{what} from {cause} of the {self.source} profile alone; measured on your own "
                    f"server that doubt would be less: {self.calibrate}"
                )
        if not self.sigma and not self.machines:
            lines.append("the profile states no error, so that none is in this figure")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "replications": len(self.runs),
            "met": self.met,
            "judged": self.judged,
            "missed": self.missed(),
            "met_with_one_more": sum(r.met for r in self.more) if self.more else None,
            "missed_by_profile_error_alone": self.by_profile,
            "profile_sigma": self.sigma,
            "profile_kv_sigma": self.kv_sigma,
            "profile_source": self.source,
            "machines": self.machines or None,
            "traffic": self.traffic,
            "runs": [
                {
                    "number": r.number,
                    "factor": r.factor,
                    "kv_factor": r.kv_factor,
                    "machine": asdict(r.machine),
                    "met": r.met,
                    "value_over_limit": r.goals,
                }
                for r in self.runs
            ],
        }


def replicate(
    executor: Executor,
    task: FleetTask,
    resampling: Resampling,
    count: int,
    progress: Progress | None = None,
    *,
    explain: bool = True,
    runs: Sequence[Replication] = (),
    machines: bool = True,
) -> Confidence:
    """Simulate the fleet of ``task`` again, ``count`` times.

    Replication ``r`` has the traffic ``resampling.draw(r)``, the router's seed plus ``r``, and a
    machine drawn from what is known of the profile's (:mod:`qsim.profiles.spread`; of an adapted
    profile from its intervals), one for all servers of a pool. A profile that was not measured
    itself, but transferred or carried, is also off by its stated error: every time is multiplied by
    ``1 + e`` with ``e`` drawn from N(0, sigma); the KV blocks of a transferred one likewise. A run
    that cannot hold a prompt misses. A run with one replica more has the same traffic, seed,
    machine and ``e``, so that the two differ in the fleet alone.

    ``explain`` also runs what is told about misses: the exact profile, and one replica more.
    ``runs`` of this very fleet were made already. Without ``machines`` none is drawn, and a
    measured profile is off by its stated error too.

    Raises
    ------
    ScenarioError
        If ``count`` is not a whole number >= 1.
    """
    whole("replications", count, 1, MAX_REPLICATIONS)
    profiles = [p.profile for p in task.pools]
    sigmas = [
        0.0 if machines and p.transfer is None and p.carried is None else stated_sigma(p)
        for p in profiles
    ]
    kv_sigmas = [stated_kv_sigma(p) for p in profiles]
    sigma, kv_sigma = max(sigmas), max(kv_sigmas)
    drawn = [_errors(task.seed, count, k) for k in range(len(profiles))]
    own = (_OWN,) * len(profiles)
    on = [_machines(p, task.seed, count, k) for k, p in enumerate(profiles)] if machines else []
    jobs: list[_Job] = [
        (
            r + 1,
            tuple(1.0 + s * float(e[0, r]) for s, e in zip(sigmas, drawn, strict=True)),
            tuple(1.0 + s * float(e[1, r]) for s, e in zip(kv_sigmas, drawn, strict=True)),
            tuple(x[r] for x in on) if machines else own,
        )
        for r in range(count)
    ]

    names = [str(s) for s in (*task.slos, *([task.goodput] if task.goodput else []))]
    names += [] if task.allow_backlog else ["backlog"]

    def run(jobs: Sequence[_Job], more: int, share: float) -> tuple[Replication, ...]:
        futures = [
            executor.submit(_run, task.with_first(task.replicas + more), resampling, job)
            for job in jobs
        ]
        found = []
        for (r, factors, kv_factors, machine), future in zip(jobs, futures, strict=True):
            outcome: FleetOutcome | None = future.result()
            n = task.servers + more
            factor, kv_factor = factors[0], kv_factors[0]
            if outcome is None:
                none = dict.fromkeys(names, _MOST)
                found.append(Replication(r, n, factor, kv_factor, none, False, machine=machine[0]))
            else:
                goals = {str(g.slo): min(g.ratio, _MOST) for g in outcome.goals}
                enough = not outcome.met or all(s.enough for s in outcome.slos)
                found.append(
                    Replication(r, n, factor, kv_factor, goals, outcome.met, enough, machine[0])
                )
            if progress is not None:
                progress(share + len(found) / len(jobs) * (0.5 - share / 2), "replications")
        return tuple(found)

    done = tuple(runs) or run(jobs, 0, 0.0)
    behind_best = [r for r in done if explain and not r.met]
    ones = (1.0,) * len(profiles)
    slower = {r for r, times, blocks, _ in jobs if machines or max(times) > 1 or min(blocks) < 1}
    exact = run([(r.number, ones, ones, own) for r in behind_best if r.number in slower], 0, 0.5)
    more = run(jobs, 1, 0.5) if behind_best else ()
    if progress is not None:
        progress(1.0, "replications")
    i = profiles[sigmas.index(sigma)].identity
    tp = f" --tensor-parallel-size {i.tensor_parallel_size}" if i.tensor_parallel_size > 1 else ""
    return Confidence(
        done,
        exact,
        more,
        sigma,
        resampling.text(),
        kv_sigma,
        " or ".join(sorted({p.identity.source for p in profiles})),
        f"qsim calibrate run --model {i.model} --methods {i.method}{tp} on a {i.gpu}",
        len(profiles),
        "" if not machines else "adapted" if all(p.adapted for p in profiles) else "known",
    )


def _machines(profile: Profile, seed: int, count: int, pool: int) -> list[Factors]:
    """Machines of a pool, drawn from what is known of its profile's."""
    rng = np.random.default_rng([seed, count, pool, len(FACTORS)])
    return [machine_at(profile, z) for z in rng.standard_normal((count, len(FACTORS))).tolist()]


def _errors(seed: int, count: int, pool: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Standard normal errors of a pool's times and of its KV blocks, shape (2, count)."""
    key = [seed, count] if pool == 0 else [seed, count, pool]
    return np.random.default_rng(key).normal(0.0, 1.0, (2, count))


def _run(task: FleetTask, resampling: Resampling, job: _Job) -> FleetOutcome | None:
    """The replication's outcome; None if its traffic has prompts that its KV cache cannot hold."""
    number, factors, kv_factors, machines = job
    pools = []
    for pool, factor, kv_factor, machine in zip(
        task.pools, factors, kv_factors, machines, strict=True
    ):
        profile = pool.profile if machine == _OWN else apply(pool.profile, machine)
        if factor != 1:
            profile = scaled_times(profile, factor)
        if kv_factor != 1:
            profile = scaled_memory(profile, kv_factor)
        pools.append(replace(pool, profile=profile))
    again = replace(task, trace=resampling.draw(number), seed=task.seed + number).of_pools(pools)
    try:
        return run_fleet(again)
    except TraceError:
        return None
