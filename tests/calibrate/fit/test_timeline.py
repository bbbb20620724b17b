"""The launch ratio: of a server like its profile, of a slower one, and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qsim.calibrate.fit.timeline import (
    DECODE,
    EAGER,
    PIECEWISE,
    behind_eager,
    late_updates_ms,
    launch_queue,
    launch_ratio,
    recorded_timeline,
    step_modes,
)
from qsim.calibrate.recordings.data import Recording
from qsim.calibrate.recordings.read import read_recording
from qsim.profiles.schema import HostTimes
from qsim.sim.engine.steplog import Step
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.calibrate.synthetic import true_profile
from tests.make_profile import make_profile

NONE = [frozenset[int]()]
RECORDINGS = Path(__file__).parents[3] / "recordings"

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
    # a profile that launches in no time: nothing to compare with, and no warning
    none = replace(HOST, launch_decode_ms=[0.0, 0.0], launch_piecewise_ms=[0.0, 0.0])
    assert launch_ratio(_with_launches(r, launch_ms), mode, none, everything) is None


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


class _Steps(SimpleNamespace):
    """Columns of steps."""

    def __len__(self) -> int:
        return len(self.gpu_ms)


def _simulated(queue: tuple[float, float], tensor_parallel: int = 1) -> SimpleNamespace:
    """What a recorder would see of a server that is sent prompts faster than it serves them."""
    rng = np.random.default_rng(7)
    n = 60
    load = Trace(np.arange(n) * 0.01, rng.integers(500, 8000, n), np.full(n, 3, dtype=np.int64))
    log: list[Step] = []
    options = EngineOptions(enable_prefix_caching=False)
    profile = make_profile(launch_queue=queue, num_gpu_blocks=40000)
    simulate(load, profile, options=options, frontend=False, jump=False, step_log=log)
    launch_end = np.array([s.launch_end_ps / 1e12 for s in log])
    steps = _Steps(
        has_gpu_spans=True,
        launch_start_s=np.array([s.launch_start_ps / 1e12 for s in log]),
        launch_end_s=launch_end,
        sample_end_s=launch_end,
        gpu_ms=np.array([(s.gpu_end_ps - s.gpu_start_ps) / 1e9 for s in log]),
        decodes=np.array([s.num_decode for s in log]),
        prefill_tokens=np.array([sum(k for k, _ in s.prefill) for s in log]),
        num_chunks=np.array([len(s.prefill) for s in log]),
        phase=np.zeros(len(log), dtype=np.int64),
    )
    return SimpleNamespace(
        steps=steps,
        server=SimpleNamespace(tensor_parallel=tensor_parallel),
        phases=[SimpleNamespace(use="fit")],
    )


@pytest.mark.parametrize("queue", [(1.3, 0.0), (0.9, 0.12), (2.5, 0.0)])
def test_the_queue_of_launches_is_found(queue: tuple[float, float]) -> None:
    constant, per_1k = launch_queue([_simulated(queue)], NONE, 512)  # type: ignore[list-item]
    for tokens in (4.0, 8.192):
        want = queue[0] + queue[1] * tokens
        assert constant + per_1k * tokens == pytest.approx(want, rel=0.02)


def test_no_queue_is_found_where_none_fills_or_workers_launch() -> None:
    assert launch_queue([_simulated((0.0, 0.0))], NONE, 512) == [0.0, 0.0]  # type: ignore[list-item]
    two = _simulated((1.3, 0.0), tensor_parallel=2)
    assert launch_queue([two], NONE, 512) == [0.0, 0.0]  # type: ignore[list-item]
    assert launch_queue([], [], 512) == [0.0, 0.0]


def test_a_phase_that_is_left_out_says_nothing_about_the_queue() -> None:
    full = _simulated((1.3, 0.0))
    assert launch_queue([full], [frozenset({0})], 512) == [0.0, 0.0]  # type: ignore[list-item]


def test_a_held_launch_explains_a_late_update() -> None:
    """Of Llama-3.1-70B in INT8 results wait for a fifth of the next step's span."""
    recording = read_recording(RECORDINGS / "llama-3.1-70b--int8-w8a8--2026-11-25")
    queue = launch_queue([recording], NONE, 512)
    assert queue == pytest.approx([1.27, 0.0], abs=0.02)
    timeline = recorded_timeline(recording, 512)
    host = replace(HOST, launch_eager_ms=[43.0, 0.0], launch_eager_queue=queue)
    late = late_updates_ms(recording, timeline, host)
    without = late_updates_ms(recording, timeline, replace(host, launch_eager_queue=[0.0, 0.0]))
    overload = recording.steps.phase == recording.phase_index("val_overload")
    assert (without[overload] > 100).sum() > 10
    assert (late[overload] > 30).sum() == 0
