"""The policies that a schedule is compared with, and the timetable itself, each at its best.

Everything is searched on the traffic that is known (``plan``) and then run on that which is to be
served (``serve``); with a perfect forecast the two are the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qsim.optimize.schedule.capacity import PoolCapacity
from qsim.optimize.schedule.controllers import DAY_S, Predictive, Reactive, Timetable
from qsim.optimize.schedule.problem import PoolChoice, ScheduleProblem
from qsim.optimize.schedule.result import PolicyResult
from qsim.optimize.schedule.tasks import RunOutcome, RunTask, run_policy
from qsim.optimize.schedule.timetable_search import Proposal, WindowSearch
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.space import Choices, Range, Space
from qsim.optimize.search.study import Judgement, Objective, Record, StudySettings, run_study
from qsim.quality.recovery import Recovery, fleet_recovery
from qsim.sim.fleet.policy import Constant, Policy

Counts = tuple[tuple[int, ...], ...]
#: times that a timetable is mended after a run of the whole trace
_REPAIRS = 12


def routed_quality(choices: Sequence[PoolChoice], requests: Sequence[int]) -> Recovery | None:
    """The mean quality over requests as they were routed; None where one is not known."""
    parts = [(c.quality, float(n)) for c, n in zip(choices, requests, strict=True) if n]
    known = [(q, n) for q, n in parts if q is not None]
    return fleet_recovery(known) if known and len(known) == len(parts) else None


def smallest_static(search: WindowSearch, proposal: Proposal) -> int:
    """The fewest servers of one pool that meet the SLOs in every window, by their simulations."""
    n = max(row[0] for row in proposal.counts)
    busiest = sorted(range(search.problem.windows), key=lambda t: -search.rates[t])
    while n > 1:
        state = search.state_of((n - 1,))
        for t in busiest:
            if (t, state) not in search.known and not search.banned[t, state]:
                search.simulate([(t, state)])
            if search.banned[t, state]:
                return n
        n -= 1
    return n


#: builds what is to be simulated from the parameters
Builder = Callable[[Mapping[str, Any]], RunTask]


@dataclass(frozen=True)
class Tuned:
    """The best parameters, and the run under them."""

    params: dict[str, Any]
    task: RunTask
    run: RunOutcome
    trials: int


@dataclass
class PolicyProblem:
    """Make the objective small while every window meets the SLOs."""

    problem: ScheduleProblem
    choices: Sequence[PoolChoice]
    space: Space
    build: Builder
    runs: dict[Hashable, RunOutcome] = field(default_factory=dict)

    @property
    def objectives(self) -> Sequence[Objective]:
        """One: the schedule's."""
        return (Objective(self.problem.objective),)

    def key(self, params: dict[str, Any]) -> Hashable:
        """The parameters themselves."""
        return tuple(sorted(params.items()))

    def submit(self, executor: TaskExecutor, params: dict[str, Any]) -> Future[Any]:
        """Simulate the whole trace."""
        return executor.submit(run_policy, self.build(params))

    def judge(self, params: dict[str, Any], outcome: RunOutcome) -> Judgement:
        """The objective; the excess of the worst window is the violation."""
        self.runs[self.key(params)] = outcome
        ratio, window, slo = outcome.worst
        return Judgement(
            (self.problem.value(self.choices, outcome),),
            {"slo": max(ratio - 1.0, outcome.overload)},
            {
                "worst_window": window,
                "worst_slo": str(self.problem.slos[slo]),
                "missed_windows": len(outcome.missed),
                "energy_j": outcome.energy_j,
                "starts": outcome.starts,
            },
        )


@dataclass(frozen=True)
class Bench:
    """Runs policies on one problem."""

    #: what is known, and what is to be served
    plan: ScheduleProblem
    serve: ScheduleProblem
    executor: TaskExecutor
    #: of every policy's search
    settings: StudySettings

    def _task(self, choices: Sequence[PoolChoice], policy: Policy, pack: int = 0) -> RunTask:
        p = self.plan
        pools = tuple(c.pool for c in choices)
        return RunTask(
            p.trace, pools, policy, p.slos, p.window_s, p.end_s, pack, p.too_long, p.allow_backlog,
            p.text_prompts,
        )  # fmt: skip

    def _run(self, task: RunTask) -> RunOutcome:
        return self.executor.submit(run_policy, task).result()

    def _served(self, tuned: Tuned, policy: Policy | None = None) -> RunOutcome:
        """The run on the traffic to be served."""
        if self.serve is self.plan:
            return tuned.run
        trace, end_s = self.serve.trace, self.serve.end_s
        return self._run(
            replace(tuned.task, trace=trace, end_s=end_s, policy=policy or tuned.task.policy)
        )

    def result(
        self,
        name: str,
        description: str,
        choices: Sequence[PoolChoice],
        params: Mapping[str, Any],
        run: RunOutcome,
        trials: int = 1,
    ) -> PolicyResult:
        """A run with its totals."""
        return PolicyResult(
            name,
            description,
            tuple(choices),
            params,
            run,
            self.serve.totals(choices, run),
            self.serve.value(choices, run),
            routed_quality(choices, run.requests),
            trials,
        )

    # ---------------------------------------------------------------------------- static

    def static(self, choice: PoolChoice, servers: int) -> PolicyResult:
        """A fleet for the peak that never changes; one more where the whole trace needs it."""
        n, trials = servers, 0
        while True:
            own = _limited(choice, n)
            task = self._task([own], Constant((n,)))
            run = self._run(task)
            trials += 1
            if not (run.missed or run.overload) or trials > 3:
                break
            n += 1
        run = self._served(Tuned({}, task, run, trials))
        text = f"{n} x {choice.label}, always on"
        name = f"static {choice.label}"
        return self.result(name, text, [own], {"servers": n}, run, trials)

    # ------------------------------------------------------------------------ autoscalers

    def reactive(
        self, choice: PoolChoice, capacity: PoolCapacity, servers: int, progress: Progress
    ) -> PolicyResult:
        """Autoscaling on the number of requests; its target is searched."""
        own = _limited(choice, servers + 2)
        busy = capacity.in_flight

        def build(params: Mapping[str, Any]) -> RunTask:
            policy = Reactive(params["target"] * busy, 1, servers + 2, servers)
            return self._task([own], policy)

        space = Space({"target": Range(0.2, 1.2)})
        start = [{"target": v} for v in (0.7, 0.5, 0.9, 0.35)]
        tuned = self._tune([own], "reactive", space, build, start, progress)
        target = tuned.params["target"] * busy
        run = self._served(tuned)
        text = f"{choice.label}, a server for every {target:.2g} requests in the fleet"
        return self.result("reactive", text, [own], tuned.params, run, tuned.trials)

    def predictive(
        self, choice: PoolChoice, capacity: PoolCapacity, servers: int, progress: Progress
    ) -> PolicyResult:
        """Autoscaling on a forecast from the past; its margin is searched."""
        own = _limited(choice, servers + 2)
        table = tuple(capacity.of(n) for n in range(1, servers + 3))
        horizon_s = choice.pool.lifecycle.start_s + 60.0

        def build(params: Mapping[str, Any], before: tuple[int, ...] = ()) -> RunTask:
            policy = Predictive(table, params["margin"], horizon_s, servers, before)
            return self._task([own], policy)

        space = Space({"margin": Range(0.8, 1.8)})
        start = [{"margin": v} for v in (1.15, 1.0, 0.9, 1.35)]
        tuned = self._tune([own], "predictive", space, build, start, progress)
        policy = None
        if self.serve is not self.plan:
            edges = np.arange(0, self.plan.end_s + 1, 60.0)
            past = np.histogram(self.plan.trace.arrival_s, edges)[0]
            policy = build(tuned.params, tuple(past.tolist())).policy
        run = self._served(tuned, policy)
        text = f"{choice.label}, for {tuned.params['margin']:.2f} times the forecast rate"
        return self.result("predictive", text, [own], tuned.params, run, tuned.trials)

    def consolidation(
        self, choice: PoolChoice, capacity: PoolCapacity, servers: int, progress: Progress
    ) -> PolicyResult:
        """Requests packed on the fewest servers, the others asleep; the packing is searched."""
        own = _limited(choice, servers)
        own = replace(own, pool=replace(own.pool, sleeps=True))
        busy = capacity.in_flight

        def build(params: Mapping[str, Any]) -> RunTask:
            most = max(1, round(params["packed"] * busy))
            policy = Reactive(
                most * params["target"], 1, servers, servers, period_s=5.0, stabilisation_s=120.0
            )
            return self._task([own], policy, most)

        space = Space({"packed": Range(0.3, 2.0), "target": Range(0.2, 1.0)})
        pairs = ((1.0, 0.7), (1.4, 0.5), (0.7, 0.6), (1.0, 0.4))
        start = [{"packed": a, "target": b} for a, b in pairs]
        tuned = self._tune([own], "consolidation", space, build, start, progress)
        run = self._served(tuned)
        text = f"{servers} x {choice.label}, up to {tuned.task.pack} requests on each, rest asleep"
        return self.result("consolidation", text, [own], tuned.params, run, tuned.trials)

    def _tune(
        self,
        choices: Sequence[PoolChoice],
        name: str,
        space: Space,
        build: Builder,
        designed: Sequence[dict[str, Any]],
        progress: Progress,
    ) -> Tuned:
        """Search a policy's parameters; the best feasible trial, else the one that misses least."""
        problem, trace = PolicyProblem(self.plan, choices, space, build), self.plan.trace
        columns = trace.arrival_s.tobytes() + trace.output_tokens.tobytes()
        records, _ = run_study(
            problem,
            replace(self.settings, name=f"{self.settings.name}-{name}"),
            self.executor,
            designed=designed,
            identity={
                "policy": name,
                "trace": hashlib.sha256(columns).hexdigest()[:16],
                "slos": [str(s) for s in self.plan.slos],
                "window_s": self.plan.window_s,
                "pools": [[c.name, c.pool.replicas] for c in choices],
                **({"text_prompts": True} if self.plan.text_prompts else {}),
            },
            progress=progress,
        )
        best = min(records, key=_rank)
        task = build(best.params)
        # a run that was measured before an interruption is made again
        run = problem.runs.get(problem.key(best.params)) or self._run(task)
        return Tuned(best.params, task, run, len(records))

    # ------------------------------------------------------------------------- timetables

    def mixed(
        self, search: WindowSearch, good: int, lean: int, tables: Sequence[Counts], servers: int
    ) -> PolicyResult:
        """Full precision where it fits on the static fleet's GPUs, the leaner method elsewhere."""
        counts = []
        for t in range(self.plan.windows):
            row = [0] * len(search.choices)
            need = tables[good][t][0]
            fits = need * search.choices[good].gpus <= servers * search.choices[lean].gpus
            row[good if fits else lean] = need if fits else tables[lean][t][0]
            counts.append(tuple(row))
        a, b = search.choices[good].label, search.choices[lean].label
        text = f"{a} where it fits on the GPUs of the static fleet, else {b}"
        table, run, trials = self._mended(search, tuple(counts), grow=True)
        params = {"counts": table}
        return self.result("mixed precision", text, search.routed(), params, run, trials)

    def optimized(
        self, search: WindowSearch, proposal: Proposal, progress: Progress
    ) -> tuple[PolicyResult, Counts, float, int]:
        """The timetable, its lead and its routing searched over runs of the whole trace."""
        counts, _, trials = self._mended(search, proposal.counts)
        choices = search.routed()
        busy = max(c.in_flight for c in search.capacities)

        def build(params: Mapping[str, Any]) -> RunTask:
            pack = round(params["packed"] * busy)
            return self._timetable_task(search, counts, params["early_s"], pack)

        space = Space(
            {"packed": Choices((0.0, 0.4, 0.7, 1.0, 1.4)), "early_s": Choices((0, 30, 90))}
        )
        start: list[dict[str, Any]] = [
            {"packed": a, "early_s": b} for a, b in ((0.0, 0), (1.0, 0), (0.7, 0), (0.4, 0))
        ]
        tuned = self._tune(choices, "timetable", space, build, start, progress)
        policy = tuned.task.policy
        assert isinstance(policy, Timetable)
        run = tuned.run
        if self.serve is not self.plan:
            a_day = round(DAY_S / self.plan.window_s)
            counts = tuple(
                counts[min(t % a_day, len(counts) - 1)] for t in range(self.serve.windows)
            )
            run = self._served(tuned, replace(policy, counts=counts))
        most = " + ".join(
            f"{max(row[k] for row in counts)} {c.label}"
            for k, c in enumerate(choices)
            if any(row[k] for row in counts)
        )
        result = self.result(
            "optimized", f"timetable of up to {most}", choices, tuned.params, run,
            trials + tuned.trials,
        )  # fmt: skip
        return result, counts, policy.lead_s, tuned.task.pack

    def _timetable_task(
        self, search: WindowSearch, counts: Counts, early_s: float = 0.0, pack: int = 0
    ) -> RunTask:
        lead_s = max(p.lifecycle.start_s for p in search.pools) + early_s
        policy = Timetable(counts, self.plan.window_s, lead_s)
        return self._task(search.routed(), policy, pack)

    def _mended(
        self, search: WindowSearch, counts: Counts, grow: bool = False
    ) -> tuple[Counts, RunOutcome, int]:
        """Run the whole trace; give more to windows that miss an SLO, and run it again.

        With ``grow`` the fleet of such a window gets a server more, else it is ruled out and the
        program proposes anew.
        """
        best: tuple[int, Counts, RunOutcome] | None = None
        trials = 0
        for trials in range(1, _REPAIRS + 1):  # noqa: B007
            run = self._run(self._timetable_task(search, counts))
            if best is None or len(run.missed) < best[0]:
                best = (len(run.missed), counts, run)
            if not run.missed:
                break
            if grow:
                rows = [list(row) for row in counts]
                for t in run.missed:
                    k = int(np.argmax(rows[t]))
                    rows[t][k] = min(rows[t][k] + 1, search.choices[k].pool.replicas)
                following = tuple(tuple(row) for row in rows)
                if following == counts:
                    break
                counts = following
            else:
                for t in run.missed:
                    search.ban(t, search.state_of(counts[t]))
                counts = search.propose().counts
        assert best is not None
        return best[1], best[2], trials


def _limited(choice: PoolChoice, servers: int) -> PoolChoice:
    return replace(choice, pool=replace(choice.pool, replicas=max(1, math.ceil(servers))))


def _rank(record: Record) -> tuple[float, float, int]:
    if record.values is None:
        return (float("inf"), 0.0, record.number)
    excess = max(0.0, record.violations.get("slo", 0.0))
    return (excess, record.values[0], record.number)
