"""The scheduler against the rules written out, and the invariants that any schedule must keep."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.sim.replay import Arrival, Scenario
from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.request import Request
from qsim.sim.scheduler.scheduler import Scheduler
from tests.sim.reference import Job, ReferenceScheduler
from tests.sim.scenarios import Driver, by_block, ratio_of, scenarios, session_scenarios
from tests.sim.test_golden import every_recording, load

ABORTS = st.dictionaries(st.integers(0, 40), st.lists(st.integers(0, 13), max_size=3), max_size=4)


def compare_with_reference(scenario: Scenario, aborts: dict[int, list[int]]) -> None:
    driver = Driver(scenario, aborts)
    reference = ReferenceScheduler(scenario)
    jobs = [Job(i, a, scenario.config.block_size) for i, a in enumerate(scenario.arrivals)]
    queue: deque[dict[str, object]] = deque()
    added = 0
    at = 0
    for turn in driver.turns():
        for number in range(at, turn.number + 1):
            while added < len(jobs) and jobs[added].arrival.turn <= number:
                reference.add(jobs[added])
                added += 1
            for index in aborts.get(number, ()):
                if index < added:
                    reference.abort(jobs[index])
        at = turn.number + 1
        assert reference.has_work() == (turn.batch is not None)
        if turn.batch is not None:
            batch = reference.schedule()
            queue.append(batch)
            assert turn.items == tuple((j.index, n, c) for j, n, c in batch["items"])
            assert turn.preempted == tuple(j.index for j in batch["preempted"])
        if turn.update is not None:
            tokens, finished = reference.update(queue.popleft())
            assert [r.index for r in turn.update.tokens] == [j.index for j in tokens]
            assert [r.index for r in turn.update.finished] == [j.index for j in finished]
            assert [r.index for r in turn.update.first] == [
                j.index for j in tokens if j.outputs == 1
            ]
        assert driver.scheduler.free_blocks == reference.free_blocks
        if scenario.config.enable_prefix_caching:
            queue_ = by_block(driver.scheduler._kv, ratio_of(scenario))
            assert queue_ == reference.pool.by_block()
        assert driver.scheduler.num_waiting == len(reference.waiting)
        assert [r.index for r in driver.scheduler._running] == [j.index for j in reference.running]
        for request, job in zip(driver.requests, jobs, strict=True):
            assert request.num_output_tokens == job.outputs
            assert request.preemptions == job.preemptions
            assert request.cached_tokens == (job.cached_tokens or 0)
        assert driver.scheduler.outstanding_tokens == sum(
            min(j.arrival.output_tokens, scenario.config.max_model_len - j.arrival.prompt_tokens)
            - j.outputs
            + max(0, j.arrival.prompt_tokens - j.computed)
            for j in reference.waiting + reference.running
        )
    assert not queue
    assert not reference.has_work()


@settings(max_examples=250)
@given(scenarios(), st.just({}) | ABORTS)
def test_equals_the_rules_written_out(scenario: Scenario, aborts: dict[int, list[int]]) -> None:
    compare_with_reference(scenario, aborts)


@settings(max_examples=100)
@given(scenarios(decode_heavy=True), st.just({}) | ABORTS)
def test_equals_the_rules_in_long_decodes(scenario: Scenario, aborts: dict[int, list[int]]) -> None:
    compare_with_reference(scenario, aborts)


@settings(max_examples=150)
@given(scenarios(tight=True), st.just({}) | ABORTS)
def test_equals_the_rules_when_blocks_are_short(
    scenario: Scenario, aborts: dict[int, list[int]]
) -> None:
    compare_with_reference(scenario, aborts)


@settings(max_examples=200, deadline=None)
@given(session_scenarios())
def test_equals_the_rules_where_turns_begin_with_answers(scenario: Scenario) -> None:
    compare_with_reference(scenario, {})


def scenario_of(arrivals: list[Arrival], **settings: int | bool | str) -> Scenario:
    config = EngineConfig(**settings)  # type: ignore[arg-type]
    return Scenario("directed", config, tuple(arrivals))


def test_content_entered_while_the_head_waits_lets_it_in() -> None:
    # Chunks of 24 tokens: the second block of "a" is taken in step 1 and findable in step 2.
    ids = (1, 2, 3, 4, 5, 6)
    scenario = scenario_of(
        [Arrival(0, "a", 96, 4, hash_ids=ids), Arrival(0, "b", 7 * 16, 1, hash_ids=ids)],
        max_num_batched_tokens=64,
        max_model_len=7 * 16 + 1,
        num_gpu_blocks=8,
        long_prefill_token_threshold=24,
    )
    turns = list(Driver(scenario).turns())
    assert [index for index, _, _ in turns[0].items] == [0]
    assert [(index, n, computed) for index, n, computed in turns[1].items if index == 1] == [
        (1, 24, 48)
    ]
    compare_with_reference(scenario, {})


def test_a_victim_gives_its_tokens_back_to_the_budget() -> None:
    scenario = scenario_of(
        [Arrival(0, "v", 1, 37, 2), Arrival(2, "r", 3, 37, 0), Arrival(4, "t", 40, 3, 1)],
        max_num_batched_tokens=6,
        max_model_len=48,
        block_size=4,
        num_gpu_blocks=16,
        enable_prefix_caching=False,
        async_scheduling=False,
        scheduling_policy="priority",
    )
    turns = list(Driver(scenario).turns())
    assert turns[11].items == ((0, 1, 11), (1, 1, 11), (2, 4, 28))
    # "v" was served before "r" lacked a block and took its blocks away, and its turn.
    assert turns[12].preempted == (0,)
    assert turns[12].items == ((1, 1, 12), (2, 5, 32))
    compare_with_reference(scenario, {})


def test_abort_of_a_head_that_does_not_fit_lets_the_next_in() -> None:
    scenario = scenario_of(
        [Arrival(0, "a", 60, 30), Arrival(0, "b", 100, 5), Arrival(0, "c", 16, 5)],
        max_model_len=160,
        num_gpu_blocks=11,
    )
    turns = list(Driver(scenario, {3: [1]}).turns())
    assert [index for index, _, _ in turns[2].items] == [0]
    assert [index for index, _, _ in turns[3].items] == [0, 2]
    compare_with_reference(scenario, {3: [1]})


@every_recording
def test_the_rules_written_out_give_the_recorded_schedules(version: str | None, path: Path) -> None:
    compare_with_reference(load(path, version), {})


@settings(max_examples=150)
@given(scenarios() | scenarios(tight=True))
def test_invariants(scenario: Scenario) -> None:
    config = scenario.config
    usable = config.num_gpu_blocks - 1
    driver = Driver(scenario)
    tokens: Counter[int] = Counter()
    firsts: Counter[int] = Counter()
    finishes: Counter[int] = Counter()
    admitted: dict[int, None] = {}
    expected_updates: deque[list[int]] = deque()
    for turn in driver.turns():
        scheduler = driver.scheduler
        assert 0 <= scheduler.free_blocks <= usable
        assert scheduler.num_running <= config.max_num_seqs
        if turn.batch is not None:
            batch = turn.batch
            counts = [n for _, n, _ in turn.items]
            assert all(n >= 1 for n in counts)
            assert sum(counts) == batch.num_tokens <= config.max_num_batched_tokens
            assert batch.num_tokens == batch.num_prefill_tokens + batch.num_decodes
            assert [r.index for r in batch.requests] == [index for index, _, _ in turn.items]
            assert batch.prefill == [(n, c) for _, n, c in turn.items if n > 1]
            assert batch.decode_context_tokens == sum(c for _, n, c in turn.items if n == 1)
            assert len({index for index, _, _ in turn.items}) == len(turn.items)
            for index, _, _ in turn.items:
                admitted.setdefault(index)
            expected_updates.append([index for index, _, _ in turn.items])
        if turn.update is not None:
            order = expected_updates.popleft()
            got = [request.index for request in turn.update.tokens]
            assert got == [index for index in order if index in got]
            tokens.update(got)
            firsts.update(request.index for request in turn.update.first)
            finishes.update(request.index for request in turn.update.finished)
            assert set(turn.update.first + turn.update.finished) <= set(turn.update.tokens)
    every = range(len(scenario.arrivals))
    assert finishes == Counter(every)
    assert firsts == Counter(every)
    for index, arrival in enumerate(scenario.arrivals):
        output = min(arrival.output_tokens, config.max_model_len - arrival.prompt_tokens)
        assert tokens[index] == output
        assert driver.requests[index].num_output_tokens == output
        assert driver.requests[index].finished
    assert driver.scheduler.free_blocks == usable
    assert driver.scheduler.outstanding_tokens == 0
    assert not driver.scheduler.has_work()
    if config.scheduling_policy == "fcfs":
        assert list(admitted) == list(every)  # nobody is overtaken on the way in


@settings(max_examples=30)
@given(scenarios())
def test_same_scenario_same_schedule(scenario: Scenario) -> None:
    def run() -> list[object]:
        return [(t.items, t.preempted, t.number) for t in Driver(scenario).turns()]

    assert run() == run()


def make(**settings: int | bool | str) -> Scheduler:
    return Scheduler(EngineConfig(**{"num_gpu_blocks": 65, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(7, 0, 5), "request 7 has prompt_tokens 0 and output_tokens 5; each must be >= 1"),
        (Request(7, 5, 0), "request 7 has prompt_tokens 5 and output_tokens 0; each must be >= 1"),
        (Request(7, 2000, 5), "prompt_tokens 2000; must be < max_model_len 2000"),
        (Request(7, 1000, 500), "request 7 needs KV blocks for 1499 tokens; the cache holds 64"),
        (
            Request(7, 40, 5, block_ids=[1, 2, 3]),
            "3 block_ids; must be <= 2, the full blocks of the 45",
        ),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(request_: Request, message: str) -> None:
    scheduler = make(max_model_len=2000)
    with pytest.raises(ScenarioError, match=message):
        scheduler.add(request_)
    assert not scheduler.has_work()
    assert scheduler.outstanding_tokens == 0


def test_the_largest_request_that_fits_is_served() -> None:
    scheduler = make(max_model_len=2000, async_scheduling=False)
    request = Request(0, 1000, 25)  # its last token is never computed: 1024 tokens in 64 blocks
    scheduler.add(request)
    while scheduler.has_unfinished():
        scheduler.update(scheduler.schedule())
    assert request.finished
    assert request.preemptions == 0


def test_batches_are_applied_in_order() -> None:
    scheduler = make()
    scheduler.add(Request(0, 10, 5))
    scheduler.schedule()
    second = scheduler.schedule()
    with pytest.raises(ValueError, match="update of step 2; must be step 1"):
        scheduler.update(second)


def test_abort_frees_seat_and_blocks_at_once() -> None:
    scheduler = make(max_num_seqs=1)
    first, second = Request(0, 100, 50), Request(1, 20, 5)
    scheduler.add(first)
    scheduler.add(second)
    batch = scheduler.schedule()
    ahead = scheduler.schedule()
    scheduler.abort(first)
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.free_blocks) == (0, 1, 64)
    assert scheduler.outstanding_tokens == 25
    assert [r.index for r, _, _ in scheduler.schedule().items] == [1]
    assert scheduler.update(batch).tokens == []
    assert scheduler.update(ahead).tokens == []
    scheduler.abort(first)  # a second time changes nothing
    assert scheduler.num_running == 1
