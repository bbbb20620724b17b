"""Whole simulations whose results must not change by a byte when the engine gets faster.

``golden_summaries/<case>.json`` holds the summary, a hash of the file of requests, and the timeline
at some of its points. The traces are synthesised and the profile is made up
(tests/make_profile.py), so that neither a refit nor a download changes them. After a deliberate
change of the model:

    python -m tests.sim.test_golden_summaries --write
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsim.profiles.schema import Profile
from qsim.sim.fleet.routers.router import ROUTERS
from qsim.sim.results.result import SimulationResult
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.load import load_trace
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

FOLDER = Path(__file__).parent / "golden_summaries"
CONVERSATION = "azure-conv-2023:duration=300,seed=7"


def _profile(**settings: Any) -> Profile:
    return make_profile(**{"num_gpu_blocks": 30_000} | settings)


@dataclass(frozen=True)
class Case:
    trace: str = CONVERSATION
    speed: float = 1.0
    replicas: int = 1
    router: str = "least-requests"
    profile: Callable[[], Profile] = _profile
    options: EngineOptions = field(default_factory=EngineOptions)

    def load(self) -> Trace:
        return load_trace(self.trace).speed(self.speed)

    def run(self, *, jump: bool = True) -> SimulationResult:
        return simulate(
            self.load(),
            self.profile(),
            replicas=self.replicas,
            router=self.router,
            options=self.options,
            seed=11,
            too_long="reject",
            jump=jump,
        )


CASES: dict[str, Case] = {
    "one-replica": Case(),
    "code": Case(trace="azure-code-2023:duration=300,seed=7"),
    "overload": Case(speed=8.0),
    "preemption": Case(speed=3.0, options=EngineOptions(num_gpu_blocks_override=3000)),
    "preemption-no-caching": Case(
        speed=3.0,
        options=EngineOptions(num_gpu_blocks_override=3000, enable_prefix_caching=False),
    ),
    "prefix-caching": Case(
        trace="mooncake-conversation:duration=300,seed=7",
        replicas=4,
        router="prefix-affinity",
    ),
    "sync": Case(options=EngineOptions(async_scheduling=False)),
    "sync-preemption": Case(
        speed=3.0, options=EngineOptions(num_gpu_blocks_override=3000, async_scheduling=False)
    ),
    "throttled": Case(speed=2.0, profile=lambda: _profile(throttle=0.1)),
    "host-bound": Case(profile=lambda: _profile(host_ms=0.5, launch_ms=3.0, decode_ms=2.0)),
    "between-host-and-gpu": Case(
        profile=lambda: _profile(host_ms=0.5, launch_ms=2.2, decode_ms=3.0)
    ),
    "few-seats": Case(speed=2.0, options=EngineOptions(max_num_seqs=8)),
    "chunks": Case(
        options=EngineOptions(max_num_batched_tokens=1024, long_prefill_token_threshold=512)
    ),
    "priority": Case(speed=4.0, options=EngineOptions(scheduling_policy="priority")),
    **{
        f"four-{router}": Case(
            trace="azure-conv-2023:duration=100,scale=4,seed=7", replicas=4, router=router
        )
        for router in sorted(ROUTERS)
    },
}


def record(result: SimulationResult, trace: Trace, folder: Path) -> dict[str, Any]:
    summary = result.summary()
    # the first does not say what the simulation did; the others are made from what follows, and
    # have tests of their own
    for key in ("scenario", "load", "intervals_90"):
        del summary[key]
    summary.pop("hot_spots", None)
    for row in summary["replicas"]:
        for key in ("input_tokens", "output_tokens", "cached_tokens", "on_s", "utilisation"):
            del row[key]
    path = folder / "requests.csv"
    result.write_requests(path)
    columns = (trace.arrival_s, trace.prompt_tokens, trace.output_tokens)
    return {
        "trace_sha256": hashlib.sha256(b"".join(c.tobytes() for c in columns)).hexdigest(),
        "requests_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "summary": summary,
        "timeline": {k: v[:: max(1, len(v) // 16)].tolist() for k, v in result.timeline.items()},
    }


@pytest.mark.parametrize("name", CASES)
def test_a_simulation_gives_the_bytes_that_it_always_gave(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    want = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    got = json.loads(json.dumps(record(case.run(), case.load(), tmp_path)))
    assert got["trace_sha256"] == want["trace_sha256"], "the preset gives other requests"
    # replicas may report in another order, and a sum of floats depends on it
    points, wanted = got.pop("timeline"), want.pop("timeline")
    for column, values in wanted.items():
        np.testing.assert_allclose(points[column], values, rtol=1e-9, atol=1e-9, err_msg=column)
    assert got == want


@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.parametrize("name", ["one-replica", "four-least-tokens"])
def test_the_parts_that_a_fleet_takes_do_not_matter(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsim.sim.fleet.parts.PART", size)
    test_a_simulation_gives_the_bytes_that_it_always_gave(name, tmp_path)


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {p.stem for p in FOLDER.glob("*.json")} == set(CASES)


def _write() -> None:
    import tempfile

    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            data = record(case.run(), case.load(), Path(folder))
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        (FOLDER / f"{name}.json").write_text(text, "utf-8")
        print(name, data["summary"]["completed"], data["summary"]["preemptions"], file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("give --write to replace the golden summaries by what the code does now")
    _write()
