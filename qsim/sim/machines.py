"""What a fleet would do on other machines: simulations under draws of what is known of them.

A profile was measured on one machine. The range of a figure is that of re-simulations whose
profiles are multiplied by factors drawn from the known spread (:mod:`qsim.profiles.spread`); of an
adapted profile from the intervals that it states. All servers of a pool are on machines alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.profiles.factors import FACTORS, Factors, apply
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Prior, shipped_spread
from qsim.sim.fleet.pool import Pool
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace

__all__ = ["FIGURES", "machine_ranges"]

FIGURES = (
    *(f"{s}_{m}_ms" for m in ("ttft", "tpot", "itl", "e2el")
      for s in ("mean", "median", "p90", "p99")),
    "energy_j",
)  # fmt: skip
#: an interval of 90% is so many standard deviations wide
_WIDTH = 2 * 1.645
_LEAST_SD = 1e-4


def machine_ranges(
    trace: Trace, pools: Sequence[Pool], draws: int, seed: int = 0, **fleet: Any
) -> dict[str, tuple[float, float]]:
    """90% ranges of means, percentiles and energy over machines.

    Parameters
    ----------
    draws : int
        Machines for each pool, each a simulation of its own.
    seed : int
        Of the draws, and of the simulations.
    **fleet
        Other arguments of :func:`qsim.sim.simulate.simulate`.

    Returns
    -------
    dict
        By figure of the summary: the 5th and 95th percentile over the draws.
    """
    profiles = [
        p.profile
        if isinstance(p.profile, Profile)
        else load_profile(p.profile, p.options.vllm_version)
        for p in pools
    ]
    rng = np.random.default_rng(seed)
    logs = [_machines(p).draw(draws, rng) for p in profiles]
    seen: list[Mapping[str, Any]] = []
    for i in range(draws):
        drawn = [
            replace(pool, profile=apply(profile, Factors.of(np.exp(x[i]))))
            for pool, profile, x in zip(pools, profiles, logs, strict=True)
        ]
        seen.append(simulate(trace, pools=drawn, seed=seed, **fleet).summary(()))
    ranges = {}
    for name in FIGURES:
        values = [s[name] for s in seen if isinstance(s.get(name), int | float)]
        if len(values) == draws:
            low, high = np.percentile(values, [5, 95])
            ranges[name] = (float(low), float(high))
    return ranges


def _machines(profile: Profile) -> Prior:
    """The spread around a profile; of an adapted one what it states of its factors."""
    a = profile.adapted
    if a is None:
        return shipped_spread().prior(profile)
    sd: list[float] = []
    for name in FACTORS:
        _, low, high = a.factors.get(name, [1.0, 1.0, 1.0])
        sd.append(max(float(np.log(high / low)) / _WIDTH, _LEAST_SD) if low < high else _LEAST_SD)
    variance: npt.NDArray[np.float64] = np.array(sd) ** 2
    return Prior(np.zeros(len(FACTORS)), np.diag(variance))
