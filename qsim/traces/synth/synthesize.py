"""Synthetic traces: arrivals and lengths drawn from a workload's model, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray, IntArray
from qsim.bounds import MAX_REQUESTS, MAX_SEED
from qsim.checks import finite, whole
from qsim.errors import ScenarioError
from qsim.traces.synth.arrivals import Bursts, Gaps, RateProfile, arrival_blocks
from qsim.traces.synth.lengths import LengthModel
from qsim.traces.synth.prefixes import PrefixModel
from qsim.traces.trace import COLUMNS, MOST_PRIORITY, HashIds, Trace


@dataclass(frozen=True)
class Tier:
    """One kind of clients.

    Raises
    ------
    ScenarioError
        If a value is out of bounds.
    """

    #: of all requests; shares count relative to their sum
    share: float
    #: as vLLM's: the smaller goes first
    priority: int = 0
    #: how long a client waits for its whole answer; as long as it takes by default
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        finite("share", self.share, 0.0, 1e9, above=True)
        whole("priority", self.priority, -MOST_PRIORITY, MOST_PRIORITY)
        if self.timeout_s is not None:
            finite("timeout_s", self.timeout_s, 0.0, 1e9, above=True)


@dataclass(frozen=True)
class Tiers:
    """The tiers that a workload's requests are drawn from.

    Raises
    ------
    ScenarioError
        If there is none.
    """

    tiers: Sequence[Tier]

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ScenarioError("tiers is empty; leave it out, or give one at least")

    def draw(
        self, rng: np.random.Generator, number: int
    ) -> tuple[IntArray | None, FloatArray | None]:
        """Priorities and timeouts (s) of ``number`` requests; None for what no tier has."""
        shares = np.array([t.share for t in self.tiers])
        chosen = rng.choice(len(shares), size=number, p=shares / shares.sum())
        priority = np.array([t.priority for t in self.tiers], np.int64)
        timeout_s = np.array([np.inf if t.timeout_s is None else t.timeout_s for t in self.tiers])
        return (
            priority[chosen] if priority.any() else None,
            timeout_s[chosen] if np.isfinite(timeout_s).any() else None,
        )


#: longest span of traffic, s: ten years
MAX_SPAN_S = 3.2e8


@dataclass(frozen=True)
class Workload:
    """What a synthetic trace is drawn from."""

    #: the name that traces get
    name: str
    #: requests a second over time; it repeats after its end
    profile: RateProfile
    #: how evenly requests follow the rate
    gaps: Gaps
    #: prompt and output tokens
    lengths: LengthModel
    #: bursts on top of the profile
    bursts: Bursts | None = None
    #: shared beginnings of prompts
    prefixes: PrefixModel | None = None
    #: kinds of clients, with their priorities and timeouts
    tiers: Tiers | None = None
    #: arrival times are rounded down to multiples of it, as some public traces are; 0 for none
    grid_s: float = 0.0
    #: how long a trace is if nothing else is asked for
    duration_s: float = 3600.0
    #: one line for people
    description: str = ""
    #: what was measured from the real trace, and the sources
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """Which part of a workload to draw, and how much of it."""

    #: where in the rate profile to begin; arrivals count from there
    start_s: float = 0.0
    #: seconds of traffic; the workload's own by default
    duration_s: float | None = None
    #: stop after exactly so many requests. With a duration as well, the mean rate becomes
    #: ``requests / duration_s``, and the last request arrives about then.
    requests: int | None = None
    #: the mean rate over the span; the profile keeps its shape
    rate_rps: float | None = None
    #: multiplies the rate
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, most in (("duration_s", MAX_SPAN_S), ("rate_rps", 1e9), ("scale", 1e9)):
            value = getattr(self, name)
            if value is not None:
                finite(name, value, 0.0, most, above=True)
        finite("start_s", self.start_s, 0.0, MAX_SPAN_S)
        if self.requests is not None:
            whole("requests", self.requests, 1, MAX_REQUESTS)
        if None not in (self.requests, self.duration_s, self.rate_rps):
            raise ScenarioError(
                "rate, duration and requests are all given; two of them fix the third: drop one"
            )


def iter_chunks(workload: Workload, span: Span | None = None, seed: int = 0) -> Iterator[Trace]:
    """Draw a trace chunk by chunk, in memory that does not grow with its length.

    Yields
    ------
    Trace
        At most 65,536 requests each; arrival times go on from chunk to chunk.

    Raises
    ------
    ScenarioError
        If the span is not possible.
    """
    span = span or Span()
    expected = expected_requests(workload, span)
    if not expected <= MAX_REQUESTS:
        raise ScenarioError(
            f"{workload.name}: about {expected:.3g} requests are asked for; at most "
            f"{MAX_REQUESTS:.3g} are drawn: lower the rate or the duration"
        )
    whole("seed", seed, 0, MAX_SEED)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    arrivals_rng, lengths_rng, spells_rng, prefixes_rng, tiers_rng = streams
    profile, duration_s = _resolved_profile(workload, span, spells_rng)
    prefixes = None if workload.prefixes is None else workload.prefixes.start(prefixes_rng)
    blocks = arrival_blocks(
        profile, workload.gaps, arrivals_rng, duration_s=duration_s, requests=span.requests
    )
    for arrival_s in blocks:
        if workload.grid_s:
            arrival_s = np.floor(arrival_s / workload.grid_s) * workload.grid_s
        prompt, output = workload.lengths.draw(lengths_rng, len(arrival_s))
        hash_ids = None if prefixes is None else prefixes.assign(arrival_s, prompt)
        priority, timeout_s = None, None
        if workload.tiers is not None:
            priority, timeout_s = workload.tiers.draw(tiers_rng, len(arrival_s))
        yield Trace(
            arrival_s,
            prompt,
            output,
            hash_ids=hash_ids,
            priority=priority,
            timeout_s=timeout_s,
            name=workload.name,
        )


def synthesize(workload: Workload, span: Span | None = None, seed: int = 0) -> Trace:
    """Draw a whole trace; the same arguments give the same trace.

    Raises
    ------
    ScenarioError
        If the span is not possible, or no request falls into it.
    """
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    ids: list[HashIds] = []
    for chunk in iter_chunks(workload, span, seed):
        for column in COLUMNS:
            values = getattr(chunk, column)
            if values is not None:
                parts.setdefault(column, []).append(values)
        if chunk.hash_ids is not None:
            ids.append(chunk.hash_ids)
    if not parts:
        raise ScenarioError(
            f"{workload.name}: no request arrives in this span; ask for a longer duration or a "
            "higher rate"
        )
    columns: dict[str, Any] = {column: _used_up(parts[column]) for column in parts}
    return Trace(
        **columns,
        hash_ids=_joined(ids),
        name=workload.name,
        meta={"format": "synthetic", "preset": workload.name, "seed": seed, "skipped": {}},
    )


def expected_requests(workload: Workload, span: Span | None = None) -> float:
    """How many requests a draw will have, about; exactly ``span.requests`` where it is given."""
    span = span or Span()
    if span.requests is not None:
        return float(span.requests)
    duration_s = workload.duration_s if span.duration_s is None else span.duration_s
    rate_rps = span.rate_rps
    if rate_rps is None:
        rate_rps = workload.profile.window(span.start_s, duration_s).mean_rps
    return rate_rps * span.scale * duration_s


def _used_up(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One array; the parts are let go at once, for they can be large."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _joined(parts: list[HashIds]) -> HashIds | None:
    if not parts:
        return None
    starts = np.cumsum([0] + [len(part.values) for part in parts[:-1]])
    ends = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=True)]
    return HashIds(
        np.concatenate([part.values for part in parts]),
        np.concatenate([np.zeros(1, np.int64), *ends]),
        parts[0].block_tokens,
    )


def _resolved_profile(
    workload: Workload, span: Span, rng: np.random.Generator
) -> tuple[RateProfile, float | None]:
    """The rate over the span, and where to stop (``None``: when the requests are drawn)."""
    mean_rps = workload.profile.mean_rps if span.rate_rps is None else span.rate_rps
    if span.duration_s is not None:
        horizon_s = span.duration_s
    elif span.requests is not None:
        horizon_s = span.requests / (mean_rps * span.scale)
    else:
        horizon_s = workload.duration_s
    if not horizon_s <= MAX_SPAN_S:
        raise ScenarioError(
            f"{span.requests:,} requests at {mean_rps * span.scale:.3g} requests/s take "
            f"{horizon_s:.3g} s; must be at most {MAX_SPAN_S:,.0f} s (ten years): raise the rate, "
            "or ask for fewer"
        )
    profile = workload.profile.window(span.start_s, horizon_s)
    if span.rate_rps is not None:
        target_rps = span.rate_rps
    elif span.requests is not None and span.duration_s is not None:
        target_rps = span.requests / span.duration_s
    else:
        target_rps = profile.mean_rps
    if workload.bursts is not None:
        # The realised bursts are scaled too, so that a short span has the rate asked for.
        profile = profile.times(workload.bursts.path(rng, profile.period_s))
    profile = profile.scaled(target_rps * span.scale / profile.mean_rps)
    return profile, None if span.requests is not None else horizon_s
