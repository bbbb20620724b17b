"""Draw scenarios for a scheduler: small pools and budgets, where the rules meet each other.

    python tools/record_schedules/draw.py OUT --version 0.33.0 --count 200 --seed 1

The families go by turns: a mixture; few blocks (preemption) under either policy; thresholds with
requests that are alone now and then; shared prefixes with evictions; long decodes after bursts.
Even numbers are asynchronous. Options that the version does not have are left out.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

FAMILIES = ("mixture", "tight", "tight-priority", "threshold", "prefix", "bursts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the scenario files")
    parser.add_argument("--version", required=True, help="of vLLM, such as 0.33.0")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for number in range(given.count):
        family = FAMILIES[number // 2 % len(FAMILIES)]
        draw = random.Random(f"{given.seed} {number}")
        scenario = scenario_of(draw, family, given.version, number % 2 == 0)
        scenario["name"] = f"{family}-{given.seed}-{number}"
        path = given.out / f"{scenario['name']}.json"
        path.write_text(json.dumps(scenario), encoding="utf-8")


def scenario_of(
    draw: random.Random, family: str, version: str, asynchronous: bool
) -> dict[str, Any]:
    """One scenario of a family."""
    tight = family.startswith("tight")
    block_size = draw.choice([16, 16, 16, 32])
    longest = block_size * draw.randint(4, 14) + draw.randrange(block_size)
    usable = -(-longest // block_size) + draw.choice([0, 1, 2, 4] if tight else [0, 3, 20, 200])
    priority = family == "tight-priority" or (family == "mixture" and draw.random() < 0.5)
    threshold = 0
    if family == "threshold" or draw.random() < 0.2:
        threshold = draw.choice([5, 16, 20, block_size + 1, 2 * block_size])
    seats = draw.choice([6, 12] if tight else [1, 3, 8, 16])
    budget = draw.choice([seats + 1, 24, 64, 128, 2 * longest])
    config = {
        "vllm_version": version,
        "max_num_batched_tokens": max(budget, seats),
        "max_num_seqs": seats,
        "block_size": block_size,
        "num_gpu_blocks": usable + 1,
        "max_model_len": longest,
        "async_scheduling": asynchronous,
        "enable_prefix_caching": family == "prefix" or draw.random() < 0.5,
        "policy": "priority" if priority else "fcfs",
        "long_prefill_token_threshold": min(threshold, longest),
    }
    if tuple(int(part) for part in version.split(".")[:2]) >= (0, 31):
        if draw.random() < 0.3:
            config["max_num_active_seqs"] = draw.randint(1, seats)
        if threshold and draw.random() < 0.4:
            config["long_prefill_token_threshold_adaptive"] = True
    arrivals = _arrivals(draw, family, config)
    return {"name": family, "config": config, "arrivals": arrivals}


def _arrivals(draw: random.Random, family: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    longest, block_size = config["max_model_len"], config["block_size"]
    gaps = {
        "threshold": [0, 0, 1, 5, 40],
        "bursts": [0, 0, 0, 0, 30, 90],
        "prefix": [0, 1, 3, 12],
    }.get(family, [0, 0, 0, 1, 2, 9])
    prefixes = [[draw.randrange(1, 6) for _ in range(8)] for _ in range(3)]
    arrivals = []
    turn = 0
    for number in range(draw.randint(5, 24)):
        turn += draw.choice(gaps)
        most = longest - 1
        prompt = draw.randint(1, most)
        if family.startswith("tight") or draw.random() < 0.3:
            prompt = 1 + prompt // draw.choice([2, 4])
        if draw.random() < 0.2:
            prompt = min(most, max(1, prompt // block_size) * block_size)  # whole blocks
        output = draw.choice([1, 2, draw.randint(1, 30), longest])
        if family.startswith("tight"):
            output = draw.choice([draw.randint(10, 60), longest])
        arrival: dict[str, Any] = {
            "turn": turn,
            "id": f"r{number}",
            "prompt_tokens": prompt,
            "output_tokens": output,
        }
        if config["policy"] == "priority":
            arrival["priority"] = draw.randint(0, 3)
        ids = draw.choice(prefixes)[: draw.randint(0, prompt // block_size)]
        if ids and draw.random() < (0.9 if family == "prefix" else 0.3):
            arrival["hash_ids"] = ids
        arrivals.append(arrival)
    return arrivals


if __name__ == "__main__":
    main()
