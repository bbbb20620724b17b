"""The ``qsim simulate`` command that gives the figures of a planned fleet again."""

from __future__ import annotations

import json
import shlex

from qsim.optimize.deploy.deployment import pools_of
from qsim.optimize.plan.candidate import Candidate
from qsim.optimize.plan.result import Plan
from qsim.scenario import Scenario
from qsim.traces.parts import is_large

__all__ = ["simulate_command"]


def simulate_command(plan: Plan, candidate: Candidate, asked: Scenario) -> str:
    """One line for a shell; "" where the trace or a profile was not read by name.

    Parameters
    ----------
    asked : Scenario
        What the plan was asked; it names the trace.
    """
    trace = asked.traffic.trace
    sources = [blank.source for blank in candidate.blanks]
    if not isinstance(trace, str) or any(s is None or "," in s for s in sources):
        return ""
    words = ["qsim", "simulate", trace]
    given = {k: v for k, v in asked.traffic.given().items() if k != "trace"}
    if is_large(trace):
        given["stream"] = False  # taken in parts its percentiles would be a little off
    for name, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", f"traffic.{name}={text}"]
    pools = pools_of(candidate, plan.router_of(candidate))
    for pool, source in zip(pools, sources, strict=True):
        parts = [f"profile={source}", f"replicas={pool.replicas}"]
        if pool.weight is not None and pool.weight != 1:
            parts.append(f"weight={pool.weight!r}")
        for name, value in pool.options.to_dict().items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            parts.append(f"{name.replace('_', '-')}={text}")
        words += ["--pool", ",".join(parts)]
    words += ["--router", pools[0].router, "--seed", str(asked.seed)]
    words += [w for s in plan.slos for w in ("--slo", str(s))]
    return shlex.join(words)
