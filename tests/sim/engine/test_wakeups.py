"""The heap of when replicas want to be called."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qsim.sim.engine.wakeups import WakeUps


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(-1, 10**18)), max_size=40),
            st.integers(0, 10**18),
        )
    )
)
def test_each_replica_is_called_at_the_last_time_that_it_gave(
    case: tuple[int, list[tuple[int, int]], int],
) -> None:
    n, calls, horizon = case
    wakeups = WakeUps(n)
    times = [-1] * n
    for replica, time in calls:
        wakeups.set(replica, time)
        times[replica] = time
    due = sorted((time, i) for i, time in enumerate(times) if 0 <= time < horizon)
    assert [wakeups.next_before(horizon) for _ in range(len(due) + 1)] == [i for _, i in due] + [-1]


def test_a_time_that_has_come_can_be_set_again() -> None:
    wakeups = WakeUps(2)
    for _ in range(2):
        wakeups.set(1, 5)
        assert wakeups.next_before(5) == -1
        assert wakeups.next_before(6) == 1
    assert wakeups.next_before(1 << 100) == -1
