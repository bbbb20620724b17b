"""A trace that comes in parts gives every request what the whole trace gives it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.sim.fleet.admission import resolve_fleet
from qsim.sim.fleet.fleet import Fleet
from qsim.sim.fleet.routers.router import ROUTERS
from qsim.sim.results.finished import Finished
from qsim.sim.results.itl import Gaps
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.load import load_trace
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

_COLUMNS = tuple(Finished.__dataclass_fields__)


def _parts(trace: Trace, size: int) -> Iterator[tuple[Trace, list[int]]]:
    for begin in range(0, len(trace), size):
        part = trace.take(np.arange(begin, min(begin + size, len(trace))))
        yield part, part.output_tokens.tolist()


def _run(
    trace: Trace,
    size: int,
    *,
    router: str = "least-requests",
    blocks: int = 4096,
    replicas: int = 3,
) -> tuple[dict[str, np.ndarray], Fleet]:
    """All finished requests, and the fleet."""
    profile = make_profile(num_gpu_blocks=blocks)
    had: list[Finished] = []
    parts = _parts(trace, size)
    first, output = next(parts)
    fleet = Fleet(
        first,
        output,
        resolve_fleet(profile, replicas=replicas, router=router, seed=3),
        more=parts,
        release=had.append,
    )
    fleet.run()
    return {n: np.concatenate([getattr(f, n) for f in had]) for n in _COLUMNS}, fleet


def _assert_equal(trace: Trace, sizes: tuple[int, ...], **given: object) -> None:
    whole, fleet = _run(trace, len(trace), **given)  # type: ignore[arg-type]
    assert len(whole["replica"]) == len(trace)
    for size in sizes:
        columns, other = _run(trace, size, **given)  # type: ignore[arg-type]
        for name in _COLUMNS:
            assert np.array_equal(columns[name], whole[name]), (size, name)
        assert other.end_ps == fleet.end_ps
        assert [r.meter.energy_j for r in other.replicas] == [
            r.meter.energy_j for r in fleet.replicas
        ]
        one, all_ = Gaps(other.gaps), Gaps(fleet.gaps)
        assert one.total == all_.total
        assert one.mean() == all_.mean()
        assert one.percentiles([50, 99, 100]) == all_.percentiles([50, 99, 100])


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_parts_of_any_size(router: str) -> None:
    trace = load_trace("azure-conv-2023:requests=700,rate=20,seed=4")
    _assert_equal(trace, (1, 7, 1000), router=router)


def test_parts_under_preemption() -> None:
    trace = load_trace("azure-conv-2023:requests=500,rate=30,seed=5")
    profile = make_profile(num_gpu_blocks=700)
    limit = EngineOptions().resolve(profile).max_model_len
    fits = trace.prompt_tokens + trace.output_tokens < limit
    trace = trace.take(np.flatnonzero(fits))
    columns, _ = _run(trace, len(trace), blocks=700)
    assert columns["preemptions"].sum() > 0
    _assert_equal(trace, (1, 7, 100), blocks=700)


def test_parts_with_prefix_ids() -> None:
    trace = load_trace("mooncake-conversation:requests=150,rate=3,seed=6")
    columns, _ = _run(trace, len(trace), blocks=30_000, router="prefix-affinity")
    assert columns["cached_tokens"].sum() > 0
    _assert_equal(trace, (1, 7, 40), blocks=30_000, router="prefix-affinity")


@given(
    gaps=st.lists(st.sampled_from([0.0, 0.0, 1e-6, 0.01, 2.0, 30.0]), min_size=1, max_size=40),
    size=st.integers(1, 10),
    seed=st.integers(0, 3),
)
@settings(max_examples=40)
def test_ties_and_pauses_between_parts(gaps: list[float], size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = len(gaps)
    trace = Trace(np.cumsum(gaps), rng.integers(1, 300, n), rng.integers(1, 40, n))
    _assert_equal(trace, (size,), replicas=2, router="vllm")


def test_places_are_used_again() -> None:
    trace = load_trace("azure-conv-2023:requests=2000,rate=5,seed=4")
    _, fleet = _run(trace, 20)
    assert len(fleet._columns.arrival_ps) < 400


def test_nothing_of_a_finished_request_reaches_the_one_in_its_place() -> None:
    # the third request takes the first one's place, and waits for its first token while the
    # first one's replica goes on with the fourth
    trace = Trace(
        np.array([0.0, 10.0, 20.0, 20.001]), np.array([50, 50, 30_000, 10]), np.array([5, 5, 5, 5])
    )
    _assert_equal(trace, (1,), router="round-robin", replicas=3)
    _, fleet = _run(trace, 1, router="round-robin", replicas=3)
    assert Gaps(fleet.gaps).total == 16
