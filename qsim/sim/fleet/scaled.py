"""What an autoscaler did in a run, taken from the fleet."""

from __future__ import annotations

from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import Setup
from qsim.sim.fleet.fleet import Fleet
from qsim.sim.fleet.lifecycle import OFF, STARTING, STATES
from qsim.sim.results.scaling import (
    PoolScaling,
    Scaling,
    decisions_of,
    none_on_s,
    servers_over_time,
)

__all__ = ["scaling_of"]


def scaling_of(setup: Setup, fleet: Fleet, begin_ps: int) -> Scaling | None:
    """What became of the servers of a run that began at ``begin_ps``; None without autoscaler."""
    if setup.autoscaler is None:
        return None
    lives, origin_s = fleet.lives, fleet.origin_s
    begin_s, end_s = begin_ps / PS_PER_S, fleet.end_ps / PS_PER_S
    changes = [
        (t, pool, on, starting, draining)
        for t, pool, on, starting, draining, _ in lives.changes
        if t <= end_s
    ]
    pools = []
    for k, pool in enumerate(setup.pools):
        servers = [s for s in lives.servers if s.pool == k]
        gpus = pool.profile.identity.tensor_parallel_size
        state_s = [sum(s.state_ps[i] for s in servers) / PS_PER_S for i in range(len(STATES))]
        billed_s = sum(t for i, t in enumerate(state_s) if pool.lifecycle.billed(i))
        least, mean, most = servers_over_time(changes, k, begin_s, end_s)
        pools.append(
            PoolScaling(
                pool.name,
                least,
                mean,
                most,
                *decisions_of(lives.decisions, k),
                starts=sum(s.starts for s in servers),
                server_hours=(sum(state_s) - state_s[OFF]) / 3600,
                starting_hours=state_s[STARTING] / 3600,
                gpu_hours=billed_s * gpus / 3600,
                energy_j=float(sum(s.energy_j for s in servers)),
                starting_energy_j=float(sum(s.state_j[STARTING] for s in servers)),
            )
        )
    return Scaling(
        tuple(pools),
        fleet.held,
        fleet.held_ps / PS_PER_S / fleet.held if fleet.held else 0.0,
        fleet.longest_held_ps / PS_PER_S,
        none_on_s(changes, begin_s, end_s),
        tuple((origin_s + c[0], *c[1:]) for c in _last_of_each_time(changes)),
    )


def _last_of_each_time(
    changes: list[tuple[float, int, int, int, int]],
) -> list[tuple[float, int, int, int, int]]:
    """Changes of one pool at one time as one."""
    found: dict[tuple[float, int], tuple[float, int, int, int, int]] = {}
    for change in changes:
        found[change[:2]] = change
    return list(found.values())
