"""qsim: trace-driven simulation of quantized LLM serving, calibrated by measurements.

The public names are imported when they are first used, so ``import qsim`` costs next to nothing.

>>> import qsim
>>> sorted(set(qsim.__all__) & {"load_trace", "load_profile", "simulate", "plan"})
['load_profile', 'load_trace', 'plan', 'simulate']
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

TYPE_CHECKING = False  # checkers know the name; typing need not be imported for it
if TYPE_CHECKING:
    from typing import Any

    from qsim.errors import QsimError as QsimError
    from qsim.optimize.capacity.capacity import capacity as capacity
    from qsim.optimize.capacity.curve import curve as curve
    from qsim.optimize.plan.planning import plan as plan
    from qsim.optimize.schedule.scheduling import schedule as schedule
    from qsim.optimize.study.studying import study as study
    from qsim.optimize.sweep.sweeping import sweep as sweep
    from qsim.optimize.tune.tuning import tune as tune
    from qsim.profiles.lookup import list_profiles as list_profiles
    from qsim.profiles.lookup import load_profile as load_profile
    from qsim.profiles.schema import Profile as Profile
    from qsim.scenario import Scenario as Scenario
    from qsim.sim.fleet.autoscaling import Autoscaler as Autoscaler
    from qsim.sim.fleet.autoscaling import ScalingPolicy as ScalingPolicy
    from qsim.sim.fleet.autoscaling import ScalingRules as ScalingRules
    from qsim.sim.fleet.autoscaling import Signal as Signal
    from qsim.sim.fleet.failures import Failure as Failure
    from qsim.sim.fleet.failures import Failures as Failures
    from qsim.sim.fleet.lifecycle import Lifecycle as Lifecycle
    from qsim.sim.fleet.pool import Pool as Pool
    from qsim.sim.results.result import SimulationResult as SimulationResult
    from qsim.sim.results.slo import Slo as Slo
    from qsim.sim.run_scenario import simulate as simulate
    from qsim.sim.scheduler.config import EngineOptions as EngineOptions
    from qsim.traces import Trace as Trace
    from qsim.traces import load_trace as load_trace

_WHERE = {
    "Autoscaler": "qsim.sim.fleet.autoscaling",
    "EngineOptions": "qsim.sim.scheduler.config",
    "Failure": "qsim.sim.fleet.failures",
    "Failures": "qsim.sim.fleet.failures",
    "Lifecycle": "qsim.sim.fleet.lifecycle",
    "Pool": "qsim.sim.fleet.pool",
    "Profile": "qsim.profiles.schema",
    "QsimError": "qsim.errors",
    "ScalingPolicy": "qsim.sim.fleet.autoscaling",
    "ScalingRules": "qsim.sim.fleet.autoscaling",
    "Scenario": "qsim.scenario",
    "Signal": "qsim.sim.fleet.autoscaling",
    "SimulationResult": "qsim.sim.results.result",
    "Slo": "qsim.sim.results.slo",
    "Trace": "qsim.traces",
    "capacity": "qsim.optimize.capacity.capacity",
    "curve": "qsim.optimize.capacity.curve",
    "list_profiles": "qsim.profiles.lookup",
    "load_profile": "qsim.profiles.lookup",
    "load_trace": "qsim.traces",
    "plan": "qsim.optimize.plan.planning",
    "schedule": "qsim.optimize.schedule.scheduling",
    "simulate": "qsim.sim.run_scenario",
    "study": "qsim.optimize.study.studying",
    "sweep": "qsim.optimize.sweep.sweeping",
    "tune": "qsim.optimize.tune.tuning",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'qsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
