"""Other traffic from the traffic that there is: cut, thinned, longer, faster, merged, grown.

In this order: the slice, the sample, the lengths, the shared beginning, the speed, the head. A
trace in parts gets what the whole one gets, request by request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import IntArray
from qsim.bounds import MAX_SEED
from qsim.checks import is_number, whole
from qsim.errors import ScenarioError, TraceError
from qsim.traces.prefix_ids import KV_BLOCK_TOKENS
from qsim.traces.trace import MOST_TOKENS, HashIds, Trace, merge

#: of the stream of draws, apart from those of formats and presets
_SAMPLE_STREAM = 101
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Reshaping:
    """What to make of a trace; the fields are named as the options are.

    Raises
    ------
    TraceError
        If a value is not allowed.
    """

    #: keep arrivals in [start, end), s on the trace's own clock; times then count from ``start``
    start: float | None = None
    end: float | None = None
    #: keep each request, or each session, with this probability, in (0, 1]
    sample: float | None = None
    #: multiply the lengths, to whole tokens of at least 1. What prompts share grows with them.
    scale_prompt: float | None = None
    scale_output: float | None = None
    #: let so many tokens at the beginning of every prompt, as a system prompt, be the same; a
    #: prompt that has fewer shares nothing
    shared_prefix: int | None = None
    #: let the requests arrive so many times as fast
    speed: float | None = None
    #: keep the first so many requests
    head: int | None = None

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 < self.sample <= 1:
            raise TraceError(
                f"sample is {self.sample!r}; must be above 0 and at most 1, the share of the "
                "requests that is kept (speed makes traffic denser)"
            )
        for name in ("scale_prompt", "scale_output", "speed"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TraceError(f"{name} is {value!r}; must be a finite number > 0")
        if self.shared_prefix is not None and not (
            KV_BLOCK_TOKENS <= self.shared_prefix <= MOST_TOKENS
        ):
            raise TraceError(
                f"shared_prefix is {self.shared_prefix!r}; must be from {KV_BLOCK_TOKENS} tokens, "
                f"a KV block, to {MOST_TOKENS:,}"
            )
        if self.head is not None and self.head < 1:
            raise TraceError(f"head of {self.head!r} requests; must be >= 1")

    def apply(self, trace: Trace, seed: int = 0, number: int = 0) -> Trace:
        """The trace, reshaped: the ``number``-th of those that are merged, which are sampled apart.

        Raises
        ------
        TraceError
            If no request is left, or a value is not allowed for this trace.
        """
        if self.start is not None or self.end is not None:
            trace = trace.slice(self.start or 0.0, math.inf if self.end is None else self.end)
        inner = self.piecewise(seed, number)(trace)
        if inner is None:
            raise self.nothing_left(trace.name)
        return inner if self.head is None else inner.head(self.head)

    def nothing_left(self, name: str) -> TraceError:
        """What to raise if the sample has taken no request."""
        return TraceError(
            f"{name}: no request is left of a sample of {self.sample:g}; take a larger share, or "
            "another seed"
        )

    def piecewise(self, seed: int, number: int = 0) -> Callable[[Trace], Trace | None]:
        """What lies between slice and head, for one part after the other; None: nothing is left."""
        whole("seed", seed, 0, MAX_SEED)
        rng: np.random.Generator | None = None  # numpy.random takes time to import
        if self.sample is not None and self.sample < 1:
            sequence = np.random.SeedSequence(seed, spawn_key=(_SAMPLE_STREAM, number))
            rng = np.random.default_rng(sequence)

        def reshaped(part: Trace) -> Trace | None:
            if self.sample is not None and rng is not None:
                kept = _sampled(part, self.sample, rng)
                if kept is None:
                    return None
                part = kept
            if self.scale_prompt is not None or self.scale_output is not None:
                part = _scaled(part, self.scale_prompt or 1.0, self.scale_output or 1.0)
            if self.shared_prefix is not None:
                part = _with_shared_prefix(part, self.shared_prefix)
            return part if self.speed is None else part.speed(self.speed)

        return reshaped


def merge_all(first: Trace, others: Iterable[Trace]) -> Trace:
    """A trace with others beside it; they start together."""
    more = list(others)
    if not more:
        return first
    merged = merge([first, *more], name=f"{first.name} and {len(more)} more")
    notes = [note for t in (first, *more) for note in t.meta.get("notes") or ()]
    return replace(merged, meta={**merged.meta, **({"notes": notes} if notes else {})})


def _sampled(trace: Trace, share: float, rng: np.random.Generator) -> Trace | None:
    """Each request with a probability; a session as a whole, by the draw of its first request."""
    kept = rng.random(len(trace)) < share
    if trace.turns is not None:
        for i, previous in enumerate(trace.turns.previous.tolist()):
            if previous >= 0:
                kept[i] = kept[previous]
    return trace.take(np.flatnonzero(kept)) if kept.any() else None


def _scaled(trace: Trace, prompt_factor: float, output_factor: float) -> Trace:
    lengths: dict[str, Any] = {}
    for name, factor in (("prompt_tokens", prompt_factor), ("output_tokens", output_factor)):
        old = getattr(trace, name)
        new = np.maximum(1.0, np.rint(old * factor))
        if new.max() > MOST_TOKENS:
            raise TraceError(
                f"{trace.name}: {name} of {int(old.max()):,} times {factor:g} is more than "
                f"{MOST_TOKENS:,}"
            )
        lengths[name] = new.astype(np.int64)
    ids = trace.hash_ids
    if ids is not None and prompt_factor != 1:
        ids = _stretched(ids, trace.prompt_tokens, lengths["prompt_tokens"], prompt_factor)
    return replace(trace, **lengths, hash_ids=ids)


def _stretched(ids: HashIds, old: IntArray, new: IntArray, factor: float) -> HashIds:
    """Ids of prompts that are ``factor`` times as long, and share that many times as much.

    Block j of a new prompt covers the old blocks from j / factor on; its id is made of j and of the
    ids up to the last of them.
    """
    size = ids.block_tokens
    counts = np.diff(ids.offsets)
    most = -(-new // size)
    complete = counts == -(-old // size)
    wanted = np.where(complete, most, np.minimum(most, np.floor(counts * factor)))
    wanted = np.where(counts == 0, 0, wanted).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(wanted)]).astype(np.int64)
    block = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], wanted)
    source = np.ceil((block + 1) / factor - 1e-9).astype(np.int64) - 1
    source = np.minimum(source, np.repeat(counts - 1, wanted))
    origin = _chained(ids)[np.repeat(ids.offsets[:-1], wanted) + source]
    return HashIds(_mixed(origin, block.astype(np.uint64)).view(np.int64), offsets, size)


def _mixed(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Two 64-bit numbers as one (the finalizer of SplitMix64, Steele and others 2014)."""
    with np.errstate(over="ignore"):
        z = a * _GOLDEN + b + np.uint64(1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _chained(ids: HashIds) -> npt.NDArray[np.uint64]:
    """For each id, a number of it and of all that stand before it in its prompt."""
    own = ids.values.view(np.uint64)
    chained = own.copy()
    counts = np.diff(ids.offsets)
    for k in range(1, int(counts.max(initial=0))):
        at = ids.offsets[:-1][counts > k] + k
        chained[at] = _mixed(chained[at - 1], own[at])
    return chained


def _with_shared_prefix(trace: Trace, tokens: int) -> Trace:
    if trace.hash_ids is not None:
        raise TraceError(
            f"{trace.name}: shared_prefix is {tokens}, but the trace has prefix ids of its own, "
            "which say what prompts share"
        )
    holds = trace.prompt_tokens >= tokens
    block_tokens = tokens // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
    offsets = np.concatenate([[0], np.cumsum(holds)]).astype(np.int64)
    ids = HashIds(np.zeros(int(offsets[-1]), np.int64), offsets, block_tokens)
    meta = trace.meta
    if not holds.all():
        text = f"prompts of less than {tokens:,} tokens cannot begin with the shared ones: they "
        meta = {**meta, "notes": [*(meta.get("notes") or ()), f"{text}share nothing"]}
    return replace(trace, hash_ids=ids, meta=meta)


HOUR_S = 3600.0


@dataclass(frozen=True)
class Forecast:
    """How the trace was shaped: the start of its busiest hour (None: all of it), and growth."""

    peak_hour_start_s: float | None = None
    growth: float = 1.0

    def text(self) -> str:
        """For people, "" if the trace is as it was given."""
        parts = []
        if self.peak_hour_start_s is not None:
            end_s = self.peak_hour_start_s + HOUR_S
            parts.append(
                f"the busiest hour of the trace by requests, {self.peak_hour_start_s:,.0f} s to "
                f"{end_s:,.0f} s"
            )
        if self.growth != 1:
            parts.append(f"arrivals {self.growth:.15g} times as fast as in the trace")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"peak_hour_start_s": self.peak_hour_start_s, "growth": self.growth}


def busiest_hour(trace: Trace) -> float:
    """Start of the hour with the most requests, s; the first of several.

    Only hours that begin with an arrival need a look: to begin later without losing one is to
    reach further.

    Raises
    ------
    ScenarioError
        If the trace is shorter than an hour.
    """
    if trace.duration_s < HOUR_S:
        raise ScenarioError(
            f"{trace.name} lasts {trace.duration_s:.6g} s, less than the hour that peak_hour "
            "(--peak-hour) cuts out; leave it out to plan for the whole trace, or give a longer one"
        )
    at = trace.arrival_s
    counts = np.searchsorted(at, at + HOUR_S, side="left") - np.arange(len(at))
    return float(at[int(np.argmax(counts))])


def forecast(trace: Trace, growth: float = 1.0, peak_hour: bool = False) -> tuple[Trace, Forecast]:
    """The traffic to plan for: first the busiest hour, if asked for, then the growth.

    Raises
    ------
    ScenarioError
        If ``growth`` is not a finite number > 0, or the trace is shorter than an hour.
    """
    if not is_number(growth) or not 0 < growth < math.inf:
        raise ScenarioError(
            f"growth is {growth!r}; must be a finite number > 0, such as 1.5 for half as much again"
        )
    start_s = busiest_hour(trace) if peak_hour else None
    if start_s is not None:
        trace = trace.slice(start_s, start_s + HOUR_S)
    return trace.speed(growth), Forecast(start_s, float(growth))
