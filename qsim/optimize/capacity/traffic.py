"""The traffic that layouts and fleets are given, faster or slower."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qsim.errors import ScenarioError
from qsim.optimize.capacity.layout import DEFAULT_TRAFFIC
from qsim.optimize.capacity.rate_search import base_rate_rps, first_speed, first_users
from qsim.optimize.search.fleet_task import FleetTask
from qsim.scenario import Scenario
from qsim.scenario.resolve import load_traffic
from qsim.traces import load_trace
from qsim.traces.load import preset_names
from qsim.traces.trace import Trace

Tell = Callable[[str, Mapping[str, Any]], None]

#: a preset of no given length is drawn to last about so long at the highest rate that is expected,
#: within these numbers of requests
_SECONDS = 120.0
_FEWEST, _MOST = 2_000, 8_000
#: the same where users send it: so many requests for each of those that are expected; more where
#: they do not think, because then all begin at once
_EACH_USER, _EACH_CLIENT, _MOST_OF_USERS = 12, 40, 24_000


def asked_traffic(
    scenario: Scenario, tell: Tell | None = None
) -> tuple[Trace | str, tuple[str, ...]]:
    """The trace, or a preset that is yet to be drawn; and its words on the command line.

    ``tell`` takes the name of each trace and what is known of how it was read.

    Raises
    ------
    ScenarioError, TraceError
        If it cannot be read, or the scenario says how fast it is.
    """
    traffic = scenario.traffic
    for name, value in (("speed", traffic.speed), ("growth", traffic.growth)):
        if value not in (None, 1.0):
            raise ScenarioError(f"--{name} is what is searched here; leave it out")
    named = DEFAULT_TRAFFIC if traffic.trace is None else traffic.trace
    shaped: dict[str, Any] = {
        k: v
        for k, v in traffic.given().items()
        if k not in _NO_SHAPE and v not in (None, False, [], "")
    }
    if isinstance(named, str) and named in preset_names() and not shaped:
        return named, ()
    section = traffic.model_copy(update={"trace": named})
    trace = load_traffic(section, scenario.seed, tell)
    if not isinstance(named, str):
        return trace, ()
    words = [named]
    for name, value in shaped.items():
        if name == "peak_hour":
            words += ["--set", "traffic.peak_hour=true"]
            continue
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        words += [flag] if value is True else [w for v in values for w in (flag, str(v))]
    return trace, tuple(words)


#: what does not shape the trace, or is said otherwise
_NO_SHAPE = {"trace", "speed", "growth", "too_long", "stream", "think_time_s", "text_prompts"}


def sized_traffic(
    preset: str,
    seed: int,
    tasks: Callable[[Trace], Sequence[FleetTask]],
    think_time_s: float | None = None,
) -> tuple[Trace, tuple[str, ...]]:
    """Draw a preset of no given length as long as the fleets call for.

    ``tasks`` gives the fleets' tasks with a trace; ``think_time_s`` is that of users that send it.
    Beside the trace stands TRACE for the command line.
    """
    drawn = load_trace(f"{preset}:requests={_FEWEST}", seed=seed)
    if think_time_s is None:
        fastest = max((first_speed(t) for t in tasks(drawn)), default=1.0)
        wanted, most = fastest * base_rate_rps(drawn) * _SECONDS, _MOST
    else:
        users = max((first_users(t, think_time_s) for t in tasks(drawn)), default=1)
        wanted, most = (_EACH_USER if think_time_s else _EACH_CLIENT) * users, _MOST_OF_USERS
    count = min(max(math.ceil(wanted / 100) * 100, _FEWEST), most)
    text = f"{preset}:requests={count}"
    return load_trace(text, seed=seed), (text,)
