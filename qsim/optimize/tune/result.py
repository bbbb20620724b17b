"""What tuning found: trials, the front, what was picked; or why there is nothing to pick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qsim.errors import InfeasibleError, ScenarioError
from qsim.optimize.deploy.deployment import Pool
from qsim.optimize.deploy.export import (
    Export,
    export_pools,
    export_scenario,
    parse_export,
    pools_scenario,
)
from qsim.optimize.economics.prices import Price
from qsim.optimize.plan.profile_choice import Choice
from qsim.optimize.search.expressions import Comparison, Pick, parse_pick
from qsim.optimize.search.goals import Carbon, QualityGoal
from qsim.optimize.search.measures import ALIASES, Measure, find_measure
from qsim.optimize.search.pareto import front_mask, knee
from qsim.optimize.search.study import Record
from qsim.optimize.tune.importance import Importance, importances
from qsim.profiles.lookup import transfer_note
from qsim.profiles.measured_range import MeasuredRange
from qsim.scenario import Scenario
from qsim.sim.scheduler.config import EngineOptions


@dataclass(frozen=True)
class Limit:
    """A constraint: a figure that may not exceed, or not fall below, a value."""

    measure: Measure
    op: str
    value: float

    def violation(self, figure: float | None) -> float:
        """By how much it is missed, as a share of the limit; at most 0 where it is met.

        What is not known, such as a latency over nothing, misses by the whole limit: there is
        nothing to judge. A trace that is too short to tell overload is not held against a fleet.
        """
        if figure is None:
            return 0.0 if self.measure.name == "overload" else 1.0
        over = figure - self.value if self.op == "<=" else self.value - figure
        return over / abs(self.value) if self.value else over

    def __str__(self) -> str:
        return f"{self.measure.name}{self.op}{self.value:.15g}"


def check_pick(pick: Pick, known: Mapping[str, Any]) -> None:
    """Refuse a pick by what is not among ``known``: decisions, figures and their short names.

    ``known`` has their values in some trial.

    Raises
    ------
    ScenarioError
        With near names, or what it takes to know the figure.
    """
    names = [c.name for c in (() if pick.where is None else pick.where.comparisons())]
    if pick.rule in ("min", "max"):
        names.append(pick.name)
    for name in names:
        if name not in known:
            find_measure(name)  # an error with near names
            raise ScenarioError(
                f"--pick: {name} was not measured; make it an objective (--objective {name}) or a "
                "constraint, or give what it needs (--slo, --region, --price)"
            )
    if pick.rule in ("min", "max") and isinstance(known[pick.name], str):
        raise ScenarioError(f"--pick {str(pick)!r}: {pick.name} is no number")


@dataclass(frozen=True)
class TuneResult:
    """The answer of :func:`qsim.tune`."""

    objectives: tuple[Measure, ...]
    limits: tuple[Limit, ...]
    #: all, in the order of their numbers; ``figures`` has every figure of each
    trials: tuple[Record, ...]
    #: profiles that were not tried, with the reason
    excluded: Mapping[str, str]
    #: the traffic in a few numbers
    trace: Mapping[str, Any]
    #: what it was searched with
    settings: Mapping[str, Any]
    choices: Mapping[str, Choice]
    options: EngineOptions
    router: str
    quality_goal: QualityGoal | None = None
    prices: Mapping[str, Price | None] = field(default_factory=dict)
    carbon: Carbon | None = None
    #: what a reader should know of the figures
    notes: tuple[str, ...] = ()
    #: the Optuna study, with all trials
    study: Any = field(default=None, repr=False, compare=False)
    #: why there are fewer trials than asked for; "" if there are not
    unfinished: str = ""
    #: whether importances are worked out, which takes some seconds
    wants_importances: bool = True

    @cached_property
    def importances(self) -> tuple[Importance, ...]:
        """What each decision explains of each objective; none if they are not wanted."""
        if not self.wants_importances:
            return ()
        return importances(self.study, self.objectives, int(self.settings["seed"]))

    @property
    def distinct(self) -> list[Record]:
        """The trials that met every constraint, each configuration once."""
        seen: set[tuple[Any, ...]] = set()
        found = []
        for t in self.trials:
            key = (t.figures.get("configuration") or tuple(t.params.items()),)
            if t.feasible and key not in seen:
                seen.add(key)
                found.append(t)
        return found

    def minimised(self, trials: list[Record]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Objectives of ``trials``, shape (n, m), with the sign that makes less better."""
        signs = np.array([-1.0 if o.maximize else 1.0 for o in self.objectives])
        values = np.array([t.values for t in trials], dtype=np.float64)
        return np.asarray(values.reshape(len(trials), len(signs)) * signs)

    @property
    def front(self) -> list[Record]:
        """Trials that met every constraint and that no other such trial dominates.

        Best first in the first objective. Of trials with the same values the first; see
        :meth:`equals` for the others.
        """
        trials = self.distinct
        if not trials:
            return []
        values = self.minimised(trials)
        order = sorted(np.flatnonzero(front_mask(values)), key=lambda i: (*values[i], i))
        one = {tuple(values[i]): i for i in reversed(order)}
        return [trials[i] for i in order if one[tuple(values[i])] == i]

    def equals(self, trial: Record) -> list[Record]:
        """Other configurations that met every constraint with the same values."""
        return [t for t in self.distinct if t.values == trial.values and t.number != trial.number]

    def pick(self, how: str | Pick = "knee") -> Record:
        """One point of the front, as ``--pick`` says: see :func:`parse_pick`.

        Raises
        ------
        InfeasibleError
            If no point of the front meets the condition, or there is no front.
        ScenarioError
            If ``how`` does not parse, or names a figure that there is not.
        """
        pick = parse_pick(how) if isinstance(how, str) else how
        front = self.front
        if not front:
            raise InfeasibleError(self.why_infeasible())
        check_pick(pick, self._named(next((t for t in self.trials if t.complete), self.trials[0])))
        left = [t for t in front if pick.where is None or pick.where.holds(self._named(t))]
        if not left:
            raise InfeasibleError(self._why_no_pick(pick, front))
        if pick.rule == "knee":
            return left[knee(self.minimised(left))]
        if pick.rule == "first":
            return left[0]
        sign = 1.0 if pick.rule == "min" else -1.0
        figures = [self._named(t)[pick.name] for t in left]
        known = [i for i, f in enumerate(figures) if isinstance(f, int | float)]
        if not known:
            raise ScenarioError(f"--pick {str(pick)!r}: {pick.name} is no number")
        return left[min(known, key=lambda i: (sign * figures[i], i))]

    def _named(self, trial: Record) -> dict[str, Any]:
        """Everything a condition may name: parameters, figures, and figures by their alias."""
        named: dict[str, Any] = {**trial.figures, **trial.params}
        named |= {a: named[m] for a, m in ALIASES.items() if m in named and a not in named}
        identity = self.choices[str(trial.params["profile"])].profile.identity
        named |= {"method": identity.method, "gpu": identity.gpu}
        return named

    def _why_no_pick(self, pick: Pick, front: list[Record]) -> str:
        parts = []
        for c in () if pick.where is None else pick.where.comparisons():
            held = sum(c.holds(self._named(t)) for t in front)
            parts.append(f"{c} holds for {held} of {len(front)}{self._best_of(c, front)}")
        return f"no point of the front meets {str(pick.where)!r}: " + "; ".join(parts)

    def _best_of(self, c: Comparison, front: list[Record]) -> str:
        values = [v for t in front if isinstance(v := self._named(t).get(c.name), int | float)]
        if not values or c.op in ("==", "!="):
            return ""
        best = min(values) if c.op in ("<", "<=") else max(values)
        return f" (best {best:.4g})"

    def why_infeasible(self) -> str:
        """Which constraint binds, and by how much; for a study without a feasible trial."""
        complete = [t for t in self.trials if t.complete]
        if not complete:
            reasons = list(dict.fromkeys(t.reason for t in self.trials))
            return f"every one of {len(self.trials)} trials failed: {'; '.join(reasons[:3])}"
        parts = []
        tried = len({t.figures.get("configuration", t.number) for t in complete})
        nearest = min(complete, key=lambda t: sum(max(0.0, v) for v in t.violations.values()))
        for limit in self.limits:
            name = str(limit)
            best = min(complete, key=lambda t: t.violations[name])
            if best.violations[name] > 0:
                parts.append(
                    f"{name} is met by none of {tried} configurations: the best reached "
                    f"{_figure(best, limit)}, {_excess(best.violations[name], limit)}"
                )
        if parts:
            return "; ".join(parts)
        missed = [m for m in self.limits if nearest.violations[str(m)] > 0]
        return (
            "each constraint is met by some configuration, but never all at once; the nearest one "
            f"(trial {nearest.number}) misses "
            + ", ".join(
                f"{m} with {_figure(nearest, m)} ({_excess(nearest.violations[str(m)], m)})"
                for m in missed
            )
        )

    def pools(self, trial: Record) -> list[Pool]:
        """The fleet of a trial, as exports take it: a pool, or the two of a mixed fleet."""
        params = trial.params
        first, other = str(params["profile"]), params.get("beside")
        sizes = {first: int(params["replicas"])}
        if other is not None:
            sizes[other] = sizes.get(other, 0) + int(params["beside_replicas"])
        figures = trial.figures
        weights = {first: figures.get("weight"), other: figures.get("beside_weight")}
        waiting = figures.get("peak_waiting")
        return [
            Pool.of(
                self.choices[id_].profile,
                self.engine_options(trial, id_),
                n,
                str(params.get("router", self.router)),
                waiting=None if waiting is None else int(waiting),
                weight=weights[id_] if len(sizes) > 1 else None,
            )
            for id_, n in sorted(sizes.items())
        ]

    def engine_options(self, trial: Record, profile: str | None = None) -> EngineOptions:
        """The engine options of a trial: those given for all, and its own.

        Where the fleet is mixed, of the pool of ``profile``; of the first one unless given.
        """
        one = self.choices[str(trial.params["profile"]) if profile is None else profile].profile
        return self.options.updated(trial.params).settled(one)

    def caution(self, trial: Record) -> str:
        """What its settings rest on beyond the measured range; "" if all was measured."""
        found = [
            MeasuredRange.of(self.choices[pool.profile].profile).caution(
                pool.engine.max_num_seqs, pool.engine.max_num_batched_tokens
            )
            for pool in self.pools(trial)
        ]
        return "; ".join(dict.fromkeys(text for text in found if text))

    def serve_command(self, trial: Record, port: int = 8000) -> str:
        """The ``vllm serve`` command of one replica of a trial's fleet; a line for each pool."""
        from qsim.optimize.deploy.vllm import serve_command

        return "\n".join(serve_command(pool, port) for pool in self.pools(trial))

    def row(self, trial: Record, on_front: bool | None = None) -> dict[str, Any]:
        """A trial flat: number, whether it is on the front, parameters, and every figure."""
        if on_front is None:
            on_front = any(t.number == trial.number for t in self.front)
        return {
            "trial": trial.number,
            "feasible": trial.feasible,
            "on_front": on_front,
            **trial.params,
            **{k: v for k, v in trial.figures.items() if k not in ("configuration", *trial.params)},
            "reason": trial.reason or None,
        }

    def to_csv(self, all_trials: bool = False) -> str:
        """The front, or all trials, as CSV."""
        from qsim.documents import rows_csv

        front = self.front
        numbers = {t.number for t in front}
        rows = [self.row(t, t.number in numbers) for t in (self.trials if all_trials else front)]
        return rows_csv(rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        from qsim import __version__

        front = self.front
        numbers = {t.number for t in front}
        return {
            "schema": "qsim-tune/1",
            "qsim_version": __version__,
            "objectives": [
                {"name": o.name, "direction": "maximize" if o.maximize else "minimize"}
                for o in self.objectives
            ],
            "constraints": [str(m) for m in self.limits],
            "trace": dict(self.trace),
            "settings": dict(self.settings),
            "quality": None if self.quality_goal is None else self.quality_goal.to_dict(),
            "carbon": None if self.carbon is None else self.carbon.to_dict(),
            "prices": [p.to_dict() for _, p in sorted(self.prices.items()) if p is not None],
            "excluded": dict(self.excluded),
            "transferred": {
                id_: note
                for id_, c in self.choices.items()
                if (note := transfer_note(c.profile)) is not None
            },
            **({"unfinished": self.unfinished} if self.unfinished else {}),
            "notes": list(self.notes),
            "infeasible": None if front else self.why_infeasible(),
            "front": [
                {
                    **self.row(t, True),
                    "equal_trials": [e.number for e in self.equals(t)],
                    "serve_command": self.serve_command(t),
                }
                for t in front
            ],
            "importances": [
                {"objective": i.objective, "shares": dict(i.shares), "reason": i.reason or None}
                for i in self.importances
            ],
            "trials": [
                {**self.row(t, t.number in numbers), "violations": dict(t.violations)}
                for t in self.trials
            ],
        }


def _figure(trial: Record, limit: Limit) -> str:
    value = trial.figures.get(limit.measure.name)
    return "nothing known" if value is None else f"{value:.4g}"


def _excess(violation: float, limit: Limit) -> str:
    if not limit.value:
        return f"{violation:.3g} too {'much' if limit.op == '<=' else 'little'}"
    if violation >= 1 and limit.op == "<=":
        return f"{violation + 1:.3g} times the limit"
    return f"{violation * 100:.2g}% too {'much' if limit.op == '<=' else 'little'}"


def export_trial(
    result: TuneResult,
    trial: Record,
    export: Export | str,
    scenario: Scenario | None = None,
) -> str | None:
    """Write the fleet of a trial; returns the text if there is no path.

    ``export`` is ``vllm``, ``kubernetes`` or ``scenario``, with ``=PATH`` after it or not. For the
    last, ``scenario`` is what the tuning was asked; it names the trace.

    Raises
    ------
    ScenarioError
        As :func:`qsim.optimize.deploy.export.export_pools`; for a scenario if the trace or the
        profile cannot be said in one.
    """
    export = parse_export(export) if isinstance(export, str) else export
    if export.kind != "scenario":
        return export_pools(result.pools(trial), export)
    return export_scenario(trial_scenario(result, trial, scenario), export.path)


def trial_scenario(result: TuneResult, trial: Record, asked: Scenario | None) -> Scenario:
    """The scenario of ``qsim simulate`` that gives the trial's figures again.

    Raises
    ------
    ScenarioError
        If the trace or the profile was not read from a file or preset.
    """
    if asked is None or not isinstance(asked.traffic.trace, str):
        raise ScenarioError(
            "a scenario names the trace, and this one was not read by name: write it with "
            "qsim.traces.write_trace and tune for that file"
        )
    pools = result.pools(trial)
    sources = []
    for pool in pools:
        source = result.choices[pool.profile].source
        if source is None:
            raise ScenarioError(
                f"{pool.profile} was not read from a file; save it and give its path"
            )
        sources.append(source)
    return pools_scenario(pools, asked.traffic, sources, asked.slos, result.settings)
