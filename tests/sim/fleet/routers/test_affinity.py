"""Routers that know sessions, prefixes and KV caches, and their parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qsim
from qsim.errors import ScenarioError
from qsim.optimize.deploy.vllm import real_router
from qsim.scenario import Scenario
from qsim.sim.fleet.admission import resolve_fleet
from qsim.sim.fleet.failures import Failure, Failures
from qsim.sim.fleet.parts import run_whole
from qsim.sim.fleet.pool import Pool
from qsim.sim.fleet.routers.router import ROUTERS, check_router, make_router
from qsim.sim.fleet.routers.spec import PARAMETERS
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.trace import HashIds, Trace, Turns, merge
from tests.make_profile import make_profile
from tests.sim.fleet.routers.test_router import View


def router(text: str, view: View, weights: list[float] | None = None) -> Any:
    return make_router(text, view, lambda: np.random.default_rng(0), weights=weights or [])


def spread(r: Any, view: View, sessions: int) -> list[int]:
    view.sessions = {i: i for i in range(sessions)}
    return [r.choose(i, 0) for i in range(sessions)]


# ------------------------------------------------------------------------ session affinity


def test_a_session_stays_and_sessions_are_spread_evenly():
    view = View(5)
    r = router("session-affinity", view)
    first = spread(r, view, 5000)
    assert spread(r, view, 5000) == first
    counts = np.bincount(first, minlength=5)
    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5  # chi square, 4 degrees, p = 0.001


def test_only_sessions_of_a_server_that_goes_move_and_they_come_back():
    view = View(5)
    r = router("session-affinity", view)
    before = spread(r, view, 2000)
    r.only([0, 1, 3, 4])
    without = spread(r, view, 2000)
    moved = [a for a, b in zip(before, without, strict=True) if a != b]
    assert set(moved) == {2}
    assert len(moved) == before.count(2)
    taken = np.bincount([b for a, b in zip(before, without, strict=True) if a == 2], minlength=5)
    assert taken[2] == 0
    assert min(taken[[0, 1, 3, 4]]) > len(moved) / 8  # by all of the others
    r.only([0, 1, 2, 3, 4])
    assert spread(r, view, 2000) == before


def test_an_overloaded_server_gives_its_sessions_to_the_next_in_their_order():
    view = View(4)
    r = router("session-affinity:balance_abs_threshold=2,balance_rel_threshold=2", view)
    home = spread(r, view, 100)
    full = home[0]
    view.outstanding_requests[full] = 3  # three above the least loaded, more than two times
    elsewhere = spread(r, view, 100)
    assert [b for a, b in zip(home, elsewhere, strict=True) if a != full] == [
        a for a in home if a != full
    ]
    moved = [b for a, b in zip(home, elsewhere, strict=True) if a == full]
    assert full not in moved
    assert len(set(moved)) > 1
    r.only([i for i in range(4) if i != full])
    assert spread(r, view, 100) == elsewhere  # the order is that of a server that is down
    r.only([0, 1, 2, 3])
    view.outstanding_requests[:] = [1, 1, 1, 1]
    view.outstanding_requests[full] = 3  # three times, but only two above
    assert spread(r, view, 100) == home
    never = router("session-affinity:balance_abs_threshold=1e9", view)
    view.outstanding_requests[full] = 1000
    assert spread(never, view, 100) == home


def test_weights_are_shares_of_the_sessions():
    view = View(3)
    picks = spread(router("session-affinity", view, [1.0, 2.0, 5.0]), view, 8000)
    counts = np.bincount(picks, minlength=3)
    expected = np.array([1000, 2000, 5000])
    assert ((counts - expected) ** 2 / expected).sum() < 13.9  # 2 degrees, p = 0.001


def test_who_has_no_session_goes_to_the_least_loaded():
    view = View(3)
    view.outstanding_requests[:] = [4, 1, 2]
    assert router("session-affinity", view).choose(0, 0) == 1


# ------------------------------------------------------------------------ parameters


def test_prefix_affinity_takes_the_thresholds_of_the_cache_aware_policy():
    view = View(3)
    view.ids = {0: [1, 2, 3, 4], 1: [1, 8, 9, 10], 2: [1, 2, 11, 12]}
    low = router("prefix-affinity:cache_threshold=0.2", view)
    assert [low.choose(i, 0) for i in range(3)] == [0, 0, 0]
    high = router("prefix-affinity:cache_threshold=0.9", view)
    assert [high.choose(i, 0) for i in range(3)] == [0, 1, 2]
    view.outstanding_requests[:] = [60, 0, 0]
    kept = router("prefix-affinity:balance_abs_threshold=64", view)
    assert [kept.choose(0, 0), kept.choose(0, 0)] == [1, 1]
    view.outstanding_requests[:] = [0, 64, 0]
    assert kept.choose(0, 0) == 1
    view.outstanding_requests[:] = [0, 65, 0]
    assert kept.choose(0, 0) != 1


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_defaults_may_be_said(name):
    given = ",".join(f"{k}={p.default}" for k, p in PARAMETERS[name].items())
    assert check_router(f"{name}:{given}") == check_router(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("best", "router is 'best'; must be one of: round-robin"),
        ("random:seed=1", "random takes no parameters"),
        ("kv-aware:", "'' is no PARAMETER=VALUE; kv-aware takes overlap_score_credit"),
        ("kv-aware:prefill_load_scale", "'prefill_load_scale' is no PARAMETER=VALUE"),
        ("kv-aware:prefill_scale=1", "unknown parameter 'prefill_scale'; did you mean prefill_lo"),
        ("kv-aware:overlap_score_credit=1.5", "overlap_score_credit is '1.5'; must be a number f"),
        ("prefix-affinity:cache_threshold=nan", "cache_threshold is 'nan'; must be a number from"),
        ("prefix-affinity:cache_threshold=1,cache_threshold=1", "cache_threshold is given twice"),
        ("session-affinity:balance_rel_threshold=0.5", "must be a number from 1 to 1e+09"),
    ],
)
def test_what_a_router_does_not_take_is_said(text, words):
    for run in (
        lambda: check_router(text),
        lambda: qsim.simulate(chats(2, 2, 1.0), make_profile(), replicas=2, router=text),
    ):
        with pytest.raises(ScenarioError) as e:
            run()
        assert words in str(e.value)
        assert "\n" not in str(e.value)


def test_a_scenario_may_give_parameters_as_fields():
    text = "prefix-affinity:cache_threshold=0.3,balance_abs_threshold=64"
    fields = {"name": "prefix-affinity", "cache_threshold": 0.3, "balance_abs_threshold": 64}
    assert Scenario(fleet={"router": fields}).fleet.router == text
    assert Scenario.from_dict(Scenario(fleet={"router": text}).to_dict()).fleet.router == text
    for wrong in ({"cache_threshold": 0.3}, {"name": "random", "x": "y"}, {"name": 3}, 5, []):
        with pytest.raises(ScenarioError, match=r"fleet\.router is .*must be a router's name"):
            Scenario(fleet={"router": wrong})


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_exports_say_which_router_does_the_same(name):
    real = real_router(name)
    assert (real == "") == (name in ("least-tokens", "expected-finish"))
    if name == "prefix-affinity":
        text = f"{name}:cache_threshold=0.3,balance_abs_threshold=64"
        assert "--cache-threshold 0.3 --balance-abs-threshold 64 " in real_router(text)


# ------------------------------------------------------------------------ KV-aware


def test_kv_aware_adds_what_is_to_prefill_and_what_is_held():
    view = View(2)
    view.ids = {i: [1, 2] for i in range(10)} | {20: [5, 6]}
    r = router("kv-aware", view)  # prompts of 100 tokens, two ids of 16 tokens each
    assert r.choose(0, 0) == 0  # 100 + 100 each: the first
    # 0: 100 to prefill + 100, and 100 held + 68 that are not shared; 1: 100 + 100
    assert r.choose(20, 0) == 1
    # the same beginnings: 0 has 200 + 168, 1 has 200 + 200
    assert r.choose(1, 0) == 0
    view.cached[:] = [0, 96]
    # 0: 300 + 236; 1: 100 + 4 + 200
    assert r.choose(2, 0) == 1
    r.first_token(0, 0)
    r.first_token(0, 1)
    # 0: 100 + 236; 1: 104 + 4 + 268
    assert r.choose(3, 0) == 0
    for i, server in ((0, 0), (1, 0), (20, 1), (2, 1), (3, 0)):
        r.ended(server, i)
    assert r._held == r._prefill == [0, 0]
    assert r._blocks == [{}, {}]
    assert not r._pending


def test_kv_aware_without_credit_does_not_look_at_caches():
    view = View(2)
    view.cached[:] = [0, 96]
    assert router("kv-aware", view).choose(0, 0) == 1
    assert router("kv-aware:overlap_score_credit=0", view).choose(0, 0) == 0
    assert router("kv-aware:prefill_load_scale=0", view).choose(0, 0) == 0
    # per weight: 4 + 100 tokens over 1 are more than 100 + 100 over 4
    assert router("kv-aware", view, [4.0, 1.0]).choose(0, 0) == 0


@given(st.integers(0, 10**6), st.sampled_from([None, 0.4]), st.booleans(), st.booleans())
@settings(max_examples=15)
def test_kv_aware_forgets_every_request_that_has_ended(seed, timeout_s, fails, limited):
    trace = chats(6, 4, 0.4, seed=seed)
    limit = {"vllm_version": "0.33", "max_num_queued_reqs": 3} if limited else {}
    options = EngineOptions(max_num_seqs=4, **limit)
    setup = resolve_fleet(
        pools=[Pool(make_profile(), 2, options), Pool(make_profile(decode_ms=5.0), 1, options)],
        router="kv-aware",
        client_timeout_s=timeout_s,
        failures=Failures([Failure(1.0, 1.0, 0)]) if fails else None,
    )  # fmt: skip
    found = run_whole(trace, setup).fleet._router
    assert found._held == found._prefill == [0, 0, 0]  # type: ignore[attr-defined]
    assert found._blocks == [{}, {}, {}]  # type: ignore[attr-defined]
    assert not found._pending  # type: ignore[attr-defined]


# ------------------------------------------------------------------------ chats


def chats(sessions: int, turns: int, think_s: float, seed: int = 0) -> Trace:
    """Sessions whose prompts are all that was said before and 64 tokens more; 16 tokens an id."""
    rng = np.random.default_rng(seed)
    prompt, output, per_id = 64, 32, 16
    rows = []
    for s in range(sessions):
        start = float(rng.uniform(0, 1.0))
        tokens = prompt
        for turn in range(turns):
            ids = [1000 * s + k for k in range(tokens // per_id)]
            rows.append((start + turn * think_s, s, turn, tokens, ids))
            tokens += output + prompt
    rows.sort(key=lambda row: (row[0], row[2]))
    place = {(s, turn): i for i, (_, s, turn, _, _) in enumerate(rows)}
    previous = [place[s, turn - 1] if turn else -1 for _, s, turn, _, _ in rows]
    return Trace(
        np.array([row[0] for row in rows]),
        np.array([row[3] for row in rows]),
        np.full(len(rows), output),
        hash_ids=HashIds.from_lists([row[4] for row in rows], per_id),
        turns=Turns(np.array(previous), np.array([think_s if p >= 0 else 0.0 for p in previous])),
    )


def test_all_that_was_said_before_is_a_hit_where_a_session_stays():
    # a turn's prompt is the whole prompt before, its answer, whose last token was never computed,
    # and 64 tokens: with enough KV each later turn hits all full blocks of what was computed
    sessions, turns = 13, 5
    trace = chats(sessions, turns, 5.0)
    profile = make_profile(num_gpu_blocks=30_000)
    exact = sessions * sum((96 * turn - 1) // 16 * 16 for turn in range(1, turns))
    hits = {}
    for name in ("session-affinity", "kv-aware", "prefix-affinity:cache_threshold=0.1",
                 "round-robin", "random"):  # fmt: skip
        result = qsim.simulate(trace, profile, replicas=4, router=name, seed=3)
        hits[name] = int(result.cached_tokens.sum())
    alone = qsim.simulate(trace, profile)
    assert int(alone.cached_tokens.sum()) == exact
    assert hits["session-affinity"] == hits["prefix-affinity:cache_threshold=0.1"] == exact
    assert hits["kv-aware"] <= exact
    # a server chosen at random has an earlier turn's prompt less often than not
    assert max(hits["round-robin"], hits["random"]) < 0.8 * exact < hits["kv-aware"]


def test_a_pool_of_another_size_keeps_sessions_too():
    trace = chats(20, 4, 3.0)
    pools = [Pool(make_profile(), 2, weight=1.0), Pool(make_profile(decode_ms=1.0), 2, weight=3.0)]
    stays = "session-affinity:balance_abs_threshold=1e9"
    result = qsim.simulate(trace, pools=pools, router=stays)
    exact = 20 * sum((96 * turn - 1) // 16 * 16 for turn in range(1, 4))
    assert int(result.cached_tokens.sum()) == exact
    requests = np.bincount(result.replica, minlength=4)
    assert requests[2:].sum() > requests[:2].sum()


def test_a_session_goes_on_elsewhere_while_its_server_is_down():
    trace = chats(12, 6, 5.0)
    run = {"replicas": 3, "router": "session-affinity"}
    whole = qsim.simulate(trace, make_profile(), **run)
    failed = qsim.simulate(trace, make_profile(), failures=Failures([Failure(7.0, 1.0, 0)]), **run)
    assert failed.completed.all()
    lost = int(whole.cached_tokens.sum()) - int(failed.cached_tokens.sum())
    assert lost > 0
    after = failed.arrival_s > 7.0
    assert set(failed.replica[after]) == {1, 2}  # its start-up takes longer than the rest


def test_what_a_trace_does_not_tell_the_router_is_a_note():
    trace = Trace(np.arange(5.0), np.full(5, 64), np.full(5, 8))
    for name, words in (("session-affinity", "no sessions"), ("kv-aware", "no prefix ids")):
        notes = qsim.simulate(trace, make_profile(), replicas=2, router=name).notes
        assert any(words in text for text in notes)
        assert not qsim.simulate(trace, make_profile(), router=name).notes
    chat = chats(2, 2, 1.0)
    for name in ("session-affinity", "kv-aware"):
        notes = qsim.simulate(chat, make_profile(), replicas=2, router=name).notes
        assert not any(text.startswith("router") for text in notes)


def test_sessions_of_a_trace_are_its_chains_of_turns_or_a_column():
    trace = chats(3, 2, 1.0)
    numbers = trace.sessions()
    assert numbers is not None
    assert trace.turns is not None
    later = trace.turns.previous >= 0
    assert (numbers[later] == numbers[trace.turns.previous[later]]).all()
    assert len(set(numbers.tolist())) == 3
    none = Turns(np.full(2, -1), np.zeros(2))
    single = Trace(np.arange(2.0), np.full(2, 9), np.full(2, 9), turns=none).sessions()
    assert single is not None
    assert single.tolist() == [-1, -1]
    named = Trace(np.arange(3.0), np.full(3, 9), np.full(3, 9), session=np.array([4, -1, 4]))
    both = merge([named, named])
    assert both.session is not None
    assert len(set(both.session.tolist()) - {-1}) == 2
    assert named.take(np.array([0, 1])).session.tolist() == [4, -1]  # type: ignore[union-attr]
