"""What tuning decides: the profile, the fleet's size and any engine option."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsim.checks import is_number, near_names
from qsim.errors import ScenarioError
from qsim.optimize.plan.profile_choice import Choice
from qsim.optimize.search.fleet_task import offered_load
from qsim.optimize.search.space import (
    Choices,
    Decision,
    Range,
    Space,
    check_measured,
    largest_measured,
    measured_values,
)
from qsim.sim.fleet.routers.router import check_router
from qsim.sim.scheduler.config import ENGINE, EngineOptions, refuse_queue_limits
from qsim.traces.trace import Trace

#: engine options that are searched unless they are fixed, and the values of theirs that are tried
SEARCHED: dict[str, tuple[int, ...]] = {
    "max_num_seqs": (32, 64, 128, 256, 512, 1024),
    "max_num_batched_tokens": (1024, 2048, 4096, 8192),
}
#: names that choose among the profiles; they are decided together, as ``profile``
FILTERS = ("gpu", "method", "tensor_parallel_size", "kv_cache_dtype")
#: points of a line that are tried, where it has more
_LINE = 8
_FLEET = ("profile", "replicas", "beside", "beside_replicas", "router")


@dataclass(frozen=True)
class TuneSpace:
    """The space, and what is not in it."""

    space: Space
    #: candidates by profile id
    choices: Mapping[str, Choice]
    #: reason by profile id of those that cannot serve this traffic or miss the quality floor
    excluded: Mapping[str, str]

    def designed(self) -> list[dict[str, object]]:
        """Corners to begin with: each profile as it was measured, in the smallest fleet, the
        largest and one between, and in the largest with the most and the fewest seats."""
        decisions = self.space.decisions
        sizes = _spread(decisions["replicas"])
        points: list[dict[str, object]] = []
        for extreme in (None, -1, 0):
            for size in sizes if extreme is None else sizes[-1:]:
                for id_ in map(str, decisions["profile"].grid()):
                    engine = self.choices[id_].profile.engine
                    point: dict[str, object] = {"profile": id_, "replicas": size}
                    for name, decision in decisions.items():
                        if name not in point:
                            values = _spread(decision)
                            usual = getattr(engine, name, values[0])
                            seats = extreme is not None and name == "max_num_seqs"
                            point[name] = (
                                values[extreme or 0] if seats else _nearest(decision, usual)
                            )
                    if point not in points:
                        points.append(point)
        others = _values(decisions.get("beside"))
        return points + [{**p, "beside": b} for p in points for b in others if p["beside"] != b]

    def neighbours(self, point: Mapping[str, object], far: bool = False) -> list[dict[str, object]]:
        """Points that differ in one decision, by one step (or any other choice of text).

        With ``far`` also by more: the whole line through ``point`` along each decision, or some
        points of it where it is long.
        """
        near, beyond = [], []
        for name, decision in self.space.decisions.items():
            steps = _steps(decision, point[name])
            near += [{**point, name: v} for v in steps]
            if far:
                line = [decision.at((k + 0.5) / _LINE) for k in range(_LINE)]
                if decision.size() is not None and len(decision.grid()) <= _LINE:
                    line = list(decision.grid())
                known = [point[name], *steps]
                beyond += [{**point, name: v} for v in dict.fromkeys(line) if v not in known]
        return near + beyond


def tune_space(
    trace: Trace,
    choices: Sequence[Choice],
    excluded: Mapping[str, str],
    search: Mapping[str, Decision],
    fixed: Mapping[str, object],
    options: EngineOptions,
    max_replicas: int,
) -> TuneSpace:
    """Put the space together.

    ``choices`` are the profiles to choose from, ``excluded`` those left out before, with the
    reason. Decisions of ``search`` replace the usual ones; ``fixed`` has by name the value of what
    is not to be searched, None for the profile's own; ``options`` hold for all, and what is set
    there is not searched.

    Raises
    ------
    ScenarioError
        For an unknown name, one that is given twice, values beyond the measured range, or when no
        profile is left.
    """
    for name in (*search, *fixed):
        _known(name)
    both = [n for n in search if n in fixed] + [
        n for n in (*search, *fixed) if n in options.to_dict()
    ]
    if both:
        raise ScenarioError(
            f"{both[0]} is to be searched and is given as well, or given twice; give it once"
        )
    left: dict[str, Choice] = {}
    gone = dict(excluded)
    for choice in choices:
        reason = _filtered(choice, search, fixed)
        if reason is None:
            left[choice.profile.id] = choice
        elif reason:
            gone[choice.profile.id] = reason
    if not left:
        raise ScenarioError(
            "no profile is left to choose from"
            + "".join(f"; {id_}: {reason}" for id_, reason in gone.items())
        )
    able = dict(left)
    decisions: dict[str, Decision] = {"profile": Choices(tuple(sorted(left)))}
    if "profile" in search or "profile" in fixed:
        decisions["profile"] = _profiles(left, search, fixed)
        left = {id_: left[id_] for id_ in decisions["profile"].grid() if isinstance(id_, str)}
    if "replicas" in search:
        decisions["replicas"] = search["replicas"]
        _whole_replicas(decisions["replicas"])
    elif fixed.get("replicas") is not None:
        decisions["replicas"] = Choices((fixed["replicas"],))  # type: ignore[arg-type]
        _whole_replicas(decisions["replicas"])
    else:
        decisions["replicas"] = _sizes(trace, left, options, max_replicas)
    decisions |= _beside(able, search, fixed, decisions["replicas"])
    left |= {str(id_): able[str(id_)] for id_ in _values(decisions.get("beside")) if id_}
    limits = largest_measured([c.profile for c in left.values()], options)
    for name in (*ENGINE, "router"):
        if name in search:
            check_measured(name, search[name], limits)
            decisions[name] = search[name]
        elif fixed.get(name) is not None:
            decisions[name] = Choices((fixed[name],))  # type: ignore[arg-type]
            check_measured(name, decisions[name], limits)
        elif name in SEARCHED and name not in fixed and name not in options.to_dict():
            decisions[name] = Choices(measured_values(name, SEARCHED[name], limits))
    for router in _values(decisions.get("router")):
        check_router(str(router))
    return TuneSpace(Space(decisions), left, gone)


def _beside(
    left: Mapping[str, Choice],
    search: Mapping[str, Decision],
    fixed: Mapping[str, object],
    replicas: Decision,
) -> dict[str, Decision]:
    """The second pool of a mixed fleet, where one is asked for: its profile and its servers.

    None among its profiles is a fleet of one pool.
    """
    fix = {n: Choices((v,)) for n, v in fixed.items() if v is not None}  # type: ignore[arg-type]
    given: dict[str, Decision] = {**fix, **search}
    if "beside" not in given:
        if "beside_replicas" in given:
            raise ScenarioError(
                "beside_replicas is given without beside, the profile of the second pool"
            )
        return {}
    for id_ in given["beside"].grid():
        if id_ is not None and id_ not in left:
            raise ScenarioError(
                f"beside {id_!r} is not among the profiles to choose from, {', '.join(left)}, or "
                "none"
            )
    sizes = given.get("beside_replicas", replicas)
    _whole_replicas(sizes, "beside_replicas")
    return {"beside": given["beside"], "beside_replicas": sizes}


def _known(name: str) -> None:
    refuse_queue_limits([name], "qsim tune")
    known = (*_FLEET, *FILTERS, *ENGINE)
    if name not in known:
        raise ScenarioError(f"decision {name!r} is unknown; {near_names(name, known)}")


def _filtered(
    choice: Choice, search: Mapping[str, Decision], fixed: Mapping[str, object]
) -> str | None:
    """None if the profile passes the filters; else "", since nobody asked for it."""
    identity = choice.profile.identity
    actual = {
        "gpu": identity.gpu,
        "method": identity.method,
        "tensor_parallel_size": identity.tensor_parallel_size,
        "kv_cache_dtype": "fp8" if identity.method.endswith("+kv-fp8") else "auto",
    }
    for name in FILTERS:
        wanted = _values(search.get(name))
        if name in fixed:
            wanted = [fixed[name]]
        if wanted and actual[name] not in wanted:
            return ""
    return None


def _profiles(
    left: Mapping[str, Choice], search: Mapping[str, Decision], fixed: Mapping[str, object]
) -> Decision:
    wanted = _values(search["profile"]) if "profile" in search else [fixed["profile"]]
    for id_ in wanted:
        if id_ not in left:
            raise ScenarioError(
                f"profile {id_!r} is not among those to choose from: {', '.join(left)}"
            )
    return Choices(tuple(str(id_) for id_ in wanted))


def _values(decision: Decision | None) -> list[object]:
    return [] if decision is None else list(decision.grid())


def _whole_replicas(decision: Decision, name: str = "replicas") -> None:
    low = decision.low if isinstance(decision, Range) else None
    values = [low] if low is not None else _values(decision)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ScenarioError(f"{name} is {decision}; must be whole numbers >= 1")


def _sizes(
    trace: Trace, choices: Mapping[str, Choice], options: EngineOptions, max_replicas: int
) -> Decision:
    """From what the best profile needs at full efficiency to twice what the worst one does."""
    loads = []
    for choice in choices.values():
        try:
            engine = options.resolve(choice.profile)
        except ScenarioError:
            continue
        loads.append(offered_load(trace, choice.profile, engine))
    if not loads:
        loads = [1.0]
    low = min(max(1, math.floor(min(loads))), max_replicas)
    return Range(low, min(max_replicas, max(low + 3, math.ceil(2 * max(loads)))))


def _spread(decision: Decision) -> list[object]:
    """The first value, one in the middle, and the last."""
    if isinstance(decision, Range) and (decision.log or not decision.whole):
        values: list[object] = [decision.low, decision.at(0.5), decision.high]
    else:
        values = list(decision.grid())
    return list(dict.fromkeys([values[0], values[len(values) // 2], values[-1]]))


def _nearest(decision: Decision, usual: object) -> object:
    """The value of ``decision`` that is nearest to ``usual``."""
    if isinstance(decision, Range) and isinstance(usual, int | float) and decision.step is None:
        near = min(max(usual, decision.low), decision.high)
        return int(near) if decision.whole else float(near)
    values = list(decision.grid()) if decision.size() is not None else [decision.at(0.5)]
    if usual in values:
        return usual
    if is_number(usual):
        numbers = [v for v in values if is_number(v)]
        if numbers:
            return min(numbers, key=lambda v: (abs(v - usual), v))
    return values[0]


def _steps(decision: Decision, value: object) -> list[object]:
    """The values next to ``value``; all others where there is no order."""
    if isinstance(decision, Range) and decision.size() is None:
        assert isinstance(value, int | float)
        if decision.log:
            around = [value / 2, value * 2]
        else:
            around = [value - (decision.high - decision.low) / 8,
                      value + (decision.high - decision.low) / 8]  # fmt: skip
        cut = [min(max(v, decision.low), decision.high) for v in around]
        return [v for v in (round(c) if decision.whole else c for c in cut) if v != value]
    values = list(decision.grid())
    if not all(is_number(v) for v in values):
        return [v for v in values if v != value]
    values.sort()
    i = values.index(value)  # type: ignore[arg-type]
    return [*values[max(0, i - 1) : i], *values[i + 1 : i + 2]]
