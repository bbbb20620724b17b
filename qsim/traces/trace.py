"""A request trace: one row a request, stored as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import BoolArray, FloatArray, IntArray
from qsim.errors import TraceError

#: 300 years; and a length that no model has: sums over billions of requests fit into 64 bits
MOST_ARRIVAL_S = 1e10
MOST_TOKENS = 1_000_000_000
#: of 32 bits, as programs send them
MOST_PRIORITY = 2**31


@dataclass(frozen=True, eq=False)
class HashIds:
    """The prefix-block ids of every request, as one ragged array.

    Two prompts that begin with the same ids share that much text. Request ``i`` owns
    ``values[offsets[i]:offsets[i + 1]]``; each id stands for ``block_tokens`` prompt tokens
    (the last one of a prompt may stand for fewer, as in the Mooncake traces). Where they go on into
    the answer, ``tokens`` says how many tokens of each request they describe.
    """

    values: IntArray
    offsets: IntArray
    block_tokens: int
    tokens: IntArray | None = None

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], block_tokens: int) -> HashIds:
        """Build from one list of ids a request."""
        lengths = np.fromiter((len(x) for x in lists), dtype=np.int64, count=len(lists))
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        values = np.fromiter((v for x in lists for v in x), dtype=np.int64, count=int(offsets[-1]))
        return cls(values, offsets, block_tokens)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> IntArray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def take(self, index: IntArray) -> HashIds:
        """The ids of the requests in ``index``, in that order."""
        starts, stops = self.offsets[index], self.offsets[index + 1]
        offsets = np.zeros(len(index) + 1, dtype=np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        shift = np.repeat(starts - offsets[:-1], stops - starts)
        values = self.values[np.arange(int(offsets[-1])) + shift]
        tokens = None if self.tokens is None else self.tokens[index]
        return HashIds(values, offsets, self.block_tokens, tokens)


@dataclass(frozen=True, eq=False)
class Turns:
    """Which requests wait for the answer to another: the later turns of sessions.

    Request ``i`` with ``previous[i] >= 0`` is sent ``delay_s[i]`` after the last token of the
    answer to that request; the others (-1) are sent at their ``arrival_s``. Where the time of an
    answer is not known, ``arrival_s`` of a later turn counts as if answers took no time.
    """

    previous: IntArray
    delay_s: FloatArray

    def take(self, index: IntArray) -> Turns:
        """Those of the requests in ``index``; a turn without its previous one waits for none."""
        place = np.full(len(self.previous) + 1, -1, np.int64)  # the last: of none, -1
        place[index] = np.arange(len(index))
        return Turns(place[self.previous[index]], self.delay_s[index])


#: of a trace, with their types; beside them prefix ids and turns
COLUMNS = {
    "arrival_s": np.float64,
    "prompt_tokens": np.int64,
    "output_tokens": np.int64,
    "priority": np.int64,
    "timeout_s": np.float64,
    "session": np.int64,
}


def taken(columns: Mapping[str, Any], index: IntArray) -> dict[str, Any]:
    """Columns of the requests in ``index``, in that order; one that is None stays so."""
    found: dict[str, Any] = {}
    for name, values in columns.items():
        ragged = isinstance(values, HashIds | Turns)
        found[name] = values.take(index) if ragged else None if values is None else values[index]
    return found


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival.

    Attributes
    ----------
    arrival_s : float64 array, shape (n,)
        Seconds from the start of the trace; >= 0, at most 1e10 and never decreasing.
    prompt_tokens, output_tokens : int64 arrays, shape (n,)
        Lengths in tokens, each >= 1 and at most 1e9.
    hash_ids : HashIds, optional
        Prefix-block ids, where the trace has them.
    turns : Turns, optional
        Which requests wait for answers, where the trace has sessions.
    priority : int64 array, shape (n,), optional
        As vLLM's: the smaller goes first under ``--scheduling-policy priority``; 0 by default.
    timeout_s : float64 array, shape (n,), optional
        How long the client waits for its answer, > 0; inf: as long as it takes.
    session : int64 array, shape (n,), optional
        The number of the session that a request is a turn of, >= 0; -1: of none. Where it is not
        given, ``turns`` say it: see :meth:`sessions`.
    name : str
        Where it comes from (a file name or a preset), for reports.
    meta : dict
        Facts worth keeping with results: format, skipped rows, seed.

    Raises
    ------
    TraceError
        If the columns differ in length, are empty, or hold a value that is not allowed.
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    hash_ids: HashIds | None = None
    name: str = "trace"
    meta: dict[str, Any] = field(default_factory=dict)
    turns: Turns | None = None
    priority: IntArray | None = None
    timeout_s: FloatArray | None = None
    session: IntArray | None = None

    def __post_init__(self) -> None:
        for column, kind in COLUMNS.items():
            values = getattr(self, column)
            if values is not None:
                object.__setattr__(self, column, np.ascontiguousarray(values, kind))
        n = len(self.arrival_s)
        for column in COLUMNS:
            values = getattr(self, column)
            if values is not None and len(values) != n:
                raise TraceError(
                    f"{self.name}: column {column} has {len(values)} rows, "
                    f"arrival_s has {n}; every column needs one value a request"
                )
        if n == 0:
            raise TraceError(f"{self.name}: the trace has no request")
        if self.hash_ids is not None and len(self.hash_ids) != n:
            raise TraceError(
                f"{self.name}: hash_ids has {len(self.hash_ids)} rows, arrival_s has {n}"
            )
        if self.turns is not None:
            after = self.turns.previous
            if len(after) != n or len(self.turns.delay_s) != n:
                raise TraceError(f"{self.name}: turns has {len(after)} rows, arrival_s has {n}")
            if (after >= np.arange(n)).any() or (after < -1).any():
                raise TraceError(f"{self.name}: a turn waits for a request that is not before it")
            if not (self.turns.delay_s >= 0).all():
                raise TraceError(f"{self.name}: a turn's delay_s is not >= 0")
        self._check_values()

    def _check_values(self) -> None:
        self._refuse(
            "arrival_s",
            ~((self.arrival_s >= 0) & (self.arrival_s <= MOST_ARRIVAL_S)),
            f"arrival times must be finite and >= 0, and at most {MOST_ARRIVAL_S:.0e} s",
        )
        down = np.diff(self.arrival_s) < 0
        if down.any():
            i = int(np.argmax(down)) + 1
            raise TraceError(
                f"{self.name}: arrival_s of request {i} is {self.arrival_s[i]!r}, before that of "
                f"request {i - 1} ({self.arrival_s[i - 1]!r}); sort the trace by arrival time"
            )
        for column in ("prompt_tokens", "output_tokens"):
            values = getattr(self, column)
            wrong = (values < 1) | (values > MOST_TOKENS)
            self._refuse(column, wrong, f"must be >= 1 and at most {MOST_TOKENS:,}")
        if self.priority is not None:
            wrong = np.abs(self.priority) > MOST_PRIORITY
            self._refuse("priority", wrong, f"must be from -{MOST_PRIORITY} to {MOST_PRIORITY}")
        if self.timeout_s is not None:
            wrong = ~(self.timeout_s > 0)
            self._refuse(
                "timeout_s", wrong, "must be > 0 (inf: the client waits as long as it takes)"
            )

    def _refuse(self, column: str, wrong: BoolArray, rule: str) -> None:
        if wrong.any():
            i = int(np.argmax(wrong))
            value = getattr(self, column)[i].item()
            raise TraceError(f"{self.name}: {column} of request {i} is {value!r}; {rule}")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0])

    def take(self, index: IntArray) -> Trace:
        """The requests in ``index`` (ascending positions)."""
        return replace(self, **taken(self.columns(), index))

    def columns(self) -> dict[str, Any]:
        """All that it has of each request, by name; None for what it does not have."""
        return {name: getattr(self, name) for name in (*COLUMNS, "hash_ids", "turns")}

    def sessions(self) -> IntArray | None:
        """The number of each request's session; -1: of none. None where there are no sessions.

        Without a column of their own they are the chains of ``turns``, each by its first request.
        """
        if self.session is not None or self.turns is None:
            return self.session
        previous = self.turns.previous
        found = np.arange(len(self))
        later = np.flatnonzero(previous >= 0)
        for i in later.tolist():  # one before it has its number
            found[i] = found[previous[i]]
        alone = np.ones(len(self), np.bool_)
        alone[later] = False
        alone[found[later]] = False
        found[alone] = -1
        return found

    def head(self, n: int) -> Trace:
        """The first ``n`` requests (all of them if there are fewer)."""
        if n < 1:
            raise TraceError(f"{self.name}: head of {n} requests; must be >= 1")
        return self.take(np.arange(min(n, len(self))))

    def slice(self, start_s: float = 0.0, end_s: float = float("inf")) -> Trace:
        """The requests that arrive in [start_s, end_s), with times counted from ``start_s``."""
        index = np.flatnonzero((self.arrival_s >= start_s) & (self.arrival_s < end_s))
        if len(index) == 0:
            raise TraceError(
                f"{self.name}: no request arrives in [{start_s:g} s, {end_s:g} s); arrivals run "
                f"from {self.arrival_s[0]:g} s to {self.arrival_s[-1]:g} s"
            )
        part = self.take(index)
        return replace(part, arrival_s=part.arrival_s - start_s)

    def speed(self, factor: float) -> Trace:
        """The same requests arriving ``factor`` times as fast (2 halves every gap)."""
        if not (factor > 0 and np.isfinite(factor)):
            raise TraceError(f"{self.name}: speed is {factor!r}; must be a finite number > 0")
        return self if factor == 1 else replace(self, arrival_s=self.arrival_s / factor)


def merge(traces: Sequence[Trace], name: str = "merged") -> Trace:
    """Several traces on one clock, in order of arrival (ties keep the order of ``traces``).

    Prefix ids of different traces never mean the same text, so they are kept apart.

    Raises
    ------
    TraceError
        If no trace is given, or their prefix blocks differ in size.
    """
    if not traces:
        raise TraceError("merge: no trace given")
    columns = joined(traces)
    order = np.argsort(columns["arrival_s"], kind="stable")
    return Trace(**taken(columns, order), name=name, meta={"merged": [t.name for t in traces]})


def joined(traces: Sequence[Trace]) -> dict[str, Any]:
    """The columns of several traces one after the other; what one alone has is kept apart.

    Raises
    ------
    TraceError
        If their prefix blocks differ in size.
    """
    sizes = sorted({t.hash_ids.block_tokens for t in traces if t.hash_ids is not None})
    if len(sizes) > 1:
        raise TraceError(f"merge: prefix blocks of different sizes {sizes}; must be one size")
    counts = [len(t) for t in traces]
    return {
        **{
            name: join_column([getattr(t, name) for t in traces], counts, missing)
            for name, missing in {**dict.fromkeys(COLUMNS, 0), "timeout_s": np.inf}.items()
        },
        "session": _joined_sessions(traces, counts),
        "hash_ids": _joined_ids(traces, sizes[0]) if sizes else None,
        "turns": _joined_turns(traces),
    }


def join_column(
    blocks: Sequence[npt.NDArray[Any] | None], sizes: Sequence[int], missing: float
) -> npt.NDArray[Any] | None:
    """An optional column of several blocks of requests, of so many each, one after the other.

    ``missing`` is the value of the requests of a block without the column (None). Of shape
    (sum(sizes),); None if no block has it.
    """
    if all(block is None for block in blocks):
        return None
    pairs = zip(blocks, sizes, strict=True)
    return np.concatenate([np.full(n, missing) if b is None else b for b, n in pairs])


def _joined_sessions(traces: Sequence[Trace], counts: Sequence[int]) -> IntArray | None:
    """The sessions of all traces, renumbered so that none is in two; None if none has any."""
    if all(t.session is None for t in traces):
        return None  # the turns say it
    found: list[IntArray | None] = []
    used = 0
    for own in [t.sessions() for t in traces]:
        found.append(None if own is None else np.where(own >= 0, own + used, -1))
        used += 0 if own is None else int(own.max()) + 1
    return join_column(found, counts, -1)


def _joined_turns(traces: Sequence[Trace]) -> Turns | None:
    """The turns of all traces one after the other; None if none has any."""
    if all(t.turns is None for t in traces):
        return None
    previous: list[IntArray] = []
    delay: list[FloatArray] = []
    before = 0
    for t in traces:
        own = t.turns or Turns(np.full(len(t), -1), np.zeros(len(t)))
        previous.append(np.where(own.previous >= 0, own.previous + before, -1))
        delay.append(own.delay_s)
        before += len(t)
    return Turns(np.concatenate(previous), np.concatenate(delay))


def _joined_ids(traces: Sequence[Trace], block_tokens: int) -> HashIds:
    """The ids of all traces one after the other, renumbered so that none is in two traces."""
    values: list[IntArray] = []
    lengths: list[IntArray] = []
    used = 0
    for t in traces:
        if t.hash_ids is None:
            lengths.append(np.zeros(len(t), np.int64))
            continue
        distinct, renumbered = np.unique(t.hash_ids.values, return_inverse=True)
        values.append(renumbered.reshape(-1) + used)
        lengths.append(np.diff(t.hash_ids.offsets))
        used += len(distinct)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return HashIds(np.concatenate(values).astype(np.int64), offsets.astype(np.int64), block_tokens)
