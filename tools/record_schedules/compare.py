"""Compare recorded schedules with qsim's, record by record.

    python tools/record_schedules/compare.py RECORDING.json|FOLDER... [--version 0.33.0]

Prints the first record that differs of each recording that is not reproduced; exits with 1 if there
is one. ``--version`` is for recordings that do not name the version that made them. ``--others``
counts how many recordings other versions would schedule differently: none means that a set of
recordings cannot tell them apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from itertools import zip_longest
from pathlib import Path

from qsim.sim.replay import Scenario, load_scenario, replay


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--version", help="of vLLM, where a recording names none")
    parser.add_argument("--others", nargs="*", default=[], metavar="VERSION")
    given = parser.parse_args()
    files = [f for p in given.paths for f in (sorted(p.glob("*.json")) if p.is_dir() else [p])]
    exact = records = 0
    differing = dict.fromkeys(given.others, 0)
    for path in files:
        data = json.loads(path.read_text(encoding="utf-8"))
        scenario = load_scenario(path)
        if given.version and "vllm_version" not in data["scenario"]["config"]:
            scenario = under(scenario, given.version)
        expected = data["expected"]["steps"]
        records += len(expected)
        steps = replay(scenario)
        for got, wanted in zip_longest(steps, expected):
            if got != wanted:
                print(f"{path}\n  vLLM {wanted}\n  qsim {got}")
                break
        else:
            exact += 1
        for other in given.others:
            differing[other] += replay(under(scenario, other)) != expected
    print(f"{exact} of {len(files)} recordings exact ({records} records)")
    for other, count in differing.items():
        print(f"{count} of {len(files)} would be others under vLLM {other}")
    return 0 if exact == len(files) else 1


def under(scenario: Scenario, version: str) -> Scenario:
    """The scenario by the rules of another version, without options that it may not have."""
    config = dataclasses.replace(
        scenario.config,
        vllm_version=version,
        max_num_active_seqs=None,
        long_prefill_token_threshold_adaptive=False,
    )
    return dataclasses.replace(scenario, config=config)


if __name__ == "__main__":
    sys.exit(main())
