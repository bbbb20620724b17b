"""Kills commands at random moments, fills their disk, and sees that they go on as if undisturbed.

    python -m tests.torture --kills 200 --seed 1

After every kill no process of the command is left and nobody holds its pipes. After some kills the
command is resumed to its end: what it prints and writes has the bytes of a run that was not
disturbed, and there is no other file. ``calibrate run`` measures the tests' stub server; there the
recordings are whole. Where a small tmpfs can be mounted every command also runs on a full disk.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qsim.calibrate.measure.run import is_complete
from tests.calibrate.stub import HERE, MARK, STUB, none_left, stub_environment
from tests.make_profile import make_profile

__all__ = ["SIGNALS", "Failure", "full_disks", "torture"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP)
SLO = ("--slo", "ttft:p99:500")


class Failure(AssertionError):  # noqa: N818 - a finding, not an error of this program
    """Something was not as it must be."""


@dataclass(frozen=True)
class Case:
    """A command, and what it may leave in its folder beside what an undisturbed run leaves."""

    name: str
    words: tuple[str, ...]
    resumable: bool = True
    module: tuple[str, ...] = ("-m", "qsim")

    def command(self, resume: bool) -> list[str]:
        """What is started, in the case's folder."""
        more = ["--resume"] if resume and self.resumable else []
        return [sys.executable, *self.module, *self.words, *more]


def cases(profiles: Path) -> dict[str, Case]:
    """One command each; they take seconds."""
    fast, slow = str(profiles / "fast.json"), str(profiles / "slow.json")
    both = ("--profile", fast, "--profile", slow)
    two = ("--jobs", "2", "--no-progress")
    chat = "azure-conv-2023:duration=15,rate=30"
    found = (
        Case("tune", ("tune", chat, *both, *SLO, "--trials", "30", "--study", "study.journal",
                      "--json", "out.json", "--trials-csv", "trials.csv", "--no-importance", *two)),
        Case("sweep", ("sweep", chat, "--profile", fast, "--grid", "max_num_seqs=16:400:x2",
                       "--grid", "replicas=1:4", "--out", "rows.csv", *two)),
        Case("sweep-1", ("sweep", chat, "--profile", fast, "--grid", "replicas=1:20",
                         "--out", "rows.json", "--jobs", "1", "--no-progress")),
        Case("plan", ("plan", chat, *both, *SLO, "--search", "max_num_seqs", "--search", "router",
                      "--trials", "12", "--study", "study.journal", "--json", "out.json", *two)),
        Case("schedule", ("schedule", "azure-conv-2023:duration=180,rate=8", *both, *SLO,
                          "--window", "1min", "--trials", "4", "--policy", "reactive",
                          "--study", "study.journal", "--json", "out.json", *two)),
        Case("simulate", ("simulate", "azure-conv-2023:duration=300,rate=30", "--profile", fast,
                          "--replicas", "4", "--json", "out.json", "--requests", "rows.csv.gz",
                          "--timeline", "steps.json", "--no-progress"), resumable=False),
        Case("calibrate", ("run", "--model", "llama-3.1-8b", "--dummy-weights", "--methods",
                           "bf16,fp8-w8a8", "--gpus", "0,1", "--minutes", "2.2", "--out", "out",
                           "--serve-command", " ".join(STUB), "--no-fit"),
             module=(str(HERE / "drive.py"),)),
    )  # fmt: skip
    return {c.name: c for c in found}


@contextmanager
def place(case: Case) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder to run in, and an environment by which all processes of the run are found."""
    with tempfile.TemporaryDirectory(prefix=f"torture-{case.name}-") as text:
        root = Path(text)
        (root / "work").mkdir()
        (root / "tmp").mkdir()
        yield (
            root,
            stub_environment(**{MARK: text, "TMPDIR": str(root / "tmp")})
            | {
                "PYTHONPATH": os.pathsep.join(
                    [str(Path(__file__).parents[1]), stub_environment()["PYTHONPATH"]]
                )
            },
        )


def start(case: Case, root: Path, env: dict[str, str], resume: bool) -> subprocess.Popen[bytes]:
    """Start the command in a group of its own, with no signal ignored (as it is under nohup)."""
    return subprocess.Popen(
        case.command(resume), cwd=root / "work", env=env, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_obey,
    )  # fmt: skip


def _obey() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def files(root: Path) -> dict[str, bytes]:
    """What there is, in the folder and among temporary files."""
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def finish(case: Case, root: Path, env: dict[str, str], resume: bool) -> tuple[bytes, float]:
    """Run the command to its end: what it printed, and how long it took, s."""
    begin_s = time.monotonic()
    process = start(case, root, env, resume)
    out, err = process.communicate(timeout=900)
    if process.returncode != 0:
        raise Failure(f"{case.name}: exit code {process.returncode}: {err.decode()[-1500:]}")
    return out, time.monotonic() - begin_s


def check_end(case: Case, root: Path, expected: dict[str, bytes]) -> None:
    """The same bytes in the same files; the recordings of a calibration are whole."""
    found = files(root)
    if case.name == "calibrate":
        out = root / "work" / "out"
        names = sorted(p.name for p in out.iterdir())
        wanted = ["campaign.json", "llama-3.1-8b--bf16", "llama-3.1-8b--fp8-w8a8"]
        if names != wanted or not all(is_complete(out / n) for n in wanted[1:]):
            raise Failure(f"{case.name}: left {names}")
        found = {n: b for n, b in found.items() if not n.startswith("work/out/")}
        expected = {n: b for n, b in expected.items() if not n.startswith("work/out/")}
    journals = {n for n in expected if n.endswith(".journal")}  # times of day stand in them
    if found.keys() != expected.keys():
        raise Failure(f"{case.name}: files {sorted(found.keys() ^ expected.keys())}")
    for name in found.keys() - journals:
        if found[name] != expected[name]:
            raise Failure(f"{case.name}: {name} has other bytes")


def kill_once(
    case: Case, root: Path, env: dict[str, str], rng: random.Random, takes_s: float, resume: bool
) -> str:
    """Start, wait, kill, and see that nothing is left running; says what was done."""
    number = rng.choice(SIGNALS)
    group = rng.random() < 0.5
    process = start(case, root, env, resume)
    after_s = rng.uniform(0.2, takes_s)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        (os.killpg if group else os.kill)(process.pid, number)
    what = f"{case.name} {number.name}{' to all' if group else ''} after {after_s:.2f} s"
    try:
        _, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Failure(f"{what}: somebody holds its pipes") from None
    left = none_left(str(root))
    if left:
        raise Failure(f"{what}: still running: {left}")
    text = err.decode()
    early = process.returncode in (-number, 1) and not text.strip().startswith("Error")
    # Python ends by SIGINT itself, which a shell calls 130, too, where the interrupt came while it
    # ran code that stands in a string, as the making of a dataclass does
    ended = (0, 130, -signal.SIGINT) if "Interrupted." in text else (0,)
    if process.returncode not in ended and number != signal.SIGKILL and not early:
        raise Failure(f"{what}: exit code {process.returncode}: {text[-1500:]}")
    if "Traceback" in text and process.returncode == 130:
        raise Failure(f"{what}: {text[-1500:]}")
    return what if process.returncode != 0 else f"{what}: it had ended"


def torture(kills: int, seed: int, only: tuple[str, ...] = (), say: bool = False) -> Counter[str]:
    """Kill ``kills`` times; returns how often each command was hit by each signal.

    Raises
    ------
    Failure
        At the first thing that is not as it must be.
    """
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="torture-profiles-") as text:
        make_profile(method="fp8-w8a8").save(Path(text) / "fast.json")
        make_profile(method="bf16", decode_ms=7.0).save(Path(text) / "slow.json")
        known = {n: c for n, c in cases(Path(text)).items() if not only or n in only}
        expected: dict[str, tuple[bytes, float, dict[str, bytes]]] = {}
        names = list(known)
        turn = 0
        while sum(done.values()) < kills:
            case = known[names[turn % len(names)]]
            turn += 1
            if case.name not in expected:
                with place(case) as (root, env):
                    out, takes_s = finish(case, root, env, False)
                    expected[case.name] = (out, takes_s, files(root))
            printed, takes_s, wanted = expected[case.name]
            with place(case) as (root, env):
                for k in range(min(rng.randint(3, 8), kills - sum(done.values()))):
                    what = kill_once(case, root, env, rng, takes_s, k > 0)
                    ended = what.endswith("ended")  # too late to count
                    done[" ".join(what.split()[:2])] += not ended
                    if say:
                        print(f"{sum(done.values()):4d} {what}", flush=True)
                    if ended:
                        break
                if ended:
                    check_end(case, root, wanted)
                    continue
                out, _ = finish(case, root, env, True)
                if out != printed and case.name != "calibrate":
                    raise Failure(f"{case.name}: printed\n{out.decode()}\ninstead of\n"
                                  f"{printed.decode()}")  # fmt: skip
                check_end(case, root, wanted)
    return done


def full_disks(say: bool = False) -> list[str]:
    """Run every command on a tmpfs of 8 kB: the answer is printed, and the error names a file.

    Returns the commands that were run; none if nothing can be mounted here.

    Raises
    ------
    Failure
        If the answer is lost, or a file is half written.
    """
    ran = []
    with tempfile.TemporaryDirectory(prefix="torture-profiles-") as text:
        make_profile(method="fp8-w8a8").save(Path(text) / "fast.json")
        make_profile(method="bf16", decode_ms=7.0).save(Path(text) / "slow.json")
        for case in cases(Path(text)).values():
            if case.name == "calibrate":
                continue
            with place(case) as (root, env):
                expected, _ = finish(case, root, env, False)
                shutil.rmtree(root / "work")
                (root / "work").mkdir()
                mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(root / "work")]
                if subprocess.run(mount, capture_output=True).returncode != 0:
                    return []
                try:
                    process = start(case, root, env, False)
                    out, err = process.communicate(timeout=900)
                    left = [p.name for p in (root / "work").iterdir()]
                finally:
                    subprocess.run(["umount", str(root / "work")], check=True)
                last = (err.decode().strip().splitlines() or [""])[-1]
                told = "No space left on device" in err.decode()
                lost = out != expected if expected else not out.startswith(b"run,")
                if process.returncode != 1 or lost or not told or "Traceback" in err.decode():
                    raise Failure(f"{case.name}: {process.returncode} {err.decode()[-1500:]}")
                if any(n.startswith(".tmp") for n in left):
                    raise Failure(f"{case.name}: left {left}")
                ran.append(case.name)
                if say:
                    print(f"full disk: {case.name}: {last}", flush=True)
    return ran


def main() -> int:
    """As the module says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--no-disk", action="store_true")
    args = parser.parse_args()
    try:
        done = torture(args.kills, args.seed, tuple(args.only), say=True)
        ran = [] if args.no_disk else full_disks(say=True)
    except Failure as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 1
    for name, count in sorted(done.items()):
        print(f"{name:24} {count}")
    print(f"{sum(done.values())} kills, full disks: {', '.join(ran) or 'none could be mounted'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
