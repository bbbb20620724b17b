"""After the last load: the server runs on until the steps of all loads are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qsim.calibrate.measure import measurement
from qsim.calibrate.measure.load import LoadResult, RequestRow
from qsim.calibrate.measure.tidy import Measured
from qsim.calibrate.measure.workload import Phase

STEP_OF_2 = SimpleNamespace(schedule_end_s=6.0, num_decode=2)
WARM_UP = SimpleNamespace(schedule_end_s=4.0, num_decode=50)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes in sleeps alone, and stands in the list."""
    time_s = [100.0]

    def sleep(seconds: float, check: Callable[[], None]) -> None:
        check()
        time_s[0] += seconds

    monkeypatch.setattr(measurement, "_sleep", sleep)
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: time_s[0])
    return time_s


def loads() -> list[Measured]:
    """One of 5 output tokens in two requests, three of which come from decodes; and idleness."""
    rows = (RequestRow(0, 9, 4, 5.0, 5.1, 5.4, 0.1), RequestRow(1, 9, 1, 5.0, 5.1, 5.1, 0.0))
    phase = Phase("a", "a load", "rows", "fit", (), expected_s=1.0)
    return [Measured(phase, 5.0, 7.0, LoadResult(5.0, 7.0, rows)), Measured(phase, 8.0, 9.0, None)]


@pytest.mark.parametrize(
    ("written", "waits_s"),
    [
        ([[STEP_OF_2, STEP_OF_2]], 0.0),
        ([[], [STEP_OF_2], [WARM_UP, STEP_OF_2], [STEP_OF_2, STEP_OF_2]], 1.5),
        ([[WARM_UP, STEP_OF_2]], 30.0),  # what is lost is lost
    ],
)
def test_steps_are_waited_for_but_not_for_ever(
    written: list[list[Any]], waits_s: float, clock: list[float],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    left = iter(written)
    last = written[-1]
    monkeypatch.setattr(measurement, "_steps_so_far", lambda work: next(left, last))
    measurement._await_steps(tmp_path, loads(), lambda: None)
    assert clock[0] - 100.0 == pytest.approx(waits_s)


def test_whoever_cancels_does_not_wait(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cancelled() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measurement, "_steps_so_far", lambda work: [])
    with pytest.raises(KeyboardInterrupt):
        measurement._await_steps(tmp_path, loads(), cancelled)
    assert clock[0] == 100.0
