"""A tuned fleet in a form that can be started, or simulated again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsim.documents import to_yaml
from qsim.errors import ScenarioError
from qsim.files import write_text
from qsim.optimize.deploy.export import Export, export_pools, parse_export, pool_scenario
from qsim.optimize.search.study import Record
from qsim.optimize.tune.result import TuneResult
from qsim.sim.results.slo import Slo

__all__ = ["export_trial", "trial_scenario"]


def export_trial(
    result: TuneResult,
    trial: Record,
    export: Export | str,
    trace_options: Mapping[str, Any] | None = None,
    *,
    slos: Sequence[Slo | str] = (),
    autoscaler: str = "hpa",
) -> str | None:
    """Write the fleet of a trial; returns the text if there is no path.

    Parameters
    ----------
    export : Export or str
        ``vllm``, ``kubernetes`` or ``scenario``, with ``=PATH`` after it or not.
    trace_options : mapping, optional
        For ``scenario``: how ``qsim simulate`` reads the same trace.

    Raises
    ------
    ScenarioError
        As :func:`qsim.optimize.deploy.export.export_pools`; for a scenario if the trace or the
        profile cannot be said in one.
    """
    export = parse_export(export) if isinstance(export, str) else export
    if export.kind != "scenario":
        return export_pools(result.pool(trial), export, autoscaler=autoscaler)
    scenario = trial_scenario(result, trial, trace_options or {}, slos)
    text = "# for qsim simulate --scenario\n" + to_yaml(scenario)
    if export.path is None:
        return text
    write_text(export.path, text)
    return None


def trial_scenario(
    result: TuneResult,
    trial: Record,
    trace_options: Mapping[str, Any],
    slos: Sequence[Slo | str] = (),
) -> dict[str, Any]:
    """The scenario of ``qsim simulate`` that gives the trial's figures again.

    Raises
    ------
    ScenarioError
        If the trace was not read from a file or preset, was cut to its busiest hour, or sped up
        twice; or the profile was not read from a file.
    """
    shaped = result.trace["forecast"]
    if "trace" not in trace_options or shaped.get("peak_hour_start_s") is not None:
        raise ScenarioError(
            "a scenario names the trace as qsim simulate reads it; this one was cut to its busiest "
            "hour or not read by name: write it with qsim traces convert and tune for that file"
        )
    source = result.choices[str(trial.params["profile"])].source
    if source is None:
        raise ScenarioError(
            f"{trial.params['profile']} was not read from a file; save it and give its path"
        )
    growth = float(shaped.get("growth", 1.0))
    said = {k: v for k, v in trace_options.items() if v not in (None, ()) and k != "seed"}
    scenario = {k: list(v) if isinstance(v, tuple) else v for k, v in said.items()}
    if growth != 1:
        if scenario.get("speed") not in (None, 1.0):
            raise ScenarioError("--growth and --speed together cannot be said in a scenario")
        scenario["speed"] = growth
    return pool_scenario(result.pool(trial), scenario, source, slos, result.settings)
