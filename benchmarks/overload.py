"""How often the test for overload errs: python benchmarks/overload.py [--seeds N] [--case I]

A fleet's capacity is what it finishes of ten minutes of overload. Draws of other seeds come at a
share of it, by the preset's own arrivals, by Poisson's and in bursts (gaps of a gamma law, three
times as variable), and are judged as a streamed run is (``one run``: the trace as it is) and as
``qsim simulate`` and ``qsim plan`` do (``judged``: repeated until it is clear). What a short draw
asks for is not the share: its requests may be more or longer than the preset's mean. So errors are
told by the load of the draw itself: its rate over the throughput of the same requests, repeated and
sent five times as fast.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np

from qsim.profiles.lookup import load_profile
from qsim.sim.results.continued import repeated, settled
from qsim.sim.results.result import SimulationResult
from qsim.sim.simulate import simulate
from qsim.traces import load_trace
from qsim.traces.trace import Trace

CASES = (
    ("h200_sxm/llama-3.1-70b/fp8-w8a8", "azure-conv-2023"),
    ("h200_sxm/llama-3.1-70b/awq-w4a16", "azure-code-2023"),
    ("h200_sxm/qwen2.5-32b/bf16", "burstgpt"),
    ("h200_sxm/qwen2.5-14b/fp8-w8a8", "azure-conv-2024-week"),
    ("h200_sxm/qwen2.5-32b/fp8-w8a8", "mooncake-conversation"),
)
SHARES = (0.5, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
DURATIONS_S = (10, 15, 60, 300, 1800)
ARRIVALS = ("preset", "poisson", "bursty")
#: requests of the run that tells a draw's load
_FLOOD = 8000
#: loads are told between these
EDGES = (0.0, 0.65, 0.8, 0.9, 0.95, 1.05, 1.1, 1.2, 9.9)


class Case:
    """One profile under one preset."""

    def __init__(self, profile: str, preset: str) -> None:
        self.profile, self.preset = load_profile(profile), preset
        rate = 0.5
        while True:
            trace = self.draw(rate, 600, 999, "poisson")
            load = self.judged(trace, self.run(trace))
            if load.overloaded and load.finished_rps < 0.8 * load.arriving_rps:
                break
            rate *= 1.5
        self.capacity_rps = load.finished_rps

    def draw(self, rate: float, duration_s: float, seed: int, arrivals: str) -> Trace:
        trace = load_trace(f"{self.preset}:duration={duration_s},rate={rate},seed={seed}")
        if arrivals == "preset":
            return trace
        shape = 1.0 if arrivals == "poisson" else 1 / 9
        rng = np.random.default_rng([seed, 5])
        gaps = rng.gamma(shape, 1 / (shape * rate), len(trace))
        return replace(trace, arrival_s=np.cumsum(gaps))

    def run(self, trace: Trace) -> SimulationResult:
        return simulate(trace, self.profile, too_long="reject")

    def judged(self, trace: Trace, result: SimulationResult):
        return settled(result.load, trace, self.run)

    def own_load(self, trace: Trace) -> float:
        times = max(6, -(-_FLOOD // len(trace)))
        longer, _ = repeated(trace, times)
        fast = len(longer) / longer.duration_s / (5 * self.capacity_rps)
        result = self.run(longer.speed(1 / fast))
        done = result.completed
        left_s = np.sort(result.arrival_s[done] + result.e2el_ms[done] / 1000)
        a, b = len(left_s) // 2, len(left_s) * 5 // 6
        return (
            len(trace)
            / (trace.duration_s * len(trace) / (len(trace) - 1))
            / ((b - a) / (left_s[b] - left_s[a]))
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--case", type=int)
    parser.add_argument("--shortest", type=float, default=0)
    parser.add_argument("--longest", type=float, default=1800)
    args = parser.parse_args()
    totals: dict[tuple[str, float], Counter[str]] = defaultdict(Counter)
    for number, (profile, preset) in enumerate(CASES):
        if args.case not in (None, number):
            continue
        case = Case(profile, preset)
        print(f"{profile} under {preset}: carries {case.capacity_rps:.3f} requests/s", flush=True)
        for duration_s in (d for d in DURATIONS_S if args.shortest <= d <= args.longest):
            seeds = args.seeds if duration_s <= 60 else max(1, args.seeds // 4)
            for arrivals in ARRIVALS:
                for share in SHARES:
                    for seed in range(seeds):
                        trace = case.draw(share * case.capacity_rps, duration_s, seed, arrivals)
                        if len(trace) < 2 or trace.duration_s < 1:
                            continue
                        own = case.own_load(trace)
                        edge = max(e for e in EDGES if e <= own)
                        result = case.run(trace)
                        told = result.load.verdict, case.judged(trace, result).verdict
                        for key in ("all", f"{duration_s} s", arrivals, preset):
                            counts = totals[key, edge]
                            counts["one run " + told[0]] += 1
                            counts["judged " + told[1]] += 1
                        if (own < 0.9 and told[1] != "sustained") or (
                            own > 1.1 and told[1] != "overloaded"
                        ):
                            print(
                                f"  {preset} {arrivals} {duration_s} s share {share} seed {seed}: "
                                f"own load {own:.3f}, {len(trace)} requests: {told}",
                                flush=True,
                            )
    names = list(dict.fromkeys(key for key, _ in totals))
    for name in names:
        print(name)
        for edge, following in pairwise(EDGES):
            counts = totals.get((name, edge))
            if counts:
                n = sum(v for k, v in counts.items() if k.startswith("judged"))
                told = ", ".join(f"{k} {v}" for k, v in sorted(counts.items()))
                print(f"  load {edge:.2f} to {following:.2f}: {n} draws: {told}")


if __name__ == "__main__":
    sys.exit(main())
