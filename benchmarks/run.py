"""Speed of the simulator: python benchmarks/run.py [--small] [--json FILE] [--trace FILE]

Every figure is the median of several runs and is also given as a ratio to a yardstick measured in
the same process (a million bare SimPy timeouts), which hardly depends on the machine. Nothing here
passes or fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import simpy

from qsim import __version__
from qsim.profile import Profile
from qsim.profiles import load_profile
from qsim.sim.api import simulate
from qsim.sim.config import EngineOptions
from qsim.traces import load_trace
from qsim.traces.trace import Trace

PROFILE = "h200_sxm/llama-3.1-8b/bf16"
TIMEOUTS = 1_000_000

# Linux counts the memory of the process that forked in ru_maxrss, but not in VmHWM
_CHILD = """
import sys
from qsim.cli import main
try:
    main()
finally:
    try:
        with open("/proc/self/status") as f:
            peak = next(x.split()[1] for x in f if x.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = ""
    sys.stderr.write("\\n" + peak)
"""


@dataclass(frozen=True)
class Figure:
    """One benchmark."""

    name: str
    seconds: float
    ratio: float
    #: 0 where requests are not what is counted
    requests: int = 0
    us_per_request: float | None = None
    peak_mb: float | None = None

    def line(self) -> str:
        each = "" if self.us_per_request is None else f"{self.us_per_request:8.1f} us a request"
        memory = "" if self.peak_mb is None else f"{self.peak_mb:8.0f} MB"
        return f"{self.name:<52}{self.seconds:9.3f} s {self.ratio:9.3f} x{each}{memory}"


def yardstick(timeouts: int) -> float:
    """Seconds for a million timeouts of one SimPy process."""
    env = simpy.Environment()

    def process() -> simpy.events.ProcessGenerator:
        for _ in range(timeouts):
            yield env.timeout(1)

    env.process(process())
    start = time.perf_counter()
    env.run()
    return (time.perf_counter() - start) * TIMEOUTS / timeouts


def median(repeats: int, run: Callable[[], object]) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Bench:
    """Collects figures and prints each when it is known."""

    def __init__(self, repeats: int, timeouts: int) -> None:
        self.repeats = repeats
        self.unit = statistics.median(yardstick(timeouts) for _ in range(repeats))
        self.figures: list[Figure] = []
        print(f"{'yardstick: a million SimPy timeouts':<52}{self.unit:9.3f} s", flush=True)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(figure.line(), flush=True)

    def simulate(
        self,
        name: str,
        trace: Trace,
        profile: Profile,
        replicas: int = 1,
        router: str = "least-requests",
        options: EngineOptions | None = None,
    ) -> None:
        def run() -> None:
            simulate(
                trace,
                profile,
                replicas=replicas,
                router=router,
                options=options,
                too_long="reject",
            ).summary()

        seconds = median(self.repeats, run)
        n = len(trace)
        self.add(Figure(name, seconds, seconds / self.unit, n, seconds / n * 1e6))

    def process(self, name: str, arguments: list[str], requests: int = 0) -> None:
        """A whole ``qsim`` process: its time, and the most memory that it held."""
        times: list[float] = []
        peaks: list[float] = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            child = subprocess.run(
                [sys.executable, "-c", _CHILD, *arguments], capture_output=True, check=False
            )
            times.append(time.perf_counter() - start)
            if child.returncode:
                raise SystemExit(child.stderr.decode())
            last = child.stderr.decode().rsplit("\n", 1)[-1]
            if last:
                peaks.append(int(last) / 1024)
        seconds = statistics.median(times)
        each = seconds / requests * 1e6 if requests else None
        ratio = seconds / self.unit
        peak = statistics.median(peaks) if peaks else None
        self.add(Figure(name, seconds, ratio, requests, each, peak))


def run_all(bench: Bench, small: bool, trace_file: str | None) -> None:
    profile = load_profile(PROFILE)
    tenth = EngineOptions(num_gpu_blocks_override=profile.memory.num_gpu_blocks // 10)
    seconds = 300 if small else 3600
    source = trace_file or f"azure-conv-2023:duration={seconds}"
    one = load_trace(source)
    bench.simulate("one replica", one, profile)
    for replicas in (4, 64, 256):
        bench.simulate(f"{replicas} replicas, {replicas} x load", one.speed(replicas), profile,
                       replicas)  # fmt: skip
    bench.simulate("one replica, 8 x load", one.speed(8), profile)
    bench.simulate("one replica, a tenth of the KV blocks", one, profile, options=tenth)
    bench.simulate("the same, 3 x load: preemptions", one.speed(3), profile, options=tenth)
    mooncake = load_trace(f"mooncake-conversation:duration={seconds}")
    bench.simulate("8 replicas, prefix caching and affinity", mooncake, profile, 8,
                   "prefix-affinity")  # fmt: skip

    bench.process("qsim --help", ["--help"])
    few = "azure-conv-2023:duration=5"
    bench.process("qsim simulate, a few requests", ["simulate", few, "--profile", PROFILE])
    with tempfile.TemporaryDirectory() as folder:
        files = ["--json", f"{folder}/s.json", "--requests", f"{folder}/r.csv"]
        where = str(Path(source).resolve()) if trace_file else source
        arguments = ["simulate", where, "--profile", PROFILE, *files]
        bench.process("qsim simulate, all of it, writing files", arguments, len(one))
    # what `make demo` asks, without its pictures
    demo = f"azure-conv-2023:duration={30 if small else 180},rate=80"
    slos = ["--slo", "ttft:p99:500", "--slo", "tpot:p99:25"]
    bench.process("qsim plan, as in make demo", ["plan", demo, "--model", "llama-3.1-8b", *slos])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="a small trace and one run of each")
    parser.add_argument("--json", metavar="FILE", help="write the figures; - for stdout alone")
    parser.add_argument("--trace", metavar="FILE", help="instead of the azure-conv-2023 preset")
    given = parser.parse_args()
    stdout = sys.stdout
    if given.json == "-":
        sys.stdout = sys.stderr  # figures as they come; stdout is for the data
    bench = Bench(1 if given.small else 5, TIMEOUTS // 10 if given.small else TIMEOUTS)
    run_all(bench, given.small, given.trace)
    if given.json:
        data = {
            "qsim_version": __version__,
            "python": sys.version.split()[0],
            "small": given.small,
            "yardstick_s": bench.unit,
            "figures": [asdict(f) for f in bench.figures],
        }
        text = json.dumps(data, indent=1) + "\n"
        if given.json == "-":
            stdout.write(text)
        else:
            Path(given.json).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
