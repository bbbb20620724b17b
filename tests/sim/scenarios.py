"""Hypothesis strategies for scheduler scenarios, and a driver that runs one turn by turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from qsim.catalog.versions import rules_of
from qsim.sim.replay import Arrival, Scenario
from qsim.sim.scheduler.batch import Batch, Update
from qsim.sim.scheduler.block_ids import BlockIds
from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.kv_cache import KVCache
from qsim.sim.scheduler.prefix_tree import PrefixNode, Run
from qsim.sim.scheduler.request import Request
from qsim.sim.scheduler.scheduler import Scheduler

#: one of each set of scheduling rules
VERSIONS = ("0.24", "0.24", "0.28.0", "0.31.1", "0.33.0", "0.33.0")
PREFIXES = ((1, 2, 3, 4), (1, 2, 5, 6), (7, 8, 9), (7,), (2, 1))


@st.composite
def scenarios(draw: st.DrawFn, *, decode_heavy: bool = False, tight: bool = False) -> Scenario:
    """Small pools and budgets, shared prefixes, bursts: where the rules meet each other.

    ``decode_heavy``: short prompts and gaps between arrivals; ``tight``: blocks run out often.
    """
    block_size = draw(st.sampled_from([1, 4, 16]))
    longest = draw(st.integers(3, 12)) * block_size + draw(st.integers(0, block_size - 1))
    longest = max(longest, 2)
    least = -(-longest // block_size) + 1
    policy = draw(st.sampled_from(["fcfs", "priority"] if tight else ["fcfs", "fcfs", "priority"]))
    version = draw(st.sampled_from(VERSIONS))
    seats = draw(st.sampled_from([8, 16] if tight else [1, 3, 8, 16]))
    threshold = draw(st.sampled_from([0, 0, 0, 2, block_size + 1]))
    new = rules_of(version)
    config = EngineConfig(
        vllm_version=version,
        max_num_seqs=seats,
        max_num_active_seqs=(
            draw(st.none() | st.integers(1, seats)) if new.max_num_active_seqs else None
        ),
        long_prefill_token_threshold_adaptive=(
            new.long_prefill_token_threshold_adaptive and threshold > 0 and draw(st.booleans())
        ),
        max_num_batched_tokens=draw(
            st.sampled_from([3, 5, 9, 500] if tight else [3, block_size, 2 * longest, 500])
        ),
        max_model_len=longest,
        block_size=block_size,
        num_gpu_blocks=least + draw(st.sampled_from([1, 2, 4] if tight else [0, 1, 5, 20, 200])),
        enable_prefix_caching=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        long_prefill_token_threshold=threshold,
        scheduling_policy=policy,
    )
    gaps = [0, 0, 0, 1, 2, 9]
    if tight:
        gaps = [0, 0, 1]
    elif decode_heavy:
        gaps = [0, 0, 1, 3, 20]
    ratio = draw(st.sampled_from([1, 2, 3]))
    arrivals: list[Arrival] = []
    turn = 0
    for number in range(draw(st.integers(4 if tight else 1, 14))):
        turn += draw(st.sampled_from(gaps))
        prompt = draw(st.integers(1, longest - 1))
        if decode_heavy or tight:
            prompt = 1 + prompt // 4
        prefix = draw(st.sampled_from(PREFIXES))
        ids = [key * ratio + j for key in prefix for j in range(ratio)]
        ids = ids[: draw(st.integers(0, prompt // block_size))]
        arrivals.append(
            Arrival(
                turn=turn,
                id=f"r{number}",
                prompt_tokens=prompt,
                output_tokens=longest if tight else draw(st.integers(1, longest)),
                priority=draw(st.integers(0, 2)) if policy == "priority" else 0,
                hash_ids=tuple(ids),
            )
        )
    return Scenario(f"ratio {ratio}", config, tuple(arrivals))


def ratio_of(scenario: Scenario) -> int:
    """Blocks per prefix id of a drawn scenario; 1 for any other."""
    name = scenario.name
    return int(name.removeprefix("ratio ")) if name.startswith("ratio ") else 1


def block_ids(scenario: Scenario, arrival: Arrival) -> Sequence[int]:
    """The ids of a drawn scenario as the coarser ids that they were made from."""
    ratio = ratio_of(scenario)
    coarse = [key // ratio for key in arrival.hash_ids[::ratio]]
    ids = BlockIds(coarse, ratio, len(arrival.hash_ids))
    assert ids == arrival.hash_ids
    return ids if ratio > 1 else arrival.hash_ids


def name_of(run: Run, own: PrefixNode | None = None) -> tuple[object, ...]:
    """Which blocks a run is: contents, which of several with equal ones, and who uses them."""
    path: list[int] = []
    node: PrefixNode | None = run.node
    while node is not None:
        path.append(node.key)
        node = node.parent
    rank = run.node.runs.index(run)
    return tuple(reversed(path)), run.node is own, run.start, run.stop, rank, run.users


def contents(kv: KVCache) -> list[object]:
    """The free queue in order. Equal lists mean equal answers to all that may be asked later."""
    kv._compact()
    return [kv._unhashed, *(e if isinstance(e, int) else name_of(e) for e in kv._queue)]


def by_block(kv: KVCache, ratio: int) -> list[object]:
    """The free queue block by block: "unhashed", "own" (nobody else finds it), or its content."""
    result: list[object] = ["unhashed"] * kv._unhashed
    kv._compact()
    for entry in kv._queue:
        if isinstance(entry, int):
            result += ["own"] * entry
            continue
        path: list[int] = []
        node = entry.node
        while node.parent is not None:
            path.insert(0, node.key)
            node = node.parent
        content = [key * ratio + j for key in path for j in range(ratio)]
        for offset in range(entry.stop - 1, entry.start - 1, -1):
            length = len(content) - ratio + offset + 1
            result.append(tuple(content[:length]) if path else "own")
    return result


@dataclass
class Turn:
    """What one turn did."""

    number: int
    batch: Batch | None = None
    items: tuple[tuple[int, int, int], ...] = ()
    preempted: tuple[int, ...] = ()
    applied: Batch | None = None
    update: Update | None = None


class Driver:
    """Runs a scenario on a scheduler: the loop of an engine without its durations."""

    def __init__(self, scenario: Scenario, aborts: dict[int, list[int]] | None = None) -> None:
        self.scenario = scenario
        self.scheduler = Scheduler(scenario.config)
        self.requests = [
            Request(
                index,
                arrival.prompt_tokens,
                arrival.output_tokens,
                priority=arrival.priority,
                block_ids=block_ids(scenario, arrival),
            )
            for index, arrival in enumerate(scenario.arrivals)
        ]
        self.depth = 2 if scenario.config.async_scheduling else 1
        self.in_flight: deque[Batch] = deque()
        self.turn = 0
        self.added = 0
        self.aborts = aborts or {}

    def next_event(self) -> int:
        """The turn of the next arrival or abort."""
        times = [turn for turn in self.aborts if turn >= self.turn]
        if self.added < len(self.requests):
            times.append(self.scenario.arrivals[self.added].turn)
        return min(times, default=1 << 40)

    def messages(self) -> None:
        """Add and abort what is due before this turn."""
        arrivals = self.scenario.arrivals
        while self.added < len(arrivals) and arrivals[self.added].turn <= self.turn:
            self.scheduler.add(self.requests[self.added])
            self.added += 1
        for index in self.aborts.get(self.turn, ()):
            if index < self.added:
                self.scheduler.abort(self.requests[index])

    def step(self) -> Turn | None:
        """One turn, after its messages; None if there is nothing to do in it."""
        scheduler, queue = self.scheduler, self.in_flight
        turn = Turn(self.turn)
        if scheduler.has_work():
            batch = scheduler.schedule()
            turn.batch = batch
            turn.items = tuple((r.index, n, computed) for r, n, computed in batch.items)
            turn.preempted = tuple(r.index for r in batch.preempted)
            queue.append(batch)
            if len(queue) == self.depth or not (batch.num_tokens or scheduler.has_work()):
                self._apply(turn)
        elif queue:
            self._apply(turn)
        else:
            return None
        self.turn += 1
        return turn

    def _apply(self, turn: Turn) -> None:
        turn.applied = self.in_flight.popleft()
        turn.update = self.scheduler.update(turn.applied)

    def turns(self) -> Iterator[Turn]:
        """All turns to the end, one by one."""
        while True:
            self.messages()
            turn = self.step()
            if turn is not None:
                yield turn
            elif self.next_event() < 1 << 40:
                self.turn = max(self.turn + 1, self.next_event())
            else:
                return

    def state(self) -> dict[str, Any]:
        """Everything that later turns can depend on."""
        scheduler = self.scheduler
        kv = scheduler._kv
        group = scheduler._group
        requests = []
        for request in self.requests:
            if request.group is not None:
                counters = group.counters(request)
            else:
                counters = (request.computed, request.in_flight, request.blocks, request.hashed)
            shared = [name_of(run, request.own) for run, _ in request.shared]
            requests.append(
                (
                    request.state,
                    request.num_output_tokens,
                    request.cached_tokens,
                    request.preemptions,
                    request.finished,
                    counters if request.state == 1 else request.num_output_tokens,
                    shared,
                )
            )
        return {
            "requests": requests,
            "queue": contents(kv),
            "free": scheduler.free_blocks,
            "running": [request.index for request in scheduler._running],
            "waiting": scheduler.num_waiting,
            "outstanding": scheduler.outstanding_tokens,
            "work": (scheduler.has_work(), scheduler.has_unfinished(), scheduler._handover),
            "in_flight": [
                (
                    batch.step,
                    [(r.index, n, computed) for r, n, computed in batch.items],
                    batch.num_decodes,
                    batch.num_prefill_tokens,
                    batch.num_tokens,
                    batch.decode_context_tokens,
                )
                for batch in self.in_flight
            ],
        }


@st.composite
def session_scenarios(draw: st.DrawFn) -> Scenario:
    """Sessions: a turn begins with prompt and answer of the turn before, and comes after it."""
    block_size = draw(st.sampled_from([1, 4, 16]))
    longest = draw(st.integers(8, 30)) * block_size + draw(st.integers(0, block_size - 1))
    config = EngineConfig(
        max_num_seqs=draw(st.sampled_from([1, 3, 16])),
        max_num_batched_tokens=draw(st.sampled_from([5, block_size, 500])),
        max_model_len=longest,
        block_size=block_size,
        num_gpu_blocks=-(-longest // block_size) + 1 + draw(st.sampled_from([0, 2, 9, 40, 400])),
        async_scheduling=draw(st.booleans()),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 0, 2, block_size + 1])),
        scheduling_policy=draw(st.sampled_from(["fcfs", "fcfs", "priority"])),
    )
    return _Sessions(config, draw).scenario_with_turns(draw(st.sampled_from([1, 2, 3])))


class _Sessions(Driver):
    """Runs sessions, whose next turn comes some turns after the answer before it."""

    def __init__(self, config: EngineConfig, draw: st.DrawFn) -> None:
        super().__init__(Scenario("sessions", config, ()))
        self._draw = draw
        self._arrivals: list[Arrival] = []
        self._sessions: list[int] = []  # of each request
        self._due: list[tuple[int, int, int]] = []  # turn, session, tokens that it has
        for session in range(draw(st.integers(1, 5))):
            self._due.append((draw(st.integers(0, 30)), session, 0))

    def next_event(self) -> int:
        return min((due[0] for due in self._due), default=1 << 40)

    def messages(self) -> None:
        config, draw = self.scenario.config, self._draw
        for due in sorted(self._due):
            turn, session, had = due
            room = config.max_model_len - 1 - had
            if turn > self.turn:
                return
            self._due.remove(due)
            if room < 1:
                continue
            prompt = had + draw(st.integers(1, max(1, room // 2)))
            output = draw(st.integers(1, max(1, (config.max_model_len - prompt) // 2)))
            # of the last turn nobody need know what the answer holds
            known = prompt + (output if draw(st.integers(0, 5)) else 0)
            priority = draw(st.integers(0, 2)) if config.scheduling_policy == "priority" else 0
            ids = tuple(session * 1200 + j for j in range(known // config.block_size))
            number = len(self._arrivals)
            self._arrivals.append(Arrival(self.turn, f"r{number}", prompt, output, priority, ids))
            self._sessions.append(session)
            request = Request(number, prompt, output, priority=priority, block_ids=ids)
            self.requests.append(request)
            self.scheduler.add(request)

    def scenario_with_turns(self, ratio: int) -> Scenario:
        """The scenario in which the same requests come at the same turns."""
        for turn in self.turns():
            for request in () if turn.update is None else turn.update.finished:
                arrival = self._arrivals[request.index]
                known = arrival.prompt_tokens + arrival.output_tokens
                if len(arrival.hash_ids) == known // self.scenario.config.block_size:
                    at = turn.number + 1 + self._draw(st.integers(0, 12))
                    self._due.append((at, self._sessions[request.index], known))
        return Scenario(f"ratio {ratio}", self.scenario.config, tuple(self._arrivals))
