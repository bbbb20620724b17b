"""Record several models and methods on one machine within a time limit.

    python tools/campaign.py --out campaign --gpus 0,1 --seconds 1500 --pack campaign.tgz \\
        llama-3.1-70b:fp8-w8a8:tp2 qwen2.5-32b:bf16 qwen2.5-32b:fp8-w8a8 llama-3.1-8b:gptq-w4a16

This is how the recordings here are made. Each server is a ``qsim calibrate run`` of its own, with
dummy weights. They are taken in the given order as GPUs become free; one that could not end in time
is passed over for a shorter one. After each server all whole recordings are packed anew, so that at
any moment the archive holds what is complete, and a machine that is taken away costs only what was
under way. What is complete already is not measured again.

With ``--ahead`` the next server of a GPU starts up while the one before it measures, as far as it
can without the GPU (it imports vLLM), and waits there for its turn. That saves some 25 s a server.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: By model, seconds for the server's start and for the loads as seen on 2 H200 and 32 CPUs (with
#: VLLM_USE_AOT_COMPILE=0, else a start takes 8 to 34 s more, and once vLLM's files have been read,
#: else 35 s more), and the time that the loads are chosen for, before what is learnt about the
#: server's speed makes it more.
TIMES = {
    "llama-3.1-8b": (65, 125, 110),
    "qwen2.5-14b": (75, 148, 120),
    "qwen2.5-32b": (84, 163, 130),
    "llama-3.1-70b": (94, 197, 145),
}
#: for a model that is not among them
OTHER = (100, 160, 130)
#: what --ahead saves of the start
HEAD_START_S = 25
#: what the loads get shorter by, for each second less that they are chosen for: requests under way
#: are always waited for
SHORTER = 0.77
#: tensor parallelism takes longer to start, and stopping and writing takes some seconds
MORE_FOR_TP_S, AFTER_S = 35, 3


@dataclass(frozen=True)
class Server:
    """One server to record: ``MODEL:METHOD``, with any of ``:tpN``, ``:xF`` and ``:check`` behind.

    ``tpN`` is its number of GPUs, ``xF`` a factor for the time of its loads, and ``check`` leaves
    out the loads that only a fit needs.
    """

    model: str
    method: str
    tp: int = 1
    #: of the usual time for the loads
    share: float = 1.0
    check: bool = False

    @classmethod
    def parse(cls, text: str, share: float = 1.0) -> Server:
        """Raises ValueError for anything else."""
        wrong = ValueError(f"{text!r} is not MODEL:METHOD with :tpN, :xF or :check behind it")
        model, _, rest = text.partition(":")
        method, *options = rest.split(":")
        if not (model and method):
            raise wrong
        tp, check = 1, False
        for option in options:
            if option == "check":
                check = True
            elif re.fullmatch(r"tp[1-9]\d*", option):
                tp = int(option[2:])
            elif re.fullmatch(r"x\d+(\.\d+)?", option) and float(option[1:]) > 0:
                share *= float(option[1:])
            else:
                raise wrong
        return cls(model, method, tp, share, check)

    @property
    def name(self) -> str:
        """The recording's folder."""
        tp = f"--tp{self.tp}" if self.tp > 1 else ""
        return f"{self.model}--{self.method}{tp}" + ("--check" if self.check else "")

    @property
    def start_s(self) -> int:
        return TIMES.get(self.model, OTHER)[0] + (MORE_FOR_TP_S if self.tp > 1 else 0)

    @property
    def budget_s(self) -> float:
        return self.share * TIMES.get(self.model, OTHER)[2]

    @property
    def expected_s(self) -> float:
        _, loads, usual = TIMES.get(self.model, OTHER)
        return self.start_s + loads - SHORTER * (usual - self.budget_s) + AFTER_S


def whole(out: Path) -> list[Path]:
    """The folders of ``out`` that are whole recordings (unfinished ones begin with a dot)."""
    return sorted(
        p.parent for p in out.glob("[!.]*/server.json") if not p.parent.name.endswith(".partial")
    )


def pack(out: Path, archive: Path) -> int:
    """Put all whole recordings and the logs into ``archive``; return how many recordings."""
    temporary = archive.with_name(f".{archive.name}.tmp")
    folders = whole(out)
    with tarfile.open(temporary, "w:gz", compresslevel=1) as tar:
        for path in [*folders, *sorted(out.glob("*.log")), *sorted(out.glob("*.json"))]:
            tar.add(path, arcname=path.name)
    with tarfile.open(temporary) as tar:  # read it back: an archive without them is no archive
        names = set(tar.getnames())
    missing = [p.name for p in folders if f"{p.name}/steps.csv.gz" not in names]
    if missing:
        raise RuntimeError(f"{archive} lacks {', '.join(missing)}")
    os.replace(temporary, archive)
    return len(folders)


class Campaign:
    """Servers over GPUs, in order, until the time is up."""

    def __init__(
        self, servers: Sequence[Server], gpus: Sequence[int], args: argparse.Namespace
    ) -> None:
        done = {p.name for p in whole(args.out)}
        self.waiting = [s for s in servers if s.name not in done]
        self.at: dict[int, list[Server]] = {gpu: [] for gpu in gpus}  # a GPU's, in order
        self.until = dict.fromkeys(gpus, 0.0)  # when they will probably be done
        self.args = args
        self.start = time.monotonic()
        self.changed = threading.Condition()
        self.packing = threading.Lock()
        self.failed: list[str] = []

    @property
    def now(self) -> float:
        return time.monotonic() - self.start

    def say(self, text: str) -> None:
        print(f"{self.now:7.1f} s  {text}", flush=True)

    def take(self) -> tuple[Server, list[int]] | None:
        """The next server that ends in time, with GPUs; waits for these. None if there is none."""
        with self.changed:
            while self.waiting:
                if (chosen := self.choose()) is not None:
                    server, gpus, end = chosen
                    self.waiting.remove(server)
                    for g in gpus:
                        self.at[g].append(server)
                        self.until[g] = end
                    return server, gpus
                if not any(self.at.values()):
                    return None
                self.changed.wait(1.0)
            return None

    def choose(self) -> tuple[Server, list[int], float] | None:
        """The first server that ends in time, its GPUs and its end; None if it has to wait."""
        for server in self.waiting:
            order = sorted(self.at, key=lambda g: (len(self.at[g]), self.until[g], g))
            gpus = sorted(order[: server.tp])
            begin = max([self.now, *(self.until[g] for g in gpus if self.at[g])])
            saved = HEAD_START_S if self.args.ahead and any(self.at[g] for g in gpus) else 0
            end = begin + server.expected_s - saved
            if end > self.args.seconds:
                continue
            if any(len(self.at[g]) > self.args.ahead for g in gpus):
                return None
            return server, gpus, end
        return None

    def run(self) -> int:
        threads = []
        while (taken := self.take()) is not None:
            thread = threading.Thread(target=self.record, args=taken)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        left = ", ".join(s.name for s in self.waiting) or "none"
        self.say(f"all done; failed: {', '.join(self.failed) or 'none'}; not begun: {left}")
        return 4 if self.failed else 0

    def record(self, server: Server, gpus: list[int]) -> None:
        begin = time.monotonic()
        self.say(f"{server.name} on GPU {','.join(map(str, gpus))}")
        minutes = (server.start_s + server.budget_s) / 60
        command = [*shlex.split(self.args.calibrate), "--model", server.model, "--dummy-weights"]
        command += ["--methods", server.method, "--tensor-parallel-size", str(server.tp)]
        command += ["--gpus", ",".join(map(str, gpus)), "--minutes", f"{minutes:.2f}"]
        command += ["--start-estimate", str(server.start_s), "--resume", "--no-fit"]
        command += ["--out", str(self.args.out), *self.args.more]
        own = ["--only-holdout", *self.args.check_more] if server.check else self.args.fit_more
        command += own
        locks = [self.args.out / f".gpu-{g}.lock" for g in gpus]
        env = {**os.environ, "QSIM_GPU_LOCKS": os.pathsep.join(map(str, locks))}
        with open(self.args.out / f"{server.name}.log", "w", encoding="utf-8") as log:
            code = subprocess.run(command, env=env, stdout=log, stderr=log).returncode
        self.say(f"{server.name} ended with {code} after {time.monotonic() - begin:.0f} s")
        if code:
            self.failed.append(server.name)
        with self.changed:
            for g in gpus:
                self.at[g].remove(server)
                self.until[g] = self.now + sum(x.expected_s - HEAD_START_S for x in self.at[g])
            self.changed.notify_all()
        if self.args.pack:
            with self.packing:
                self.say(f"{self.args.pack} holds {pack(self.args.out, self.args.pack)} recordings")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("servers", nargs="+", metavar="MODEL:METHOD[:tpN][:xF][:check]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", required=True, help="NVML's numbers: 0,1")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the usual time for the loads: 0.8"
    )
    parser.add_argument("--pack", type=Path, help="an archive (.tgz) of what is whole")
    parser.add_argument(
        "--ahead",
        action="store_true",
        help="start the next server of a GPU while the one before it measures",
    )
    parser.add_argument(
        "--calibrate",
        default=f"{sys.executable} -m qsim.cli.calibrate.run",
        help="the command in place of qsim calibrate run",
    )
    parser.add_argument(
        "--more", action="append", default=[], metavar="ARG", help="passed on to calibrate run"
    )
    parser.add_argument(
        "--fit-more", action="append", default=[], metavar="ARG", help="for servers without :check"
    )
    parser.add_argument(
        "--check-more", action="append", default=[], metavar="ARG", help="for those with :check"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        servers = [Server.parse(s, args.share) for s in args.servers]
    except ValueError as e:
        parser.error(str(e))
    gpus = [int(g) for g in args.gpus.split(",")]
    if (most := max(s.tp for s in servers)) > len(gpus):
        parser.error(f"a server needs {most} GPUs, --gpus names {len(gpus)}")
    return Campaign(servers, gpus, args).run()


if __name__ == "__main__":
    raise SystemExit(main())
