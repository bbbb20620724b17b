"""Hypothesis strategies for traces."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from qsim.traces import HashIds, Trace

TIMES = st.floats(0, 1e7, allow_nan=False, allow_infinity=False)
TOKENS = st.integers(1, 10**6)


@st.composite
def traces(draw: st.DrawFn, with_ids: bool | None = None, block_tokens: int = 512) -> Trace:
    """A small trace; ids are small numbers, so that requests share some."""
    times = sorted(draw(st.lists(TIMES, min_size=1, max_size=12)))
    n = len(times)
    sized = {"min_size": n, "max_size": n}
    if with_ids is None:
        with_ids = draw(st.booleans())
    prompts = draw(st.lists(TOKENS, **sized))
    ids = None
    if with_ids:
        one = st.lists(st.integers(0, 40), max_size=6)
        lists = draw(st.lists(one, **sized))
        lists = [x[: -(-p // block_tokens)] for x, p in zip(lists, prompts, strict=True)]
        ids = HashIds.from_lists(lists, block_tokens)
    priority = timeout_s = None
    if draw(st.booleans()):
        priority = np.array(draw(st.lists(st.integers(-100, 100), **sized)))
    if draw(st.booleans()):
        waits = st.one_of(st.just(np.inf), st.floats(1e-3, 1e6))
        timeout_s = np.array(draw(st.lists(waits, **sized)))
    return Trace(
        np.array(times),
        np.array(prompts),
        np.array(draw(st.lists(TOKENS, **sized))),
        hash_ids=ids,
        priority=priority,
        timeout_s=timeout_s,
    )
