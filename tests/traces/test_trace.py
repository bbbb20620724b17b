"""The Trace class: columns, cutting, merging."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import TraceError
from qsim.traces import HashIds, Trace, merge, shape
from tests.traces.strategies import traces


def simple(times: list[float], name: str = "t") -> Trace:
    n = len(times)
    return Trace(np.array(times), np.arange(1, n + 1), np.full(n, 7), name=name)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, -1.0], "arrival_s of request 1 is"),
        ([0.0, float("nan")], "finite and >= 0"),
        ([2.0, 1.0], "before that of request 0"),
        ([], "no request"),
    ],
)
def test_bad_times_are_refused(times: list[float], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        simple(times)


def test_lengths_must_be_at_least_one_token() -> None:
    with pytest.raises(TraceError, match="output_tokens of request 1 is 0; must be >= 1"):
        Trace(np.array([0.0, 1.0]), np.array([1, 1]), np.array([1, 0]))


def test_slice_counts_from_its_start_and_excludes_its_end() -> None:
    part = simple([0.0, 1.0, 2.0, 3.0]).slice(1.0, 3.0)
    assert part.arrival_s.tolist() == [0.0, 1.0]
    assert part.prompt_tokens.tolist() == [2, 3]


def test_an_empty_slice_says_where_the_arrivals_are() -> None:
    with pytest.raises(TraceError, match=r"no request arrives in \[5 s, 9 s\).*from 0 s to 3 s"):
        simple([0.0, 3.0]).slice(5.0, 9.0)


def test_shape_slices_then_speeds_then_takes_the_head() -> None:
    shaped = shape(simple([0.0, 10.0, 20.0, 30.0]), start_s=10, end_s=31, speed=10, head=2)
    assert shaped.arrival_s.tolist() == [0.0, 1.0]
    assert shape(simple([0.0, 1.0])).arrival_s.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_speed_must_be_positive(factor: float) -> None:
    with pytest.raises(TraceError, match="speed is"):
        simple([0.0]).speed(factor)


@given(st.lists(traces(), min_size=1, max_size=4))
def test_merging_keeps_every_request_and_sorts(parts: list[Trace]) -> None:
    sizes = {t.hash_ids.block_tokens for t in parts if t.hash_ids is not None}
    if len(sizes) > 1:
        with pytest.raises(TraceError, match="different sizes"):
            merge(parts)
        return
    whole = merge(parts)
    rows = sorted(
        (a, p, o)
        for t in parts
        for a, p, o in zip(t.arrival_s, t.prompt_tokens, t.output_tokens, strict=True)
    )
    merged = zip(whole.arrival_s, whole.prompt_tokens, whole.output_tokens, strict=True)
    assert sorted(merged) == rows
    assert (np.diff(whole.arrival_s) >= 0).all()


@given(st.lists(traces(with_ids=True), min_size=1, max_size=3))
def test_merging_keeps_sharing_inside_a_trace_and_adds_none_between(parts: list[Trace]) -> None:
    whole = merge(parts)
    assert whole.hash_ids is not None
    distinct = sum(len(set(t.hash_ids.values.tolist())) for t in parts if t.hash_ids is not None)
    assert len(set(whole.hash_ids.values.tolist())) == distinct
    total = sum(len(t.hash_ids.values) for t in parts if t.hash_ids is not None)
    assert len(whole.hash_ids.values) == total


def test_merging_with_a_trace_without_ids_gives_it_none() -> None:
    ids = HashIds.from_lists([[5, 5000000000]], 16)
    one = Trace(np.array([1.0]), np.array([30]), np.array([1]), hash_ids=ids)
    whole = merge([simple([0.0, 2.0]), one])
    assert whole.hash_ids is not None
    assert [len(whole.hash_ids[i]) for i in range(3)] == [0, 2, 0]


def test_merging_fills_what_a_trace_does_not_say() -> None:
    one = Trace(
        np.array([1.0]), np.array([30]), np.array([1]),
        priority=np.array([-3]), timeout_s=np.array([5.0]),
    )  # fmt: skip
    whole = merge([simple([0.0, 2.0]), one])
    assert whole.priority is not None
    assert whole.timeout_s is not None
    assert whole.priority.tolist() == [0, -3, 0]
    assert whole.timeout_s.tolist() == [np.inf, 5.0, np.inf]
    assert whole.head(2).priority.tolist() == [0, -3]  # type: ignore[union-attr]
    assert simple([0.0]).priority is None


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("priority", [1], "priority has 1 rows, arrival_s has 2"),
        ("priority", [0, 2**40], f"priority of request 1 is {2**40}"),
        ("timeout_s", [1.0, 0.0], "timeout_s of request 1 is 0.0; must be > 0"),
        ("timeout_s", [np.nan, 1.0], "timeout_s of request 0 is nan"),
    ],
)
def test_priorities_and_timeouts_are_checked(
    column: str, values: list[float], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        replace(simple([0.0, 1.0]), **{column: np.array(values)})


def test_merging_nothing_is_an_error() -> None:
    with pytest.raises(TraceError, match="no trace given"):
        merge([])


@given(traces(with_ids=True), st.data())
def test_hash_ids_follow_their_requests(trace: Trace, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, len(trace) - 1), min_size=1, unique=True)))
    index.sort()
    assert trace.hash_ids is not None
    taken = trace.take(index).hash_ids
    assert taken is not None
    for new, old in enumerate(index):
        assert taken[new].tolist() == trace.hash_ids[int(old)].tolist()
