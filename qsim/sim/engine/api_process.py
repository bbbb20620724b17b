"""The API server's process: one event loop that all requests and all tokens go through.

It is busy with a request that arrives, with every token of a step's result, and with sending each
request what it has for it. What comes while it is busy waits; a process that is behind sends the
tokens of several steps together, so that only what it does for every token adds up:

    busy(k) = max(busy(k-1) + n token, U(k) + n (token + send))

after the result of a step of n requests that the engine has at U(k), and a request that arrives
adds its own time. The steps of a run have the same n and come at times whose differences only
grow, so the busy time after a run is the greatest of three (:meth:`ApiProcess.results`). The last
result of a run may lie after the next arrival: it counts once its time has come.
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
    late_ps : int
        How much it was behind when the latest result came.
    """

    __slots__ = (
        "_busy_ps", "_coming_ps", "_coming_rows", "_request_ps", "_result_ps", "_row_ps",
        "_token_ps", "late_ps",
    )  # fmt: skip

    def __init__(self, times: ApiTimes) -> None:
        self._request_ps = round(times.request_ms * _PS_PER_MS)
        self._token_ps = round(times.token_ms * _PS_PER_MS)
        self._row_ps = self._token_ps + round(times.send_ms * _PS_PER_MS)
        self._busy_ps = self._result_ps = _BEFORE
        self._coming_ps, self._coming_rows = -1, 0
        self.late_ps = 0

    def request(self, now_ps: int) -> int:
        """A request arrives; how long it waits until its turn comes."""
        if 0 <= self._coming_ps <= now_ps:
            self.result(self._coming_ps, self._coming_rows)
        busy = self._busy_ps
        if busy <= now_ps:
            self._busy_ps = now_ps + self._request_ps
            return 0
        self._busy_ps = busy + self._request_ps
        return busy - now_ps

    def result(self, time_ps: int, rows: int) -> None:
        """The engine has the tokens of ``rows`` requests; telling it again changes nothing."""
        coming = self._coming_ps
        if coming >= 0:
            self._coming_ps = -1
            if coming != time_ps:
                self.result(coming, self._coming_rows)
        if time_ps == self._result_ps:
            return
        self._result_ps = time_ps
        busy = self._busy_ps
        self.late_ps = busy - time_ps if busy > time_ps else 0
        busy += rows * self._token_ps
        alone = time_ps + rows * self._row_ps
        self._busy_ps = busy if busy > alone else alone

    def results(self, first_ps: int, before_ps: int, last_ps: int, steps: int, rows: int) -> None:
        """Results of ``steps`` steps of ``rows`` requests, whose distances do not become less.

        ``before_ps`` is the time of the last but one; of a single step it means nothing.
        """
        steps -= 1
        if steps:
            self._add(first_ps, before_ps, steps, rows)
        elif self._coming_ps >= 0:
            self.result(self._coming_ps, self._coming_rows)
        self._coming_ps, self._coming_rows = last_ps, rows

    def _add(self, first_ps: int, last_ps: int, steps: int, rows: int) -> None:
        if self._coming_ps >= 0:
            self.result(self._coming_ps, self._coming_rows)
        token = rows * self._token_ps
        row = rows * self._row_ps
        busy = self._busy_ps + steps * token
        behind = first_ps + row + (steps - 1) * token
        if behind > busy:
            busy = behind
        alone = last_ps + row
        self._busy_ps = busy if busy > alone else alone
        self._result_ps = last_ps
