"""The launch ratio: of a server like its profile, of a slower one, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qsim.calibrate.fit_timeline import (
    DECODE,
    EAGER,
    PIECEWISE,
    behind_eager,
    launch_ratio,
    step_modes,
)
from qsim.calibrate.recording import Recording
from qsim.profile import HostTimes
from tests.calibrate.synthetic import true_profile

HOST = replace(
    true_profile().host,
    launch_decode_ms=[1.0, 0.5],
    launch_piecewise_ms=[4.0, 0.0],
    launch_eager_ms=[10.0, 0.0],
)


def _with_launches(recording: Recording, launch_ms: np.ndarray) -> Recording:
    s = recording.steps
    return replace(
        recording, steps=replace(s, sample_end_s=s.launch_start_s + np.asarray(launch_ms) / 1e3)
    )


def _modelled_ms(recording: Recording, mode: np.ndarray, host: HostTimes) -> np.ndarray:
    rows = recording.steps.decodes + recording.steps.num_chunks
    pairs = (host.launch_decode_ms, host.launch_piecewise_ms, host.launch_eager_ms)
    return np.array([pairs[m][0] + pairs[m][1] * n for m, n in zip(mode, rows, strict=True)])


def test_behind_eager() -> None:
    mode = np.array([EAGER, DECODE, PIECEWISE, EAGER, EAGER])
    assert behind_eager(mode).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize(("piecewise", "want"), [(20, 1.5), (19, 0.8)])
def test_by_hand(recorded: Recording, piecewise: int, want: float) -> None:
    """Piecewise launches slower by half, those of full graphs faster by 20%."""
    n = 100
    s = recorded.steps
    fields = {
        name: value[:n] for name, value in vars(s).items() if isinstance(value, np.ndarray | tuple)
    }
    rows = np.full(n, 4)
    r = replace(
        recorded,
        steps=type(s)(**{**fields, "decodes": rows, "num_chunks": np.zeros(n, dtype=np.int64)}),
    )
    mode = np.full(n, DECODE)
    mode[10 : 10 + piecewise] = PIECEWISE
    launch_ms = np.where(mode == DECODE, 0.8 * (1.0 + 0.5 * 4), 1.5 * 4.0)
    everything = np.ones(n, dtype=bool)
    assert launch_ratio(_with_launches(r, launch_ms), mode, HOST, everything) == pytest.approx(want)
    # of the first ten steps, none is without a graph
    few = np.arange(n) < 10
    assert launch_ratio(_with_launches(r, launch_ms), mode, HOST, few) == pytest.approx(0.8)
    assert launch_ratio(_with_launches(r, launch_ms), mode, HOST, ~everything) is None


def test_a_server_like_its_profile_and_a_slower_one(recorded: Recording) -> None:
    mode = step_modes(recorded, 512)
    host = true_profile().host
    val = recorded.steps.phase == recorded.phase_index("val_mix")
    mine = val & (mode != DECODE) & ~behind_eager(mode)
    assert mine.sum() >= 20
    modelled_ms = _modelled_ms(recorded, mode, host)
    slow = modelled_ms * np.where(mode == DECODE, 1.0, 1.3)
    assert launch_ratio(recorded, mode, host, val) == pytest.approx(1.0, abs=1e-3)
    assert launch_ratio(_with_launches(recorded, slow), mode, host, val) == pytest.approx(1.3)
    # a launch that blocks on the queue of a busy GPU says nothing of the host
    blocked = np.where(behind_eager(mode), 20.0, 1.3) * modelled_ms
    assert launch_ratio(_with_launches(recorded, blocked), mode, host, val) == pytest.approx(1.3)


def test_without_launch_times_there_is_none(recorded: Recording) -> None:
    mode = step_modes(recorded, 512)
    every = np.ones(len(mode), dtype=bool)
    nothing = _with_launches(recorded, np.full(len(mode), np.nan))
    assert launch_ratio(nothing, mode, true_profile().host, every) is None
