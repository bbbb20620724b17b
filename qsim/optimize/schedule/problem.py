"""What a schedule is to achieve: traffic by window, prices of energy and rent, limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qsim.errors import ScenarioError
from qsim.optimize.economics.carbon import J_PER_KWH, CarbonSeries, GridIntensity
from qsim.optimize.schedule.tasks import BIN_S, RunOutcome
from qsim.quality.recovery import Recovery
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.results.slo import Slo
from qsim.traces.trace import Trace

OBJECTIVES = ("energy", "cost", "carbon")
UNITS = {"energy": "J", "cost": "USD", "carbon": "gCO2e"}


def parse_window(text: str | float) -> float:
    """Seconds of ``10min``, ``1h``, ``900s`` or a number of seconds.

    Raises
    ------
    ScenarioError
        If it is none of these, or not a whole number of minutes.
    """
    word = str(text).strip().lower()
    scale = 1.0
    for unit, seconds in (("min", 60.0), ("m", 60.0), ("h", 3600.0), ("s", 1.0)):
        if word.endswith(unit):
            word, scale = word.removesuffix(unit), seconds
            break
    try:
        value = float(word) * scale
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= BIN_S and value % BIN_S == 0):
        raise ScenarioError(
            f"window is {text!r}; must be a whole number of minutes, such as 10min or 1h"
        )
    return value


@dataclass(frozen=True)
class PoolChoice:
    """A pool that may take part: its servers, what is known of its answers, and its rent."""

    pool: ServerPool
    quality: Recovery | None
    usd_per_gpu_hour: float | None
    price_source: str = ""
    source: str | None = None
    #: what tells it from the other pools, see :func:`labelled`
    label: str = ""

    @property
    def name(self) -> str:
        """The profile's id."""
        return self.pool.profile.id

    @property
    def shown(self) -> str:
        """Its label, with ``~`` before it where the profile was not measured."""
        return f"~{self.label}" if self.pool.profile.transferred else self.label

    @property
    def low_pct(self) -> float:
        """The low end of its quality; 0 where it is not known."""
        return self.quality.low_pct if self.quality else 0.0

    @property
    def gpus(self) -> int:
        """GPUs of one server."""
        return self.pool.profile.identity.tensor_parallel_size


def labelled(choices: Sequence[PoolChoice]) -> list[PoolChoice]:
    """The pools with a label each: the method, and whatever else of its profile's id differs.

    Profiles of one id (from files) have their source or their number as well.
    """
    identities = [c.pool.profile.identity for c in choices]
    parts = [
        [i.gpu, i.model, i.method, f"tp{i.tensor_parallel_size}" * (i.tensor_parallel_size > 1)]
        for i in identities
    ]
    told = [k == 2 or len({p[k] for p in parts}) > 1 for k in range(4)]
    labels = ["/".join(w for w, say in zip(p, told, strict=True) if say and w) for p in parts]
    result = []
    for k, (choice, label) in enumerate(zip(choices, labels, strict=True)):
        if labels.count(label) > 1:
            sources = [c.source for c, other in zip(choices, labels, strict=True) if other == label]
            own = choice.source if sources.count(choice.source) == 1 else None
            label = f"{label} ({own or labels[: k + 1].count(label)})"
        result.append(replace(choice, label=label))
    return result


@dataclass(frozen=True)
class ScheduleProblem:
    """One trace to be served by a choice of pools."""

    #: its windows begin at time 0
    trace: Trace
    window_s: float
    #: to be met in every window, over the requests that arrive in it
    slos: tuple[Slo, ...]
    #: one of :data:`OBJECTIVES`
    objective: str
    grid: CarbonSeries | GridIntensity | None = None
    pue: float = 1.0
    #: percent; the low end of the mean over requests, as routed, must reach it
    min_quality: float | None = None
    #: the most GPUs at a time
    max_gpus: int | None = None
    #: so many GPUs are paid for and draw ``off_w`` each whether a server has them or not
    owned_gpus: int | None = None
    #: power of an owned GPU without a server
    off_w: float = 80.3
    too_long: str = "error"
    #: plan for so many times the traffic
    margin: float = 1.0
    #: let servers finish less than arrives
    allow_backlog: bool = False
    #: prompts are texts, and not token ids
    text_prompts: bool = False

    @property
    def windows(self) -> int:
        """How many there are."""
        return int(self.trace.arrival_s[-1] // self.window_s) + 1

    @property
    def end_s(self) -> float:
        """The end of the last window."""
        return self.windows * self.window_s

    def requests(self) -> npt.NDArray[np.int64]:
        """Requests by window of arrival."""
        at = (self.trace.arrival_s // self.window_s).astype(np.int64)
        return np.bincount(at, minlength=self.windows)

    def intensity(self, window: int) -> float:
        """Mean gCO2e per kWh in a window; 0 without a grid."""
        if self.grid is None:
            return 0.0
        return self.grid.mean(window * self.window_s, (window + 1) * self.window_s)

    def worth(self, window: int, energy_j: float, usd: float) -> float:
        """What the objective counts of energy and rent in a window."""
        if self.objective == "energy":
            return energy_j
        if self.objective == "cost":
            return usd
        return energy_j / J_PER_KWH * self.pue * self.intensity(window)

    def start_worth(self, choice: PoolChoice, window: int) -> float:
        """What the objective counts of one start before a window."""
        cycle, profile = choice.pool.lifecycle, choice.pool.profile
        energy = cycle.start_energy_j(profile.power.idle_w)
        energy += cycle.stop_s * profile.power.idle_w
        if self.owned_gpus is not None:
            energy -= (cycle.start_s + cycle.stop_s) * self.off_w * choice.gpus
        price = choice.usd_per_gpu_hour or 0.0
        rent = 0.0 if self.owned_gpus is not None else price * choice.gpus
        usd = rent * (cycle.start_s + cycle.stop_s) / 3600
        return self.worth(window, energy, usd)

    def rent_usd(self, choices: Sequence[PoolChoice], counts: Sequence[int]) -> float:
        """Rent of a fleet for one window; 0 for owned GPUs, which are paid for anyway."""
        if self.owned_gpus is not None:
            return 0.0
        hours = self.window_s / 3600
        return sum(
            n * c.gpus * (c.usd_per_gpu_hour or 0.0) * hours
            for c, n in zip(choices, counts, strict=True)
        )

    def totals(self, choices: Sequence[PoolChoice], run: RunOutcome) -> dict[str, float | None]:
        """Energy, rent, carbon and GPU-hours of a run, what owned GPUs draw included."""
        gpu_s = sum(
            c.gpus * sum(v for k, v in s.items() if k != "off")
            for c, s in zip(choices, run.state_s, strict=True)
        )
        hours, off_j = gpu_s / 3600, 0.0
        usd: float | None = 0.0
        if self.owned_gpus is not None:
            off_j = max(0.0, self.owned_gpus * run.end_s - gpu_s) * self.off_w
            hours = self.owned_gpus * run.end_s / 3600
            price = choices[0].usd_per_gpu_hour
            usd = None if price is None else hours * price
        else:
            for c, s in zip(choices, run.state_s, strict=True):
                server_s = sum(v for k, v in s.items() if k != "off")
                if server_s and c.usd_per_gpu_hour is None:
                    usd = None
                if usd is not None:
                    usd += server_s * c.gpus / 3600 * (c.usd_per_gpu_hour or 0.0)
        carbon = None
        if self.grid is not None:
            each = off_j / self.windows
            carbon = sum(
                (e + each) / J_PER_KWH * self.pue * self.intensity(t)
                for t, e in enumerate(run.window_energy_j)
            )
        return {
            "energy_j": run.energy_j + off_j,
            "cost_usd": usd,
            "gco2e": carbon,
            "gpu_hours": hours,
        }

    def value(self, choices: Sequence[PoolChoice], run: RunOutcome) -> float:
        """What the objective counts of a run.

        Raises
        ------
        ScenarioError
            If a price is not known.
        """
        key = {"energy": "energy_j", "cost": "cost_usd", "carbon": "gco2e"}[self.objective]
        value = self.totals(choices, run)[key]
        if value is None:
            raise ScenarioError(f"the objective is {self.objective}, but a price or grid lacks")
        return value
