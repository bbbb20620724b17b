"""The requests that are in a fleet, column by column, and the parts of the trace they came in."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import IntArray
from qsim.profiles.schema import FrontEnd
from qsim.sim.engine.clock import arrivals_ps
from qsim.sim.engine.frontend import client_times, receive_ps
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.results.finished import Finished
from qsim.sim.scheduler.block_ids import prompt_block_ids
from qsim.sim.scheduler.config import EngineConfig
from qsim.traces.trace import HashIds, Trace


class Columns:
    """One place a request; the trace's parts lie in stretches of places, in order of arrival.

    The columns hold the parts that have unfinished requests, so that memory does not grow with the
    trace.

    Parameters
    ----------
    frontends : list of FrontEnd
        By pool.
    pool_of : list of int
        By server.
    origin_s : float
        The trace's time at which the clock of the run is 0.
    timeout_s : float, optional
        How long a client waits whose request does not say it itself.
    """

    def __init__(
        self,
        frontends: list[FrontEnd],
        pool_of: list[int],
        origin_s: float,
        timeout_s: float | None,
    ) -> None:
        self._frontends = frontends
        self._pool_of = np.array(pool_of, np.int64)
        self._origin_s = origin_s
        self._timeout_s = timeout_s
        self.arrival_ps = array("q")
        self.prompt, self.output = array("q"), array("q")
        self.priority, self.timeout_ps = array("q"), array("q")  # 0: waits as long as it takes
        # how long each front end takes to hand on each request, by pool
        self.receive_ps = [array("q") for _ in frontends]
        # the server that has or had it; below 0 how it ended without an answer
        self.server = array("q")
        self.cached_tokens, self.preemptions = array("q"), array("q")
        # the engine's time of the first and the last token (0: not yet), the rows of their steps,
        # and how much the API server's process was behind at the last
        self.first_ps, self.first_rows = array("q"), array("q")
        self.last_ps, self.last_rows, self.late_ps = array("q"), array("q"), array("q")
        # the engine's time of each request's latest token, and entries of qsim.sim.results.itl.Gaps
        self.emitted_ps = array("q")
        # parts that may have unfinished requests: their places, how many there is room for, their
        # prefix ids and sessions
        self._parts: deque[tuple[range, int, HashIds | None, IntArray | None]] = deque()
        self._free: list[tuple[int, int]] = []  # beginning and size of what may be used again
        self.has_ids = False  # whether the newest part has prefix ids

    def _all(self) -> tuple[array[int], ...]:
        return (
            self.arrival_ps, self.prompt, self.output, self.priority, self.timeout_ps, self.server,
            self.cached_tokens, self.preemptions, self.first_ps, self.first_rows, self.last_ps,
            self.last_rows, self.late_ps, self.emitted_ps, *self.receive_ps,
        )  # fmt: skip

    def take(self, trace: Trace, output_tokens: Sequence[int]) -> range:
        """Give the requests of a part their places."""
        n = len(trace)
        room = next((r for r in self._free if r[1] >= n), None)
        if room is None:
            room = len(self.arrival_ps), n
            for column in self._all():
                column.frombytes(bytes(8 * n))
        else:
            self._free.remove(room)
        begin, size = room
        part = slice(begin, begin + n)
        self.arrival_ps[part] = arrivals_ps(trace.name, trace.arrival_s, self._origin_s)
        self.prompt[part] = _integers(trace.prompt_tokens)
        self.output[part] = array("q", output_tokens)
        for column, frontend in zip(self.receive_ps, self._frontends, strict=True):
            column[part] = _integers(receive_ps(frontend, trace.prompt_tokens))
        nothing = array("q", bytes(8 * n))
        self.priority[part] = nothing if trace.priority is None else _integers(trace.priority)
        waits = trace.timeout_s is not None or self._timeout_s is not None
        self.timeout_ps[part] = _integers(self._timeouts_ps(trace)) if waits else nothing
        self.first_ps[part] = self.last_ps[part] = nothing
        self.emitted_ps[part] = array("q", [-1]) * n
        places = range(begin, begin + n)
        self.has_ids = trace.hash_ids is not None
        self._parts.append((places, size, trace.hash_ids, trace.sessions()))
        return places

    def _timeouts_ps(self, trace: Trace) -> npt.NDArray[Any]:
        usual = np.inf if self._timeout_s is None else self._timeout_s
        waits_s = np.full(len(trace), usual)
        if trace.timeout_s is not None:
            waits_s = np.where(np.isfinite(trace.timeout_s), trace.timeout_s, waits_s)
        waits_s = np.where(waits_s < _LONG_S, waits_s, 0.0)
        return np.asarray(np.rint(waits_s * PS_PER_S))

    def ids_of(self, i: int) -> tuple[list[int], int, int]:
        """A request's prefix ids, tokens that each is for, and up to which token they go."""
        for places, _, ids, _ in reversed(self._parts):
            if places.start <= i < places.stop:
                if ids is None:
                    break
                found: list[int] = ids[i - places.start].tolist()
                if ids.tokens is None:
                    return found, ids.block_tokens, self.prompt[i]
                return found, ids.block_tokens, int(ids.tokens[i - places.start])
        return [], 1, 0

    def block_ids(self, i: int, config: EngineConfig) -> Sequence[int]:
        """The ids of a request's KV blocks at a server; none that it would not keep.

        Raises
        ------
        ScenarioError
            If a prefix id does not cover whole blocks of the server.
        """
        if not config.enable_prefix_caching:
            return ()
        ids, tokens, known = self.ids_of(i)
        most = self.prompt[i] + self.output[i]
        return prompt_block_ids(ids, tokens, config.block_size, known if known < most else most)

    def session_of(self, i: int) -> int:
        """The session that a request is a turn of; -1: none."""
        for places, _, _, sessions in reversed(self._parts):
            if places.start <= i < places.stop:
                return -1 if sessions is None else int(sessions[i - places.start])
        return -1

    def has_finished(self, but: set[int]) -> bool:
        """Whether all requests of the first part have ended, and none is among ``but``."""
        if not self._parts:
            return False
        places = self._parts[0][0]
        if 0 in self.last_ps[places.start : places.stop]:
            return False
        return not any(places.start <= i < places.stop for i in but)

    @property
    def empty(self) -> bool:
        """Whether no part is here."""
        return not self._parts

    def let_go(self) -> Finished:
        """Free the places of the first part, and hand out its requests.

        Their times are when the client has the first and the last token.
        """
        places, size, _, _ = self._parts.popleft()
        self._free.append((places.start, size))

        def column(values: array[int]) -> IntArray:
            return np.frombuffer(values, np.int64)[places.start : places.stop].copy()

        arrival_ps, server = column(self.arrival_ps), column(self.server)
        engine = (
            column(self.prompt), column(self.output), column(self.first_ps),
            column(self.first_rows), column(self.last_ps), column(self.last_rows),
            column(self.late_ps),
        )  # fmt: skip
        first_token_ps, last_token_ps = client_times(self._frontends[0], *engine)
        if len(self._frontends) > 1:
            pool = self._pool_of[np.maximum(server, 0)]  # of those below 0 it means nothing
            for k in range(1, len(self._frontends)):
                own = pool == k
                first_token_ps[own], last_token_ps[own] = client_times(
                    self._frontends[k], *(c[own] for c in engine)
                )
        unanswered = server < 0
        if unanswered.any():
            # the client knows at once
            ended_ps = np.maximum(engine[4][unanswered], arrival_ps[unanswered])
            first_token_ps[unanswered] = last_token_ps[unanswered] = ended_ps
        return Finished(
            arrival_ps,
            first_token_ps,
            last_token_ps,
            server,
            column(self.cached_tokens),
            column(self.preemptions),
        )


#: who waits longer waits as long as it takes
_LONG_S = 9_000_000.0


def _integers(values: npt.NDArray[Any]) -> array[int]:
    return array("q", values.astype(np.int64).tobytes())
