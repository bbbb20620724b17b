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

    from qsim.errors import QsimError
    from qsim.optimize.capacity.capacity import capacity
    from qsim.optimize.capacity.curve import curve
    from qsim.optimize.plan.planning import plan
    from qsim.optimize.schedule.scheduling import schedule
    from qsim.optimize.study.studying import study
    from qsim.optimize.sweep.sweeping import sweep
    from qsim.optimize.tune.tuning import tune
    from qsim.profiles.lookup import list_profiles, load_profile
    from qsim.profiles.schema import Profile
    from qsim.scenario import Scenario
    from qsim.sim.fleet.autoscaling import Autoscaler, ScalingPolicy, ScalingRules, Signal
    from qsim.sim.fleet.failures import Failure, Failures
    from qsim.sim.fleet.lifecycle import Lifecycle
    from qsim.sim.fleet.pool import Pool
    from qsim.sim.results.result import SimulationResult
    from qsim.sim.results.slo import Slo
    from qsim.sim.run_scenario import simulate
    from qsim.sim.scheduler.config import EngineOptions
    from qsim.traces import Trace, load_trace

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

__all__ = [
    "Autoscaler",
    "EngineOptions",
    "Failure",
    "Failures",
    "Lifecycle",
    "Pool",
    "Profile",
    "QsimError",
    "ScalingPolicy",
    "ScalingRules",
    "Scenario",
    "Signal",
    "SimulationResult",
    "Slo",
    "Trace",
    "__version__",
    "capacity",
    "curve",
    "list_profiles",
    "load_profile",
    "load_trace",
    "plan",
    "schedule",
    "simulate",
    "study",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'qsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
