"""A fleet that was simulated, as what can be started: ``qsim simulate --export``."""

from __future__ import annotations

from dataclasses import replace

from qsim.optimize.deploy.deployment import Pool, distinct
from qsim.optimize.deploy.export import Export, export_pools, parse_export
from qsim.scenario import Scenario
from qsim.sim.fleet.admission import resolve_fleet
from qsim.sim.run_scenario import fleet_of

__all__ = ["SIMULATED_EXPORTS", "export_simulated", "servers_of"]

SIMULATED_EXPORTS = ("kubernetes", "vllm")


def servers_of(scenario: Scenario) -> list[Pool]:
    """The fleet's pools with what starts them, and the autoscaler that was simulated.

    Raises
    ------
    ScenarioError, ProfileError
        As simulating them.
    """
    fleet = fleet_of(scenario)
    asked = fleet["pools"]
    setup = resolve_fleet(**fleet)
    found = []
    for given, pool in zip(asked, setup.pools, strict=True):
        settings = setup.autoscaler if pool.first is not None else None
        found.append(
            Pool.of(
                pool.profile,
                given.options,
                pool.asked,
                setup.router,
                startup_s=pool.lifecycle.start_s,
                weight=pool.weight if len(asked) > 1 else None,
                autoscaler=None if settings is None else replace(settings, pools=()),
            )
        )
    return distinct(found)


def export_simulated(scenario: Scenario, export: Export | str) -> str | None:
    """Write the commands or the manifests; returns the text if there is no path.

    Parameters
    ----------
    scenario : Scenario
        What was simulated.
    export : Export or str
        ``kubernetes`` or ``vllm``, with ``=PATH`` after it or not.

    Raises
    ------
    ScenarioError
        For another kind, or an autoscaler that no manifest holds.
    """
    export = parse_export(export, SIMULATED_EXPORTS) if isinstance(export, str) else export
    return export_pools(servers_of(scenario), export, autoscaler="none")
