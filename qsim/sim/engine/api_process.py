"""The API server's process: one event loop that all requests and all tokens go through.

The loop goes round and round. In a round it does what is ready when the round begins, one after the
other: a turn of every request that is on its way to the engine, ``token_ms`` for every token of the
results that the engine has had meanwhile, and ``send_ms`` for every request whose token was taken
in the round before. A request takes ``turns`` rounds, so it waits several times for what else there
is to do; and of requests that come together even the first waits for most of the others' turns.
If prompts are texts, each goes to a thread after its first turn, which tokenizes them one by one.
Then the engine's input thread takes the requests in, one by one.

While no request is on its way only the time matters until which the process is busy. After the
result of a step of n requests that the engine has at U(k) this is

    busy(k) = max(busy(k-1) + n token, U(k) + n (token + send))

for a process that is behind sends the tokens of several steps together. The steps of a run have
the same n and come at times whose differences only grow, so the busy time after a run is the
greatest of three. :mod:`qsim.sim.engine.fast_forward` does this in its own loop, between
:attr:`ApiProcess.busy_ps` and itself. It may be ahead of the next request: results that lie behind
it come here as :attr:`ApiProcess.coming`.
"""

from __future__ import annotations

from collections import deque

from qsim.profiles.schema import FIRST_TURN, LAST_TURN, ApiTimes
from qsim.sim.scheduler.request import Request

_PS_PER_MS = 1_000_000_000
#: before everything
_BEFORE = -(1 << 61)
_NEVER = 1 << 100


class Entering:
    """A request on its way to the engine.

    Attributes
    ----------
    arrival_ps : int
    turn : int
        The next that it takes; 0 is the first.
    own_ps : int
        How long it keeps the process busy.
    prompt_ps : int
        Of that, what its prompt adds to the first turn.
    tail_ps : int
        From the end of its last turn to the engine's queue.
    serial_ps : int
        How long the engine's input thread is busy with it.
    tokenize_ps : int
        And the tokenizer's.
    back_ps : int
        When the tokenizer has done it.
    """

    __slots__ = (
        "arrival_ps",
        "back_ps",
        "own_ps",
        "prompt_ps",
        "request",
        "serial_ps",
        "tail_ps",
        "tokenize_ps",
        "turn",
    )

    def __init__(
        self,
        request: Request,
        arrival_ps: int,
        own_ps: int,
        prompt_ps: int,
        tail_ps: int,
        serial_ps: int,
        tokenize_ps: int,
    ) -> None:
        self.request = request
        self.arrival_ps = arrival_ps
        self.turn = 0
        self.own_ps = own_ps
        self.prompt_ps = prompt_ps
        self.tail_ps = tail_ps
        self.serial_ps = serial_ps
        self.tokenize_ps = tokenize_ps
        self.back_ps = 0


class ApiProcess:
    """The event loop of one server; all times are in ps.

    Parameters
    ----------
    times : ApiTimes
    serial_ps : int
        Requests reach the engine's queue no sooner after one another.
    texts : bool
        Whether prompts are texts, and not token ids.

    Attributes
    ----------
    busy_ps : int
        Until when, by what was told: the end of the present round while requests are on their way.
    told_ps : int
        The time of the latest result among it.
    token_ps, row_ps : int
        For a token of a result; for it and for sending it.
    arriving : deque of Entering
        Requests that no round has taken up, in order of arrival.
    inside : list of Entering
        Those that the loop has begun.
    outside : deque of Entering
        Those with the tokenizer.
    coming : deque of (int, int)
        Results that no round has taken up, in order: their times and requests.
    late_ps : int
        How much the process was behind when the latest result came.
    """

    __slots__ = (
        "_input_ps",
        "_left_ps",
        "_prompt_ps",
        "_ready_ps",
        "_request_ps",
        "_sends_ps",
        "_serial_ps",
        "_tokenize_ps",
        "_tokenizer_ps",
        "_turns_ps",
        "arriving",
        "busy_ps",
        "coming",
        "inside",
        "late_ps",
        "outside",
        "row_ps",
        "token_ps",
        "told_ps",
    )

    def __init__(self, times: ApiTimes, serial_ps: int = 0, texts: bool = False) -> None:
        request_ps = round(times.request_ms * _PS_PER_MS)
        turns = [round(request_ps * FIRST_TURN), round(request_ps * LAST_TURN)]
        between = times.turns - 2
        rest = request_ps - sum(turns)
        shares = [rest * (i + 1) // between - rest * i // between for i in range(between)]
        if not between:
            turns[0] += rest
        self._turns_ps = [turns[0], *shares, turns[1]]
        self._request_ps = sum(self._turns_ps)
        # what is left of it before each turn
        self._left_ps = [sum(self._turns_ps[i:]) for i in range(times.turns)]
        # of the prompt, ps a token
        self._prompt_ps = round(times.request_ms_per_1k_prompt_tokens * _PS_PER_MS / 1000)
        self._input_ps = round(times.input_ms_per_1k_prompt_tokens * _PS_PER_MS / 1000)
        self._tokenize_ps = 0
        if texts:
            self._tokenize_ps = round(times.tokenize_ms_per_1k_prompt_tokens * _PS_PER_MS / 1000)
        self._tokenizer_ps = _BEFORE  # until when the tokenizer is busy
        self._serial_ps = serial_ps
        self._ready_ps = _BEFORE
        self._sends_ps = 0  # what the results of the present round leave to the next
        self.token_ps = round(times.token_ms * _PS_PER_MS)
        self.row_ps = self.token_ps + round(times.send_ms * _PS_PER_MS)
        self.busy_ps = self.told_ps = _BEFORE
        self.arriving: deque[Entering] = deque()
        self.inside: list[Entering] = []
        self.outside: deque[Entering] = deque()
        self.coming: deque[tuple[int, int]] = deque()
        self.late_ps = 0

    # ------------------------------------------------------------------ what happens

    def enter(self, request: Request, now_ps: int, receive_ps: int) -> None:
        """A request arrives, no sooner than those before it; alone it takes ``receive_ps``."""
        prompt_ps = request.prompt_tokens * self._prompt_ps
        own_ps = self._request_ps + prompt_ps
        tail_ps = receive_ps - own_ps if receive_ps > own_ps else 0
        serial_ps = self._serial_ps + request.prompt_tokens * self._input_ps
        tokenize_ps = request.prompt_tokens * self._tokenize_ps
        self.arriving.append(
            Entering(request, now_ps, own_ps, prompt_ps, tail_ps, serial_ps, tokenize_ps)
        )

    def result(self, time_ps: int, rows: int) -> None:
        """The engine has the tokens of ``rows`` requests; telling it again changes nothing.

        All rounds that begin before must have been made.
        """
        if time_ps == self.told_ps:
            return
        self.told_ps = time_ps
        free = not self.inside and self._next_ps() >= time_ps
        if free:
            self.settle()
        self.late_ps = self.busy_ps - time_ps if self.busy_ps > time_ps else 0
        if free:
            self._take(time_ps, rows)
        else:
            self.coming.append((time_ps, rows))

    def settle(self) -> None:
        """Take in all results that were to come; no request is on its way."""
        while self.coming:
            self._take(*self.coming.popleft())

    def _take(self, time_ps: int, rows: int) -> None:
        busy = self.busy_ps + rows * self.token_ps
        alone = time_ps + rows * self.row_ps
        self.busy_ps = busy if busy > alone else alone

    def _next_ps(self) -> int:
        """When a request arrives, or comes back from the tokenizer."""
        next_ps = self.arriving[0].arrival_ps if self.arriving else _NEVER
        if self.outside and self.outside[0].back_ps < next_ps:
            next_ps = self.outside[0].back_ps
        return next_ps

    # ------------------------------------------------------------------ rounds

    def waiting(self, now_ps: int) -> bool:
        """Whether a request is on its way."""
        if self.inside or self.outside:
            return True
        return len(self.arriving) > 0 and self.arriving[0].arrival_ps <= now_ps

    def num_waiting(self, now_ps: int) -> int:
        """How many are."""
        n = len(self.inside) + len(self.outside)
        for entering in self.arriving:
            if entering.arrival_ps > now_ps:
                break
            n += 1
        return n

    def requests(self) -> list[Request]:
        """Those that are on their way."""
        return [x.request for x in (*self.inside, *self.outside, *self.arriving)]

    def soonest_ps(self) -> int:
        """No request is in the engine's queue before this time; some must be on their way."""
        if self.inside:
            first = self.inside[0]
            ready = self.busy_ps + self._left_ps[first.turn] + first.tail_ps
        elif self.outside:
            first = self.outside[0]
            ready = first.back_ps + self._left_ps[1] + first.tail_ps
        else:
            first = self.arriving[0]
            ready = first.arrival_ps if first.arrival_ps > self.busy_ps else self.busy_ps
            ready += first.own_ps + first.tokenize_ps + first.tail_ps
        serial = self._ready_ps + first.serial_ps
        return ready if ready > serial else serial

    def advance(self, limit_ps: int, most: int = 1 << 60) -> list[tuple[int, Request]]:
        """The rounds that begin until ``limit_ps``, or until ``most`` requests are through.

        Every request that arrives, and every result, until then must have been told.

        Returns
        -------
        list of (int, Request)
            When requests are in the engine's queue, in that order.
        """
        through: list[tuple[int, Request]] = []
        arriving, coming, inside, outside = self.arriving, self.coming, self.inside, self.outside
        turns_ps, last = self._turns_ps, len(self._turns_ps) - 1
        token, send = self.token_ps, self.row_ps - self.token_ps
        while len(through) < most:
            if inside:
                begin = self.busy_ps
            else:
                at = self._next_ps()
                if at > limit_ps:
                    break
                while coming and coming[0][0] <= at:
                    self._take(*coming.popleft())
                begin = at if at > self.busy_ps else self.busy_ps
            if begin > limit_ps:
                break
            if not inside and not coming and not outside and not arriving[0].tokenize_ps:
                # if nothing else comes until its last turn, its rounds follow one another
                entering = arriving[0]
                end = begin + entering.own_ps
                begun = end - turns_ps[last]
                if begun <= limit_ps and (len(arriving) == 1 or arriving[1].arrival_ps > begun):
                    through.append((self._take_in(entering, end), entering.request))
                    arriving.popleft()
                    self.busy_ps = end
                    continue
            if len(inside) == 1 and not coming and not self._sends_ps:
                entering = inside[0]
                end = begin + self._left_ps[entering.turn]
                if end - turns_ps[last] <= limit_ps and end - turns_ps[last] < self._next_ps():
                    through.append((self._take_in(entering, end), entering.request))
                    inside.clear()
                    self.busy_ps = end
                    continue
            end = begin + self._sends_ps
            self._sends_ps = 0
            while outside and outside[0].back_ps <= begin:
                inside.append(outside.popleft())
            first = 0  # those before it are through
            for entering in inside:
                turn = entering.turn
                end += turns_ps[turn]
                if turn == last:
                    first += 1
                    through.append((self._take_in(entering, end), entering.request))
                else:
                    entering.turn = turn + 1
            if first:
                del inside[:first]
            while coming and coming[0][0] <= begin:
                rows = coming.popleft()[1]
                end += rows * token
                if rows * send > self._sends_ps:
                    self._sends_ps = rows * send
            while arriving and arriving[0].arrival_ps <= begin:
                entering = arriving.popleft()
                end += turns_ps[0] + entering.prompt_ps
                entering.turn = 1
                if entering.tokenize_ps:
                    tokenizer_ps = end if end > self._tokenizer_ps else self._tokenizer_ps
                    self._tokenizer_ps = tokenizer_ps + entering.tokenize_ps
                    entering.back_ps = self._tokenizer_ps
                    outside.append(entering)
                else:
                    inside.append(entering)
            self.busy_ps = end
            if not inside:
                self.busy_ps += self._sends_ps
                self._sends_ps = 0
        if not inside and coming:
            next_ps = self._next_ps()
            while coming and coming[0][0] <= next_ps and coming[0][0] <= limit_ps:
                self._take(*coming.popleft())
        return through

    def _take_in(self, entering: Entering, end_ps: int) -> int:
        """When the engine's queue has a request whose last turn ended then."""
        ready, serial = end_ps + entering.tail_ps, self._ready_ps + entering.serial_ps
        self._ready_ps = ready if ready > serial else serial
        return self._ready_ps

    def first_ready_ps(self) -> int:
        """When the first is in the engine's queue if nothing else comes; -1: none is on its way."""
        if not self.inside and not self.outside and not self.arriving:
            return -1
        kept = (self.busy_ps, self._sends_ps, self._ready_ps, self._tokenizer_ps)
        arriving, outside, inside = list(self.arriving), list(self.outside), list(self.inside)
        turns = [x.turn for x in inside]
        coming = list(self.coming)
        ready_ps = self.advance(_NEVER - 1, 1)[0][0]
        self.busy_ps, self._sends_ps, self._ready_ps, self._tokenizer_ps = kept
        self.arriving, self.outside, self.coming = deque(arriving), deque(outside), deque(coming)
        self.inside = inside
        for entering, turn in zip(inside, turns, strict=True):
            entering.turn = turn
        for entering in outside:
            entering.turn = 1
        for entering in arriving:
            entering.turn = 0
        return ready_ps

    def remove(self, request: Request) -> bool:
        """Its client has gone; False if it is not on its way."""
        for n, queue in enumerate((self.inside, self.outside, self.arriving)):
            for entering in queue:
                if entering.request is request:
                    queue.remove(entering)
                    if n == 0 and not self.inside:
                        self.busy_ps += self._sends_ps
                        self._sends_ps = 0
                    return True
        return False
