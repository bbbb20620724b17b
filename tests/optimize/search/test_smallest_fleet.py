from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from qsim.optimize.search.smallest_fleet import probes_left, smallest_fleet


def run(start: int, limit: int, suffices: Callable[[int], bool]) -> tuple[int | None, list[int]]:
    search, probed = smallest_fleet(start, limit), []
    n = next(search)
    while True:
        probed.append(n)
        try:
            n = search.send(suffices(n))
        except StopIteration as stop:
            return stop.value, probed


@st.composite
def starts(draw: st.DrawFn) -> tuple[int, int]:
    limit = draw(st.integers(1, 300))
    return draw(st.integers(1, limit)), limit


@given(starts(), st.integers(1, 400))
def test_finds_the_threshold(start_limit: tuple[int, int], threshold: int) -> None:
    start, limit = start_limit
    found, probed = run(start, limit, lambda n: n >= threshold)
    assert found == (threshold if threshold <= limit else None)
    assert len(probed) == len(set(probed)), "a fleet was simulated twice"
    assert all(1 <= n <= limit for n in probed)
    assert len(probed) <= 2 * limit.bit_length() + 2


@given(starts(), st.sets(st.integers(1, 300)))
def test_evidence_even_when_more_is_not_always_better(
    start_limit: tuple[int, int], good: set[int]
) -> None:
    start, limit = start_limit
    found, probed = run(start, limit, lambda n: n in good)
    if found is None:
        assert limit in probed
        assert limit not in good
    else:
        assert found in probed
        assert found in good
        assert found == 1 or (found - 1 in probed and found - 1 not in good)


def test_an_answer_at_the_start_takes_one_more_probe() -> None:
    assert run(1, 64, lambda n: n >= 1) == (1, [1])
    assert run(2, 64, lambda n: n >= 2) == (2, [2, 1])


def test_probes_left_never_says_none_before_the_end() -> None:
    assert probes_left(0, None) > 0
    assert probes_left(3, 4) == 0
    assert probes_left(4, 8) == 2
