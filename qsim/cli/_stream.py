"""``qsim simulate`` of a trace that is taken part by part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qsim.cli._outputs import note, tell_reading
from qsim.cli._progress import progress_bar
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.cli._outputs import Outputs
    from qsim.scenario import Scenario
    from qsim.scenario.sections import Traffic
    from qsim.sim.results.requests import Columns
    from qsim.sim.simulate_stream import StreamResult

__all__ = ["run_streamed", "wants_stream"]

#: options that need every request or step at the end, by parameter
_WHOLE = {"report_path": "--report", "steps_path": "--steps", "timeline_path": "--timeline"}


def wants_stream(given: Mapping[str, Any], traffic: Traffic) -> bool:
    """Whether to take the trace part by part: when asked to, or when it is large.

    A ScenarioError if it is asked for together with an option that needs the whole run.
    """
    whole = [option for name, option in _WHOLE.items() if given[name]]
    whole += (
        ["--merge"] * bool(traffic.merge)
        + ["--sort"] * traffic.sort
        + ["--peak-hour (traffic.peak_hour)"] * traffic.peak_hour
    )
    if not isinstance(traffic.trace, str):
        return False
    if traffic.stream is None:
        from qsim.traces.parts import is_large

        return not whole and is_large(traffic.trace)
    if traffic.stream and whole:
        help_ = ": sort the file first" if whole[-1] == "--sort" else ""
        raise ScenarioError(
            f"--stream and {whole[-1]} are both given; {whole[-1]} needs the whole run in "
            f"memory{help_}"
        )
    return traffic.stream


def run_streamed(
    given: Mapping[str, Any], scenario: Scenario, out: Outputs
) -> tuple[StreamResult, str, int]:
    """Simulate, and write the requests file on the way; also the trace's name and length."""
    from qsim.sim.results.histogram import RELATIVE_ERROR
    from qsim.sim.results.requests import request_writer
    from qsim.sim.run_scenario import fleet_of
    from qsim.sim.simulate_stream import simulate_stream
    from qsim.traces.parts import open_parts

    traffic = scenario.traffic
    trace = open_parts(
        str(traffic.trace), format=traffic.format, seed=scenario.seed, columns=traffic.columns
    )
    shape = asdict(traffic.reshaping())
    parts = trace.shaped(shape.pop("start"), shape.pop("end"), seed=scenario.seed, **shape)
    if traffic.growth != 1:
        parts = parts.shaped(speed=traffic.growth)
    begin_s = time.monotonic()
    failure: OSError | None = None
    result: StreamResult | None = None
    try:
        with ExitStack() as stack:
            update = stack.enter_context(progress_bar("simulate", given["progress"]))
            write = None
            if given["requests_path"]:
                write = stack.enter_context(request_writer(given["requests_path"]))

            def rows(columns: Columns) -> None:
                nonlocal failure
                if write is not None and failure is None:
                    try:
                        write(columns)
                    except OSError as e:  # a full disk, say: the figures are not to be lost
                        failure = e

            def progress(requests: int) -> None:
                if update is not None:
                    rate = requests / max(1e-9, time.monotonic() - begin_s)
                    update(parts.share(requests), f"{requests:,} requests, {rate:,.0f}/s")

            result = simulate_stream(
                parts,
                **fleet_of(scenario),
                slos=scenario.limits(),
                rows=None if write is None else rows,
                progress=progress,
            )
            if failure is not None:
                raise failure  # so that no half of a file is left
    except OSError as e:
        if result is None:
            raise
        out.failure("--requests", e)
    tell_reading(trace.name, trace.meta)
    asked = "" if traffic.stream else " because it is large (--no-stream holds it in memory)"
    note(
        f"{trace.name} was streamed{asked}: percentiles are within {RELATIVE_ERROR:.4%} of the "
        "exact ones"
    )
    return result, trace.name, result.scenario["requests"]
