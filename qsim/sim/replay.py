"""Run a scheduler scenario turn by turn and print what each step did.

``python -m qsim.sim.replay SCENARIO.json`` prints ``{"steps": [...]}``; docs/scheduler.md describes
the scenario, the turns and the records.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from qsim.bounds import Closed, Count, Flag, Line, Whole
from qsim.catalog.versions import DEFAULT_VERSION, newer_than_known
from qsim.documents import read_json
from qsim.errors import QsimError, ScenarioError
from qsim.sim.scheduler.batch import Batch
from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.request import Request
from qsim.sim.scheduler.scheduler import Scheduler

Tokens = Annotated[int, Whole(1)]
Signed = Annotated[int, Whole(-(1 << 64), 1 << 64)]


@dataclass(frozen=True)
class Arrival(Closed):
    """One request of a scenario, added just before the engine's turn with this number."""

    turn: Count
    id: Line
    prompt_tokens: Tokens
    output_tokens: Tokens
    priority: Signed = 0
    hash_ids: tuple[Signed, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """A configuration and the requests given to it, in order of arrival."""

    name: str
    config: EngineConfig
    arrivals: tuple[Arrival, ...]


@dataclass(frozen=True, kw_only=True)
class _Config(Closed):
    """An engine's settings as a file has them; :class:`EngineConfig` knows their limits."""

    max_num_batched_tokens: Count
    max_num_seqs: Count
    block_size: Count
    num_gpu_blocks: Count
    max_model_len: Count
    long_prefill_token_threshold: Count
    async_scheduling: Flag
    enable_prefix_caching: Flag
    policy: Literal["fcfs", "priority"]
    vllm_version: Line = DEFAULT_VERSION
    max_num_active_seqs: Count | None = None
    long_prefill_token_threshold_adaptive: Flag = False


@dataclass(frozen=True, kw_only=True)
class _File(Closed):
    """A scenario as a file has it."""

    name: Line = ""
    config: _Config
    arrivals: list[Arrival]


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario file: the scenario itself, or an object with it under ``scenario``.

    Raises
    ------
    ScenarioError
        If the file cannot be read, is not JSON, or is not a valid scenario.
    """
    data = read_json(path)
    if isinstance(data, dict) and "scenario" in data:
        data = data["scenario"]
    return parse_scenario(data, str(path))


def parse_scenario(data: object, where: str = "scenario") -> Scenario:
    """Validate a decoded scenario; ``where``, the file, begins an error.

    Raises
    ------
    ScenarioError
        Naming the field, its value and what is allowed.
    """
    from qsim.edge import build

    given = build(_File, data, where, ScenarioError)
    settings = dict(vars(given.config))
    try:
        config = EngineConfig(scheduling_policy=settings.pop("policy"), **settings)
    except ScenarioError as error:
        raise ScenarioError(f"{where}: config.{error}") from error
    seen: set[str] = set()
    last_turn = 0
    for position, arrival in enumerate(given.arrivals):
        objection = _objection(arrival, config)
        if arrival.turn < last_turn:
            objection = (
                f"turn is {arrival.turn}; must be >= {last_turn}, the turn of the arrival before "
                "it: sort the arrivals"
            )
        elif arrival.id in seen:
            objection = f"id is {arrival.id!r}; must be unique"
        if objection:
            raise ScenarioError(f"{where}: arrivals[{position}].{objection}")
        seen.add(arrival.id)
        last_turn = arrival.turn
    return Scenario(given.name, config, tuple(given.arrivals))


def _objection(arrival: Arrival, config: EngineConfig) -> str:
    """What the engine would not take of a request; "" if it takes it."""
    prompt, ids = arrival.prompt_tokens, len(arrival.hash_ids)
    if prompt >= config.max_model_len:
        return f"prompt_tokens is {prompt}; must be < max_model_len {config.max_model_len}"
    if arrival.priority and config.scheduling_policy == "fcfs":
        return f"priority is {arrival.priority}; must be 0 under policy 'fcfs'"
    if ids * config.block_size > prompt:
        return (
            f"hash_ids has {ids} ids; must be <= {prompt // config.block_size}, the full blocks of "
            f"{prompt} tokens"
        )
    return ""


def replay(scenario: Scenario) -> list[dict[str, Any]]:
    """Run a scenario to its end and return its records, in order of time."""
    scheduler = Scheduler(scenario.config)
    depth = 2 if scenario.config.async_scheduling else 1
    in_flight: deque[Batch] = deque()
    arrivals = deque(enumerate(scenario.arrivals))
    steps: list[dict[str, Any]] = []
    ids = [arrival.id for arrival in scenario.arrivals]
    turn = 0
    while True:
        while arrivals and arrivals[0][1].turn <= turn:
            index, arrival = arrivals.popleft()
            scheduler.add(
                Request(
                    index,
                    arrival.prompt_tokens,
                    arrival.output_tokens,
                    priority=arrival.priority,
                    block_ids=arrival.hash_ids,
                )
            )
        if scheduler.has_work():
            batch = scheduler.schedule()
            steps.append(_schedule_record(turn, scheduler, batch, ids))
            in_flight.append(batch)
            if len(in_flight) == depth or not (batch.num_tokens or scheduler.has_work()):
                steps.append(_update_record(turn, scheduler, in_flight.popleft(), ids))
        elif in_flight:
            steps.append(_update_record(turn, scheduler, in_flight.popleft(), ids))
        elif arrivals:
            turn = arrivals[0][1].turn
            continue
        else:
            return steps
        turn += 1


def _schedule_record(
    turn: int, scheduler: Scheduler, batch: Batch, ids: list[str]
) -> dict[str, Any]:
    return {
        "turn": turn,
        "kind": "schedule",
        "step": batch.step,
        "scheduled": [[ids[request.index], n, computed] for request, n, computed in batch.items],
        "preempted": [ids[request.index] for request in batch.preempted],
        "running": scheduler.num_running,
        "waiting": scheduler.num_waiting,
        "free_blocks": scheduler.free_blocks,
    }


def _update_record(turn: int, scheduler: Scheduler, batch: Batch, ids: list[str]) -> dict[str, Any]:
    update = scheduler.update(batch)
    return {
        "turn": turn,
        "kind": "update",
        "step": batch.step,
        "tokens": [ids[request.index] for request in update.tokens],
        "finished": [ids[request.index] for request in update.finished],
        "free_blocks": scheduler.free_blocks,
    }


def main(arguments: list[str]) -> int:
    """Print the steps of the scenario file named by the only argument; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m qsim.sim.replay SCENARIO.json", file=sys.stderr)
        return 2
    try:
        scenario = load_scenario(arguments[0])
        steps = replay(scenario)
    except QsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    remark = newer_than_known(scenario.config.vllm_version)
    if remark:
        print(f"Note: {remark}", file=sys.stderr)
    records = ",\n".join(json.dumps(step) for step in steps)
    print(f'{{"steps": [\n{records}\n]}}')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
