"""Speed of the simulator: python benchmarks/run.py [--small] [--json FILE] [--trace FILE]

Every figure is the median of several runs and is also given as a ratio to a yardstick measured in
the same process (a million bare SimPy timeouts), which hardly depends on the machine. Seconds are
of the clock and of the processor; ratios are of the processor's, which other programs disturb less.
Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces import load_trace, write_trace
from qsim.traces.trace import Trace

#: under one release of vLLM, so that figures compare from version to version of qsim
PROFILE = "h200_sxm/llama-3.1-8b/bf16@0.24"
FLEET = ["--profile", PROFILE]
#: without the simulations that ranges over machines are from
ONE_MACHINE = ["--machines", "0"]
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
    #: by the clock, and of the processor in all processes
    seconds: float
    cpu_seconds: float
    #: of processor time to the yardstick's
    ratio: float
    #: 0 where requests are not what is counted
    requests: int = 0
    us_per_request: float | None = None
    peak_mb: float | None = None
    #: of processor time to that of the figure before, which is the same without something
    times_before: float | None = None

    def line(self) -> str:
        each = "" if self.us_per_request is None else f"{self.us_per_request:8.1f} us a request"
        memory = "" if self.peak_mb is None else f"{self.peak_mb:8.0f} MB"
        times = f"{self.seconds:9.3f} s {self.cpu_seconds:9.3f} s cpu {self.ratio:9.3f} x"
        more = (
            "" if self.times_before is None else f"{self.times_before:8.2f} times the line before"
        )
        return f"{self.name:<52}{times}{each}{memory}{more}"


def clocks() -> tuple[float, float]:
    """The clock, and the processor time of this process and of children that have ended, s."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in used)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """How long something takes: by the clock, and of the processor."""
    begin = clocks()
    run()
    end = clocks()
    return end[0] - begin[0], end[1] - begin[1]


def yardstick(timeouts: int) -> tuple[float, float]:
    """Seconds for a million timeouts of one SimPy process."""
    env = simpy.Environment()

    def process() -> simpy.events.ProcessGenerator:
        for _ in range(timeouts):
            yield env.timeout(1)

    env.process(process())
    clock, cpu = timed(env.run)
    return clock * TIMEOUTS / timeouts, cpu * TIMEOUTS / timeouts


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Of each of both."""
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


class Bench:
    """Collects figures and prints each when it is known."""

    def __init__(self, repeats: int, timeouts: int) -> None:
        self.repeats = repeats
        self.unit_s, self.unit = medians([yardstick(timeouts) for _ in range(repeats)])
        self.figures: list[Figure] = []
        name = "yardstick: a million SimPy timeouts"
        print(f"{name:<52}{self.unit_s:9.3f} s {self.unit:9.3f} s cpu", flush=True)

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

        seconds, cpu = medians([timed(run) for _ in range(self.repeats)])
        n = len(trace)
        self.add(Figure(name, seconds, cpu, cpu / self.unit, n, cpu / n * 1e6))

    def process(
        self,
        name: str,
        arguments: list[str],
        requests: int = 0,
        repeats: int | None = None,
        beside_last: bool = False,
    ) -> None:
        """A whole ``qsim`` process: its time, and the most memory that it held.

        With ``beside_last`` also its time over that of the figure before.
        """
        peaks: list[float] = []

        # as installed: modules are compiled once, not in every process
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

        def run() -> None:
            child = subprocess.run(
                [sys.executable, "-c", _CHILD, *arguments],
                capture_output=True,
                check=False,
                env=environment,
            )
            if child.returncode:
                raise SystemExit(child.stderr.decode())
            last = child.stderr.decode().rsplit("\n", 1)[-1]
            if last:
                peaks.append(int(last) / 1024)

        seconds, cpu = medians([timed(run) for _ in range(repeats or self.repeats)])
        each = cpu / requests * 1e6 if requests else None
        peak = statistics.median(peaks) if peaks else None
        times = cpu / self.figures[-1].cpu_seconds if beside_last else None
        self.add(Figure(name, seconds, cpu, cpu / self.unit, requests, each, peak, times))


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
    bench.simulate("8 replicas, prefix caching", mooncake, profile, 8)
    bench.simulate("8 replicas, prefix caching and affinity", mooncake, profile, 8,
                   "prefix-affinity")  # fmt: skip

    bench.process("qsim --help", ["--help"])
    with tempfile.TemporaryDirectory() as folder:
        run_processes(bench, small, source if trace_file is None else trace_file, Path(folder))
        request = Path(folder, "one.csv")
        request.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,1\n", "utf-8")
        arguments = ["simulate", str(request), *FLEET, *ONE_MACHINE]
        bench.process("qsim simulate of one request", arguments)
    # what `make demo` asks, without its pictures
    demo = f"azure-conv-2023:duration={30 if small else 180},rate=80"
    slos = ["--slo", "ttft:p99:500", "--slo", "tpot:p99:25"]
    bench.process("qsim plan, as in make demo", ["plan", demo, "--model", "llama-3.1-8b", *slos])
    slos = ["--slo", "ttft:p99:500", "--slo", "tpot:p99:50"]
    bench.process("qsim plan for the trace", ["plan", source, "--model", "llama-3.1-8b", *slos])


def run_processes(bench: Bench, small: bool, source: str, folder: Path) -> None:
    """Whole simulations with reading and writing: in memory, streamed, and many requests."""
    files = ["--json", str(folder / "s.json"), "--requests", str(folder / "r.csv")]
    # written first, so that no case draws its trace
    table = folder / "trace.csv.gz"
    one = load_trace(source)
    write_trace(one, table)
    arguments = ["simulate", str(table), *FLEET, *files]
    alone = [*arguments, *ONE_MACHINE]
    bench.process("qsim simulate, reading and writing", alone, len(one))
    bench.process("the same, --stream", [*alone, "--stream"], len(one))
    bench.process("qsim simulate, with ranges over machines", arguments, len(one))
    n = 20_000 if small else 1_000_000
    many = ["simulate", f"azure-conv-2023:requests={n},rate=250", *FLEET, *ONE_MACHINE,
            "--replicas", "50"]  # fmt: skip
    bench.process(f"{n:,} requests, 50 replicas", [*many, "--json", files[1]], n, 1)
    week = ["simulate", f"azure-conv-2024-week:requests={n}", *FLEET, "--replicas", "8"]
    name = f"{n:,} requests of the week, 8 replicas, --stream"
    bench.process(name, [*week, "--stream", "--json", files[1]], n, 1)
    # eight times as fast, so that 64 servers have something to do
    fleet = [*week[:-1], "64", "--speed", "8", "--stream", "--json", files[1]]
    bench.process(f"{n:,} requests of the week, 64 replicas, --stream", fleet, n, 1)
    scaled = [*fleet, "--autoscale", "requests=24,min=8,max=64", "--mtbf", "3600"]
    name = "the same, autoscaled and failing"
    bench.process(name, [*scaled, "--repair-time", "600"], n, 1, beside_last=True)


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
            "yardstick_s": bench.unit_s,
            "yardstick_cpu_s": bench.unit,
            "figures": [asdict(f) for f in bench.figures],
        }
        text = json.dumps(data, indent=1) + "\n"
        if given.json == "-":
            stdout.write(text)
        else:
            Path(given.json).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
