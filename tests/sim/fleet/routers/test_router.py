"""Routers: balance, ties, and the information that each may use."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.sim.engine.timing import Timing
from qsim.sim.fleet.routers.router import ROUTERS, make_router
from qsim.sim.fleet.routers.server_speed import ServerSpeed
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces import load_trace
from qsim.traces.trace import HashIds, Trace
from tests.make_profile import constant_profile, make_profile


class View:
    def __init__(self, n: int) -> None:
        self.outstanding_requests = [0] * n
        self.outstanding_tokens = [0] * n
        self.queues = [(0, 0)] * n
        self.usage = [0.0] * n
        self.ids: dict[int, list[int]] = {}
        self.cached = [0] * n
        self.sessions: dict[int, int] = {}

    def queue_lengths(self) -> list[tuple[int, int]]:
        return self.queues

    def kv_usage(self) -> list[float]:
        return self.usage

    def length_of(self, request: int) -> tuple[int, int]:
        return 100, 20

    def estimate(self) -> list[ServerSpeed]:
        profile = make_profile()
        config = EngineOptions().resolve(profile)
        speed = ServerSpeed(config, Timing(profile, config))
        return [speed] * len(self.outstanding_requests)

    def prefix_ids(self, request: int) -> list[int]:
        return self.ids.get(request, [])

    def prefix_block_tokens(self, request: int) -> int:
        return 16

    def cached_tokens(self, request: int, now_ps: int) -> list[int]:
        return self.cached

    def session_of(self, request: int) -> int:
        return self.sessions.get(request, -1)


def router(name: str, view: View, seed: int = 0, version: str = "0.24"):
    return make_router(name, view, lambda: np.random.default_rng(seed), version)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_every_router_stays_inside_the_fleet_and_repeats_itself(name):
    for n in (1, 2, 5):
        picks = []
        for _ in range(2):
            r = router(name, View(n), seed=4)
            picks.append([r.choose(i, 0) for i in range(200)])
        assert picks[0] == picks[1]
        assert set(picks[0]) <= set(range(n))


@pytest.mark.parametrize("name", ["round-robin", "least-requests", "least-tokens", "vllm"])
def test_an_idle_fleet_is_used_in_turn(name):
    r = router(name, View(3))
    assert [r.choose(i, 0) for i in range(6)] == [0, 1, 2, 0, 1, 2]


def test_random_is_uniform():
    r = router("random", View(4))
    counts = np.bincount([r.choose(i, 0) for i in range(8000)], minlength=4)
    assert ((counts - 2000) ** 2 / 2000).sum() < 16.3  # chi square, 3 degrees, p = 0.001


def test_least_goes_by_its_own_load():
    view = View(3)
    view.outstanding_requests[:] = [2, 1, 3]
    view.outstanding_tokens[:] = [10, 90, 5]
    assert router("least-requests", view).choose(0, 0) == 1
    assert router("least-tokens", view).choose(0, 0) == 2


@pytest.mark.parametrize("n", [1, 2, 5, 200])
def test_least_requests_is_the_next_in_turn_of_those_with_the_fewest(n):
    rng = np.random.default_rng(n)
    view = View(n)
    load = view.outstanding_requests
    load[:] = rng.integers(0, 4, n).tolist()
    r = router("least-requests", view)
    last = -1
    for i in range(3000):
        busy = np.flatnonzero(load)
        # now more come and now more go
        if len(busy) and rng.random() < (0.6 if i // 500 % 2 else 0.35):
            replica = int(rng.choice(busy))
            load[replica] -= 1
            r.finished(replica)
        else:
            turn = [(last + 1 + k) % n for k in range(n)]
            last = min(turn, key=lambda k: load[k])
            assert r.choose(i, 0) == last
            load[last] += 1


def test_power_of_two_never_takes_the_fullest_of_three():
    view = View(3)
    view.outstanding_requests[:] = [1, 9, 4]
    r = router("power-of-two", view)
    picks = {r.choose(i, 0) for i in range(300)}
    assert picks == {0, 2}


def test_vllm_scores_by_published_counts_and_its_own_sends():
    view = View(2)
    r = router("vllm", view)
    view.queues = [(0, 7), (1, 0)]  # scores 7 and 4, once they are published
    assert r.choose(0, 0) == 0
    r.refresh()
    # 7 against 4: the second; its score is 8 then, so the first; then 11 against 8
    assert [r.choose(i, 0) for i in range(1, 4)] == [1, 0, 1]


def test_vllm_takes_the_first_of_equals_and_since_0_25_the_next_in_turn():
    picks = {}
    for version in ("0.24.0", "0.25.0", "0.33.0"):
        view = View(3)
        r = router("vllm", view, version=version)
        picks[version] = []
        for i in range(6):
            picks[version].append(r.choose(i, 0))
            r.refresh()  # what was sent has been answered
    assert picks == {
        "0.24.0": [0, 0, 0, 0, 0, 0],
        "0.25.0": [0, 1, 2, 0, 1, 2],
        "0.33.0": [0, 1, 2, 0, 1, 2],
    }


def test_vllm_since_0_27_goes_by_its_own_requests_in_flight_or_the_published_ones():
    view = View(3)
    view.outstanding_requests[:] = [5, 1, 0]
    view.queues = [(0, 0), (0, 4), (0, 3)]
    r = router("vllm", view, version="0.27")
    r.refresh()
    # loads 5, 4 and 3; what it sends counts as waiting until the next refresh, and in flight
    picks = []
    for i in range(4):
        picks.append(r.choose(i, 0))
        view.outstanding_requests[picks[-1]] += 1
    assert picks == [2, 1, 2, 0]


@pytest.mark.parametrize(
    ("usage", "picks"),
    [
        # waiting 2, running 2 against waiting 0, running 5: 4 + 2 x 6 x (usage - 0.5) against 5;
        # of equals the scan takes one engine further each time
        (0.5, [0, 1, 0]),
        (0.58, [0, 1, 1]),
        (0.6, [1, 0, 1]),
        (1.0, [1, 1, 1]),
    ],
)
def test_vllm_since_0_27_avoids_a_queue_before_a_full_cache(usage, picks):
    view = View(2)
    view.queues = [(2, 2), (0, 5)]
    view.usage = [usage, 0.0]
    r = router("vllm", view, version="0.33.0")
    r.refresh()
    got = [r.choose(i, 0) for i in range(3)]
    assert got == picks


def test_prefix_affinity_follows_the_deepest_known_block():
    view = View(3)
    view.ids = {0: [1, 2, 3], 1: [9], 2: [1, 2, 7], 3: [9, 4], 4: [5], 5: [9, 4, 8]}
    r = router("prefix-affinity", view)
    # of [9, 4] one half was sent before, which is not enough; of [9, 4, 8] two thirds
    assert [r.choose(i, 0) for i in range(6)] == [0, 1, 0, 2, 0, 2]


def test_prefix_affinity_takes_the_least_loaded_of_those_that_have_it():
    view = View(3)
    view.ids = {i: [1, 2, 10 + i] for i in range(5)}
    r = router("prefix-affinity", view)
    assert r.choose(0, 0) == 0
    view.outstanding_requests[:] = [5, 0, 1]
    assert r.choose(1, 0) == 1  # more than four above the least loaded one
    view.outstanding_requests[:] = [5, 3, 0]
    assert r.choose(2, 0) == 1
    view.outstanding_requests[:] = [4, 5, 0]
    assert r.choose(3, 0) == 0
    view.outstanding_requests[:] = [14, 14, 10]  # not 1.5 times as many
    assert r.choose(4, 0) == 0


def test_a_first_block_that_all_share_decides_nothing():
    view = View(4)
    view.ids = {i: [1, *range(100 * i, 100 * i + 9)] for i in range(1, 101)}
    r = router("prefix-affinity", view)
    picks = [r.choose(i, 0) for i in range(1, 101)]
    assert picks == [0, 1, 2, 3] * 25


def test_more_replicas_help_a_workload_that_shares_its_first_block():
    trace = load_trace("mooncake-conversation:duration=300,rate=2")
    p99_ms, cached = {}, {}
    for n in (1, 2, 8):
        result = simulate(trace, "h200_sxm/llama-3.1-8b/fp8-w8a8", replicas=n,
                          router="prefix-affinity", too_long="reject")  # fmt: skip
        p99_ms[n], cached[n] = result.statistic("ttft", "p99"), result.cached_tokens.sum()
        assert set(result.replica[result.replica >= 0]) == set(range(n))
    assert p99_ms[1] > 1.3 * p99_ms[2] > 1.3 * 1.1 * p99_ms[8]
    spread = simulate(trace, "h200_sxm/llama-3.1-8b/fp8-w8a8", replicas=8, too_long="reject")
    assert cached[8] > 1.5 * spread.cached_tokens.sum()


def test_a_system_prompt_that_all_share_does_not_pin_a_fleet():
    rng = np.random.default_rng(1)
    n = 600
    ids = [[0, 1, 2, 3, 10 + i] for i in range(n)]
    trace = Trace(
        np.cumsum(rng.exponential(1 / 40, n)),
        np.full(n, 2448),
        np.full(n, 150),
        hash_ids=HashIds.from_lists(ids, 512),
    )
    result = simulate(trace, make_profile(), replicas=8, router="prefix-affinity")
    assert min(np.bincount(result.replica, minlength=8)) > n / 8 / 3
    assert result.cached_tokens.sum() > 0.95 * n * 2048


def test_an_unknown_router_names_the_known_ones():
    with pytest.raises(ScenarioError, match=r"router is 'best'; must be one of: round-robin"):
        router("best", View(1))


def test_the_vllm_balancer_sees_queues_every_100_ms():
    # a long prompt fills replica 0; requests sent within the same 100 ms go by own counts only,
    # so they alternate; after a refresh they avoid the busy one
    profile = constant_profile(50.0, max_num_seqs=1)
    arrival = [0.0, 0.001, 0.002, 0.003, 0.35]
    trace = Trace(np.array(arrival), np.full(5, 64), np.array([40, 1, 1, 1, 1]))
    result = simulate(trace, profile, replicas=2, router="vllm")
    assert result.replica.tolist() == [0, 1, 0, 1, 1]


def test_prefix_affinity_raises_the_hit_rate():
    rng = np.random.default_rng(0)
    n = 400
    # twenty conversations whose prompts share their first 50 blocks
    ids = [[1000 * c + j for j in range(50)] for c in rng.integers(0, 20, n)]
    trace = Trace(
        np.cumsum(rng.exponential(0.05, n)),
        np.full(n, 50 * 16 + 40),
        np.full(n, 20),
        hash_ids=HashIds.from_lists(ids, 16),
    )
    profile = make_profile(num_gpu_blocks=512)
    hits = {
        name: simulate(trace, profile, replicas=4, router=name).cached_tokens.sum()
        for name in ("least-requests", "prefix-affinity")
    }
    assert hits["prefix-affinity"] > 1.2 * hits["least-requests"]
