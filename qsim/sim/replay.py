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
from typing import Any

from qsim.catalog.versions import DEFAULT_VERSION, newer_than_known, parse_version
from qsim.checks import whole
from qsim.documents import read_json
from qsim.errors import QsimError, ScenarioError
from qsim.sim.scheduler.batch import Batch
from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.request import Request
from qsim.sim.scheduler.scheduler import Scheduler

_CONFIG_SIZES = (
    "max_num_batched_tokens",
    "max_num_seqs",
    "block_size",
    "num_gpu_blocks",
    "max_model_len",
    "long_prefill_token_threshold",
)
_CONFIG_FLAGS = ("async_scheduling", "enable_prefix_caching")
_CONFIG_OPTIONAL = (
    "vllm_version",
    "max_num_active_seqs",
    "long_prefill_token_threshold_adaptive",
)
_ARRIVAL_FIELDS = ("turn", "id", "prompt_tokens", "output_tokens", "priority", "hash_ids")


@dataclass(frozen=True)
class Arrival:
    """One request of a scenario, added just before the engine's turn with this number."""

    turn: int
    id: str
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """A configuration and the requests given to it, in order of arrival."""

    name: str
    config: EngineConfig
    arrivals: tuple[Arrival, ...]


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
    try:
        return parse_scenario(data)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error


def parse_scenario(data: object) -> Scenario:
    """Validate a decoded scenario.

    Raises
    ------
    ScenarioError
        Naming the field, its value and what is allowed.
    """
    scenario = _object("scenario", data, ("name", "config", "arrivals"), ("config", "arrivals"))
    name = scenario.get("name", "")
    if not isinstance(name, str):
        raise ScenarioError(f"name is {name!r}; must be a string")
    config = _parse_config(scenario["config"])
    rows = scenario["arrivals"]
    if not isinstance(rows, list):
        raise ScenarioError(f"arrivals is {_short(rows)}; must be a list")
    arrivals: list[Arrival] = []
    seen: set[str] = set()
    last_turn = 0
    for position, row in enumerate(rows):
        arrival = _parse_arrival(f"arrivals[{position}]", row, config)
        if arrival.turn < last_turn:
            raise ScenarioError(
                f"arrivals[{position}].turn is {arrival.turn}; must be >= {last_turn}, the turn "
                f"of the arrival before it: sort the arrivals"
            )
        if arrival.id in seen:
            raise ScenarioError(f"arrivals[{position}].id is {arrival.id!r}; must be unique")
        seen.add(arrival.id)
        last_turn = arrival.turn
        arrivals.append(arrival)
    return Scenario(name, config, tuple(arrivals))


def _parse_config(data: object) -> EngineConfig:
    names = (*_CONFIG_SIZES, *_CONFIG_FLAGS, "policy")
    raw = _object("config", data, (*names, *_CONFIG_OPTIONAL), names)
    for name in _CONFIG_FLAGS:
        if not isinstance(raw[name], bool):
            raise ScenarioError(f"config.{name} is {raw[name]!r}; must be true or false")
    if raw["policy"] not in ("fcfs", "priority"):
        raise ScenarioError(
            f"config.policy is {_short(raw['policy'])}; must be 'fcfs' or 'priority'"
        )
    version = raw.get("vllm_version", DEFAULT_VERSION)
    parse_version(version, "config.vllm_version")
    adaptive = raw.get("long_prefill_token_threshold_adaptive", False)
    if not isinstance(adaptive, bool):
        raise ScenarioError(
            f"config.long_prefill_token_threshold_adaptive is {adaptive!r}; must be true or false"
        )
    try:
        return EngineConfig(
            scheduling_policy=raw["policy"],
            vllm_version=version,
            max_num_active_seqs=raw.get("max_num_active_seqs"),
            long_prefill_token_threshold_adaptive=adaptive,
            **{name: raw[name] for name in (*_CONFIG_SIZES, *_CONFIG_FLAGS)},
        )
    except ScenarioError as error:
        raise ScenarioError(f"config.{error}") from error


def _parse_arrival(where: str, data: object, config: EngineConfig) -> Arrival:
    raw = _object(where, data, _ARRIVAL_FIELDS, _ARRIVAL_FIELDS[:4])
    if not isinstance(raw["id"], str):
        raise ScenarioError(f"{where}.id is {_short(raw['id'])}; must be a string")
    prompt_tokens = _whole(f"{where}.prompt_tokens", raw["prompt_tokens"], 1)
    if prompt_tokens >= config.max_model_len:
        raise ScenarioError(
            f"{where}.prompt_tokens is {prompt_tokens}; must be < max_model_len "
            f"{config.max_model_len}"
        )
    priority = raw.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ScenarioError(f"{where}.priority is {_short(priority)}; must be a whole number")
    if priority and config.scheduling_policy == "fcfs":
        raise ScenarioError(f"{where}.priority is {priority}; must be 0 under policy 'fcfs'")
    hash_ids = raw.get("hash_ids", [])
    if not isinstance(hash_ids, list) or not all(type(key) is int for key in hash_ids):
        raise ScenarioError(
            f"{where}.hash_ids is {_short(hash_ids)}; must be a list of whole numbers"
        )
    if len(hash_ids) * config.block_size > prompt_tokens:
        raise ScenarioError(
            f"{where}.hash_ids has {len(hash_ids)} ids; must be <= "
            f"{prompt_tokens // config.block_size}, the full blocks of {prompt_tokens} tokens"
        )
    return Arrival(
        turn=_whole(f"{where}.turn", raw["turn"], 0),
        id=raw["id"],
        prompt_tokens=prompt_tokens,
        output_tokens=_whole(f"{where}.output_tokens", raw["output_tokens"], 1),
        priority=priority,
        hash_ids=tuple(hash_ids),
    )


def _object(
    where: str, data: object, allowed: tuple[str, ...], required: tuple[str, ...]
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ScenarioError(f"{where} is {_short(data)}; must be an object")
    for name in data:
        if name not in allowed:
            raise ScenarioError(f"{where} has the unknown field {name!r}; allowed: {allowed}")
    for name in required:
        if name not in data:
            raise ScenarioError(f"{where} lacks the field {name!r}")
    return data


def _whole(where: str, value: object, least: int) -> int:
    whole(where, value, least)
    assert isinstance(value, int)
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
