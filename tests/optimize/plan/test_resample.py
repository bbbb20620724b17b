from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.optimize.plan.resample import Resample, preset_draw
from qsim.traces.load import load_trace
from qsim.traces.reshape import Reshaping
from qsim.traces.trace import HashIds, Trace


def day(n: int = 4000, duration_s: float = 1000.0) -> Trace:
    """Ever more traffic, with one burst."""
    rng = np.random.default_rng(3)
    at = np.sort(np.concatenate([duration_s * np.sqrt(rng.random(n)), np.full(200, 600.0)]))
    prompts = rng.integers(1, 500, len(at))
    return Trace(at, prompts, 2 * prompts, HashIds.from_lists([[i] for i in range(len(at))], 16))


@given(st.integers(0, 1000))
@pytest.mark.slow
def test_rows_stay_whole_and_the_course_of_the_day_stays(seed: int) -> None:
    trace = day()
    other = Resample(trace).draw(seed)
    assert (other.output_tokens == 2 * other.prompt_tokens).all()
    assert other.hash_ids is not None
    assert len(other.hash_ids) == len(other)
    assert trace.arrival_s[0] <= other.arrival_s[0]
    assert other.arrival_s[-1] <= trace.arrival_s[-1]
    assert len(other) == pytest.approx(len(trace), rel=0.35)
    # twice as much in the second half as in the first would be 3:1 here
    late = [float(np.mean(t.arrival_s > 500)) for t in (trace, other)]
    assert late[1] == pytest.approx(late[0], abs=0.12)


def test_draws_differ_and_repeat_and_can_be_pickled() -> None:
    resampling = pickle.loads(pickle.dumps(Resample(day())))
    one, two, again = resampling.draw(1), resampling.draw(2), Resample(day()).draw(1)
    assert (one.arrival_s == again.arrival_s).all()
    assert len(one) != len(two) or (one.arrival_s != two.arrival_s).any()


def test_on_average_there_is_as_much_traffic() -> None:
    trace = day()
    sizes = [len(Resample(trace).draw(seed)) for seed in range(60)]
    assert np.mean(sizes) == pytest.approx(len(trace), rel=0.05)
    assert np.std(sizes) > 0


def test_a_burst_is_its_own_only_draw() -> None:
    burst = Trace(np.zeros(5), np.full(5, 10), np.full(5, 3))
    assert Resample(burst).draw(7) is burst


def test_a_preset_is_drawn_anew_with_its_shape_growth_and_seed() -> None:
    source = "azure-conv-2023:duration=60,rate=10,seed=4"
    found = preset_draw(source, 0, Reshaping(start=10.0, head=50), 2.0)
    assert found is not None
    expected = load_trace("azure-conv-2023:duration=60,rate=10,seed=7").slice(10.0).head(50)
    got = pickle.loads(pickle.dumps(found)).draw(3)
    assert (got.arrival_s == expected.speed(2.0).arrival_s).all()
    assert (got.prompt_tokens == expected.prompt_tokens).all()
    bare = preset_draw("burstgpt", 5, Reshaping())
    assert bare is not None
    assert bare.seed == 5
    assert preset_draw("trace.csv", 0, Reshaping()) is None
