"""What routers may know of a fleet, taken from its replicas and from its requests' columns."""

from __future__ import annotations

from collections.abc import Sequence

from qsim.sim.engine.replica import Replica
from qsim.sim.engine.timing import Timing
from qsim.sim.fleet.columns import Columns
from qsim.sim.fleet.pool import ResolvedPool
from qsim.sim.fleet.routers.server_speed import ServerSpeed, speeds_of
from qsim.sim.scheduler.request import Request


class View:
    """The :class:`qsim.sim.fleet.routers.base.FleetView` of a fleet.

    Timings are by pool; ``pool_of`` and ``replicas`` by server, of which the fleet replaces those
    that begin again.
    """

    def __init__(
        self,
        pools: Sequence[ResolvedPool],
        timings: list[Timing],
        pool_of: list[int],
        columns: Columns,
        replicas: list[Replica],
    ) -> None:
        self._pools = pools
        self._timings = timings
        self._pool_of = pool_of
        self._columns = columns
        self._replicas = replicas
        #: whether the engines lag behind the present, as that of a single server may on which
        #: nothing depends: then it is not asked what it has cached
        self.lags = False
        #: by server; kept by the fleet
        self.outstanding_requests = [0] * len(pool_of)
        self.outstanding_tokens = [0] * len(pool_of)
        #: when somebody last looked: what a replica reports while it goes on to there comes then at
        #: the earliest
        self.now_ps = 0

    def queue_lengths(self) -> list[tuple[int, int]]:
        now = self.now_ps
        return [(r.num_unscheduled(now), r.scheduler.num_running) for r in self._replicas]

    def kv_usage(self) -> list[float]:
        now = self.now_ps
        return [r.kv_usage(now) for r in self._replicas]

    def prefix_ids(self, request: int) -> list[int]:
        columns = self._columns
        if not columns.has_ids:
            return []
        ids, tokens, _ = columns.ids_of(request)
        return ids[: -(-columns.prompt[request] // tokens)]  # not those of its answer

    def prefix_block_tokens(self, request: int) -> int:
        columns = self._columns
        return columns.ids_of(request)[1] if columns.has_ids else 1

    def cached_tokens(self, request: int, now_ps: int) -> list[int]:
        if self.lags:
            return [0]
        self.now_ps = now_ps
        columns, replicas = self._columns, self._replicas
        if not columns.has_ids:
            for replica in replicas:
                replica.catch_up(now_ps)
            return [0] * len(replicas)
        prompt, output = columns.prompt[request], columns.output[request]
        asked = [
            Request(request, prompt, output, block_ids=columns.block_ids(request, pool.config))
            for pool in self._pools
        ]
        return [
            r.cached_tokens(asked[k], now_ps) for r, k in zip(replicas, self._pool_of, strict=True)
        ]

    def session_of(self, request: int) -> int:
        return self._columns.session_of(request)

    def length_of(self, request: int) -> tuple[int, int]:
        return self._columns.prompt[request], self._columns.output[request]

    def estimate(self) -> list[ServerSpeed]:
        speeds = speeds_of(self._pools, self._timings)
        return [speeds[k] for k in self._pool_of]
