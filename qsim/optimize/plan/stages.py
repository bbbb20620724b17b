"""The stages of a plan over one executor: fleets, settings, confidence, head-room, detail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qsim.optimize.plan.bottleneck import time_shares
from qsim.optimize.plan.budget import Budget
from qsim.optimize.plan.candidate import Candidate, Shortfall
from qsim.optimize.plan.candidate_search import search_candidate
from qsim.optimize.plan.confidence import Replication, replicate
from qsim.optimize.plan.detail import Detail, DetailWanted, fleet_sensitivity
from qsim.optimize.plan.headroom import Headroom, headroom_steps
from qsim.optimize.plan.mix_search import MixReport, choose_pairs, search_pair, task_of_parts
from qsim.optimize.plan.profile_choice import Choice
from qsim.optimize.plan.resample import Resample
from qsim.optimize.plan.what_if import changes_of, what_if
from qsim.optimize.search.drive import Progress, drive, part_of
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.fleet_task import FleetTask, run_fleet, weights_of

#: fleets that are equal in the objective and are looked at more closely
MOST_TIED = 6


@dataclass(frozen=True)
class PlanRun:
    """What all stages of a plan share."""

    executor: TaskExecutor
    #: a fleet with the plan's trace, limits and settings; profile and size are replaced
    base: FleetTask
    #: a profile, and its candidate before the search, at each place
    choices: Sequence[Choice]
    blanks: Sequence[Candidate]
    objective: str
    max_replicas: int
    budget: Budget

    def fleets(self, progress: Progress | None) -> list[Candidate]:
        """The smallest fleet of every profile with the plan's own settings."""
        searches = [
            search_candidate(
                replace(self.base, profile=c.profile), b, self.max_replicas, self.budget
            )
            for c, b in zip(self.choices, self.blanks, strict=True)
        ]
        return drive(self.executor, searches, [b.profile for b in self.blanks], progress)

    def mixes(
        self, candidates: Sequence[Candidate], progress: Progress | None
    ) -> tuple[list[Candidate], MixReport | None]:
        """Mixed fleets within the stock that are not worse than every fleet of one profile.

        One for each pair of profiles that has such a fleet; and what was tried, None where no stock
        is given, or it holds one profile's servers only.
        """
        if self.budget.stock is None:
            return [], None
        profiles = {c.profile.id: c.profile for c in self.choices}
        able = [c for c in candidates if c.engine is not None and not c.parts]
        servers = [(profiles[c.profile], c.engine) for c in able if c.engine is not None]
        weights = weights_of(self.base.router, self.base.trace, servers)
        pairs, left_out = choose_pairs(
            able,
            self.budget,
            self.objective,
            self.max_replicas,
            {c.profile: w for c, w in zip(able, weights, strict=True)},
        )
        if not pairs:
            return [], None
        bound = min((c.worth(self.objective) for c in able if c.feasible), default=math.inf)
        searches = [
            search_pair(
                task_of_parts(self.base, [replace(p, replicas=1) for p in pair.parts], profiles),
                pair,
                self.objective,
                self.budget,
                bound,
                self.max_replicas,
            )
            for pair in pairs
        ]
        names = [" + ".join(p.names) for p in pairs]
        outcomes = drive(self.executor, searches, names, progress)
        found = [c for c, _ in outcomes if c is not None]
        ranked = self.ranked(found)
        report = MixReport(
            tuple(p.names for p in pairs),
            left_out,
            tuple(p.names for p in pairs if p.coarse),
            sum(n for _, n in outcomes),
            ranked[0].profile if ranked else "",
            bool(ranked) and ranked[0].worth(self.objective) < bound,
        )
        return found, report

    def ranked(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """The best first, infeasible ones last."""
        return tuple(sorted(candidates, key=lambda c: c.rank(self.objective)))

    def confident(
        self, candidates: Sequence[Candidate], wanted: DetailWanted, progress: Progress | None
    ) -> tuple[list[Candidate], tuple[Replication, ...]]:
        """Let the best fleet grow until enough replications meet every limit.

        The best candidate is replicated; if too few runs meet the limits it grows by one replica,
        which may make another one the best. Ends when the best one is sure enough, or none is
        left. Fleets are never made smaller than they were found.

        With the candidates come the runs of the best one; none if none is left.
        """
        assert wanted.min_confidence is not None
        found, count = list(candidates), wanted.replications or 0
        for step in range(len(found) * self.max_replicas):
            top = self.ranked(found)[0]
            if not top.feasible:
                return found, ()
            runs = self._replicated(top, wanted, count)
            met = sum(r.met for r in runs)
            if met >= wanted.min_confidence * len(runs) - 1e-9:
                return found, runs
            found[found.index(top)] = self._grown(top, met, wanted)
            if progress is not None:
                progress(1 - 0.8**step, "confidence")
        return found, ()

    def _grown(self, candidate: Candidate, met: int, wanted: DetailWanted) -> Candidate:
        """One server more, or infeasible if that is beyond a limit.

        Of a mixed fleet one of the pool of which there are some left, the cheapest first.
        """
        n, count = candidate.replicas or 1, wanted.replications or 1
        least, mixed = wanted.min_confidence or 0.0, bool(candidate.parts)
        so_far = f"{n} {'servers' if mixed else 'replicas'} meet every SLO in {met} of {count} "
        so_far += "replications"
        task = self.fleet_of(candidate)
        options = []
        for i in range(len(task.sizes)):
            sizes = [m + (k == i) for k, m in enumerate(task.sizes)]
            options.append((candidate.usd_of(sizes) or 0.0, candidate.gpus_of(sizes), sizes))
        for _, _, sizes in sorted(options):
            used = candidate.gpus_by_type(sizes) if mixed else {}
            if n >= self.max_replicas or any(
                n_gpus > (self.budget.in_stock(gpu) or 0) for gpu, n_gpus in used.items()
            ):
                continue
            outcome = self.executor.submit(run_fleet, task.sized(sizes)).result()
            grown = replace(
                candidate,
                parts=tuple(
                    replace(p, replicas=m) for p, m in zip(candidate.parts, sizes, strict=mixed)
                ),
                outcome=outcome,
                evaluations=(*candidate.evaluations, outcome),
                grown_from=candidate.grown_from or n,
            )
            over = self.budget.overruns(grown, outcome)
            if not over:
                return grown
            reason = f"{so_far}; one more {over[0][1]}"
            return replace(grown, feasible=False, reason=reason, shortfall=over[0][0])
        left = "there are no more in stock" if mixed else "that is the most to try"
        under = Shortfall("min_confidence", met / count, least, (least - met / count) / least)
        return replace(candidate, feasible=False, reason=f"{so_far}, and {left}", shortfall=under)

    def _replicated(
        self, candidate: Candidate, wanted: DetailWanted, count: int
    ) -> tuple[Replication, ...]:
        """Runs of a candidate's fleet with other traffic, whose misses are not explained."""
        task = self.fleet_of(candidate)
        resampling = wanted.resampling or Resample(task.trace)
        return replicate(self.executor, task, resampling, count, explain=False).runs

    def settle_ties(
        self,
        candidates: Sequence[Candidate],
        wanted: DetailWanted,
        count: int,
        headroom: bool,
        progress: Progress | None,
    ) -> tuple[list[Candidate], dict[str, tuple[Replication, ...]], dict[str, Headroom]]:
        """Find out of fleets that are equal in the objective which is the surest.

        Of at most :data:`MOST_TIED` of them, those farthest within their limits, ``count``
        replications are run, all with the same traffic and draws, and the head-room is found.

        With the candidates come replications and head-room by profile.
        """
        found = list(candidates)
        ranked = self.ranked(found)
        worth = ranked[0].worth(self.objective)
        tied = [c for c in ranked if c.feasible and c.worth(self.objective) == worth]
        runs: dict[str, tuple[Replication, ...]] = {}
        rooms: dict[str, Headroom] = {}
        if len(tied) < 2:
            return found, runs, rooms
        tied.sort(key=lambda c: c.outcome.binding.ratio if c.outcome else 0.0)
        closer = tied[:MOST_TIED]
        share = 0.5 if count and headroom else 1.0
        if count:
            for done, c in enumerate(closer):
                runs[c.profile] = self._replicated(c, wanted, count)
                if progress is not None:
                    progress((done + 1) / len(closer) * share, "ties")
        if headroom:
            searches = [headroom_steps(self.fleet_of(c)) for c in closer]
            names = ["head-room"] * len(closer)
            left = part_of(progress, 1.0 - share, 1.0)
            found_rooms = drive(self.executor, searches, names, left)
            rooms = {c.profile: room for c, room in zip(closer, found_rooms, strict=True)}
        for c in closer:
            settled = c
            if count:
                met = sum(r.met for r in runs[c.profile])
                settled = replace(settled, replications=(met, count))
            if headroom:
                settled = replace(settled, carries=rooms[c.profile].speed)
            elif c.outcome is not None:  # how far its nearest limit is
                settled = replace(settled, nearest_limit=c.outcome.binding.ratio)
            found[found.index(c)] = settled
        return found, runs, rooms

    def detail(
        self,
        ranked: Sequence[Candidate],
        wanted: DetailWanted,
        spare: Headroom | None,
        runs: Sequence[Replication],
        asked: bool,
        progress: Progress | None,
    ) -> Detail:
        """Find out what is wanted about the first of ``ranked``.

        Single changes are tried at the speed that breaks an SLO, where ``spare`` tells it. ``runs``
        of this very fleet were made already. If it was ``asked``, misses are explained, which takes
        more runs.
        """
        best, executor = ranked[0], self.executor
        task = self.fleet_of(best)
        steps = [bool(wanted.replications), wanted.sensitivity, wanted.bottlenecks]

        def part(i: int) -> Progress | None:
            return part_of(progress, sum(steps[:i]) / sum(steps), sum(steps[: i + 1]) / sum(steps))

        confidence, sensitivity, shares, changes = None, None, None, None
        if wanted.replications:
            resampling = wanted.resampling or Resample(task.trace)
            confidence = replicate(
                executor, task, resampling, wanted.replications, part(0), explain=asked, runs=runs
            )
        if wanted.sensitivity:
            known = best.evaluations
            sensitivity = fleet_sensitivity(executor, task, known, self.max_replicas, part(1))
        if wanted.bottlenecks:
            future = executor.submit(time_shares, task)
            other = next((self.fleet_of(c) for c in ranked[1:] if c.feasible), None)
            speed = (spare.broken_speed if spare else None) or 1.0
            changes = what_if(executor, task, changes_of(task, other), speed, part(2))
            shares = future.result()
        return Detail(confidence, sensitivity, shares, changes, asked)

    def fleet_of(self, candidate: Candidate) -> FleetTask:
        """A candidate's fleet, to be simulated."""
        if candidate.parts:
            profiles = {c.profile.id: c.profile for c in self.choices}
            return task_of_parts(self.base, candidate.parts, profiles)
        profile = next(c.profile for c in self.choices if c.profile.id == candidate.profile)
        return replace(
            self.base,
            profile=profile,
            replicas=candidate.replicas or 1,
            options=candidate.options,
            router=candidate.router or self.base.router,
        )
