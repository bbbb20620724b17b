"""qsim: trace-driven simulation of quantized LLM serving, calibrated by measurements.

The public names are imported when they are first used, so ``import qsim`` costs next to nothing.

>>> import qsim
>>> sorted(set(qsim.__all__) & {"load_trace", "load_profile", "simulate", "plan"})
['load_profile', 'load_trace', 'plan', 'simulate']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qsim.errors import QsimError
    from qsim.optimize.capacity import plan
    from qsim.optimize.scheduling import schedule
    from qsim.optimize.sweep import sweep
    from qsim.optimize.tuning import tune
    from qsim.profile import Profile
    from qsim.profiles import list_profiles, load_profile
    from qsim.sim.api import simulate
    from qsim.sim.config import EngineOptions
    from qsim.sim.result import SimulationResult
    from qsim.sim.slo import Slo
    from qsim.traces import Trace, load_trace

_WHERE = {
    "EngineOptions": "qsim.sim.config",
    "Profile": "qsim.profile",
    "QsimError": "qsim.errors",
    "SimulationResult": "qsim.sim.result",
    "Slo": "qsim.sim.slo",
    "Trace": "qsim.traces",
    "list_profiles": "qsim.profiles",
    "load_profile": "qsim.profiles",
    "load_trace": "qsim.traces",
    "plan": "qsim.optimize.capacity",
    "schedule": "qsim.optimize.scheduling",
    "simulate": "qsim.sim.api",
    "sweep": "qsim.optimize.sweep",
    "tune": "qsim.optimize.tuning",
}

__all__ = [
    "EngineOptions",
    "Profile",
    "QsimError",
    "SimulationResult",
    "Slo",
    "Trace",
    "__version__",
    "list_profiles",
    "load_profile",
    "load_trace",
    "plan",
    "schedule",
    "simulate",
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
