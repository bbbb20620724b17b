"""A tuned fleet in a form that can be started, or simulated again."""

from __future__ import annotations

from qsim.errors import ScenarioError
from qsim.optimize.deploy.export import (
    Export,
    export_pools,
    export_scenario,
    parse_export,
    pools_scenario,
)
from qsim.optimize.search.study import Record
from qsim.optimize.tune.result import TuneResult
from qsim.scenario import Scenario

__all__ = ["export_trial", "trial_scenario"]


def export_trial(
    result: TuneResult,
    trial: Record,
    export: Export | str,
    scenario: Scenario | None = None,
) -> str | None:
    """Write the fleet of a trial; returns the text if there is no path.

    Parameters
    ----------
    export : Export or str
        ``vllm``, ``kubernetes`` or ``scenario``, with ``=PATH`` after it or not.
    scenario : Scenario, optional
        For ``scenario``: what the tuning was asked; it names the trace.

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
