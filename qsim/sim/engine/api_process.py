"""The API server's process: one event loop that all requests and all tokens go through.

It is busy with a request that arrives, with every token of a step's result, and with sending each
request what it has for it. What comes while it is busy waits; a process that is behind sends the
tokens of several steps together, so that only what it does for every token adds up:

    busy(k) = max(busy(k-1) + n token, U(k) + n (token + send))

after the result of a step of n requests that the engine has at U(k), and a request that arrives
adds its own time. The steps of a run have the same n and come at times whose differences only
grow, so the busy time after a run is the greatest of three. :mod:`qsim.sim.engine.fast_forward`
does this in its own loop, between :attr:`ApiProcess.busy_ps` and itself. It may be ahead of the
next arrival: results that lie behind it come here as :attr:`ApiProcess.coming`.
"""

from __future__ import annotations

from qsim.profiles.schema import ApiTimes

__all__ = ["ApiProcess"]

_PS_PER_MS = 1_000_000_000
#: before everything
_BEFORE = -(1 << 61)


class ApiProcess:
    """When the process is done with what it has to do; all times are in ps.

    Attributes
    ----------
    busy_ps : int
        Until when, by the results and requests that were told.
    told_ps : int
        The time of the latest result among them.
    token_ps, row_ps : int
        For a token of a result; for it and for sending it.
    coming : list of (int, int)
        Results that may lie after the next arrival, in order: their times and requests.
    late_ps : int
        How much the process was behind when the latest result came.
    """

    __slots__ = ("_request_ps", "busy_ps", "coming", "late_ps", "row_ps", "token_ps", "told_ps")

    def __init__(self, times: ApiTimes) -> None:
        self._request_ps = round(times.request_ms * _PS_PER_MS)
        self.token_ps = round(times.token_ms * _PS_PER_MS)
        self.row_ps = self.token_ps + round(times.send_ms * _PS_PER_MS)
        self.busy_ps = self.told_ps = _BEFORE
        self.coming: list[tuple[int, int]] = []
        self.late_ps = 0

    def request(self, now_ps: int) -> int:
        """A request arrives; how long it waits until its turn comes."""
        while self.coming and self.coming[0][0] <= now_ps:
            self._take(*self.coming.pop(0))
        busy = self.busy_ps
        if busy <= now_ps:
            self.busy_ps = now_ps + self._request_ps
            return 0
        self.busy_ps = busy + self._request_ps
        return busy - now_ps

    def result(self, time_ps: int, rows: int) -> None:
        """The engine has the tokens of ``rows`` requests; telling it again changes nothing."""
        if self.coming:
            self.settle()
        if time_ps != self.told_ps:
            self._take(time_ps, rows)

    def settle(self) -> None:
        """Take in all results that were to come."""
        for time_ps, rows in self.coming:
            self._take(time_ps, rows)
        self.coming.clear()

    def _take(self, time_ps: int, rows: int) -> None:
        self.told_ps = time_ps
        busy = self.busy_ps
        self.late_ps = busy - time_ps if busy > time_ps else 0
        busy += rows * self.token_ps
        alone = time_ps + rows * self.row_ps
        self.busy_ps = busy if busy > alone else alone
