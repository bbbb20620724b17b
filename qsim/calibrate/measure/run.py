"""A campaign: several methods of one model, one server on each GPU (or group) at a time."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qsim.calibrate.measure.job import Job, environment, server_command
from qsim.calibrate.measure.journal import salvage
from qsim.calibrate.measure.measurement import measure, planned
from qsim.calibrate.measure.workload import total_s
from qsim.catalog.gpus import GpuType
from qsim.catalog.methods import check, find_method
from qsim.catalog.models import Model
from qsim.checks import finite
from qsim.documents import read_json
from qsim.errors import CalibrationError, QsimError, ScenarioError
from qsim.files import write_text


def load_seconds(minutes: float, start_s: float = 90.0) -> float:
    """How long the loads may take when a method may take ``minutes`` with the server's start.

    Raises
    ------
    ScenarioError
        If that leaves too little to measure anything.
    """
    finite("start_estimate", start_s, 0.0, 86_400.0)
    finite("minutes", minutes, 0.0, 1440.0)
    seconds = 60.0 * minutes - start_s
    if seconds < 30.0:
        raise ScenarioError(
            f"minutes is {minutes:g}; must be at least {(start_s + 30) / 60:.1f}: the server's "
            f"start takes about {start_s:.0f} s, the loads need 30 s or more"
        )
    return seconds


def groups_of(gpus: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """The GPUs in groups of ``size``, one server each.

    Raises
    ------
    ScenarioError
        If there are not enough for one group, or one is named twice.
    """
    if len(set(gpus)) != len(gpus):
        raise ScenarioError(f"gpus is {','.join(map(str, gpus))}; each GPU may be named once")
    groups = [tuple(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]
    if not groups:
        raise ScenarioError(
            f"tensor_parallel_size is {size}; must be at most the number of GPUs, {len(gpus)}"
        )
    return groups


def make_jobs(
    model: Model, methods: Sequence[str], gpu: GpuType, template: Job
) -> tuple[list[Job], dict[str, str]]:
    """A job for each method that can run, and the reason for each that cannot.

    Raises
    ------
    ScenarioError
        If a method is unknown or named twice.
    """
    jobs: list[Job] = []
    refused: dict[str, str] = {}
    for name in methods:
        method = find_method(name)
        job = replace(template, model=model, method=method, gpu=gpu)
        if any(j.name == job.name for j in jobs) or job.name in refused:
            raise ScenarioError(f"methods has {name!r} twice")
        reason = check(method, model, gpu, template.tensor_parallel_size)
        if reason is None:
            jobs.append(job)
        else:
            refused[job.name] = reason
    return jobs, refused


COMPLETE, FAILED, REFUSED = "complete", "failed", "refused"
#: what a recording consists of
FILES = ("server.json", "phases.json", "steps.csv.gz", "requests.csv.gz", "power.csv.gz")


@dataclass(frozen=True)
class JobState:
    """How a job ended."""

    status: str
    seconds: float = 0.0
    reason: str = ""


class CampaignState:
    """``campaign.json`` of a folder; safe to use from several threads."""

    def __init__(self, out: Path) -> None:
        self.path = out / "campaign.json"
        self._lock = threading.Lock()
        self.jobs: dict[str, JobState] = {}
        try:
            data = read_json(self.path)
            self.jobs = {k: JobState(**v) for k, v in data["jobs"].items()}
        except (ScenarioError, KeyError, TypeError, AttributeError):
            self.jobs = {}  # no campaign yet, or one of another version: folders tell what is done

    def record(self, name: str, state: JobState) -> None:
        """Remember how a job ended, whole or not at all."""
        with self._lock:
            self.jobs[name] = state
            jobs = {k: asdict(v) for k, v in self.jobs.items()}
            write_text(self.path, json.dumps({"jobs": jobs}, indent=1) + "\n")


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a whole recording: it gets its name only when it does."""
    return all((folder / name).is_file() for name in FILES)


@dataclass(frozen=True)
class CampaignResult:
    """How every job ended."""

    complete: dict[str, Path]
    failed: dict[str, str]
    refused: dict[str, str]


class CancelledError(Exception):
    """The campaign was told to stop; not an error of a job."""


@dataclass
class Campaign:
    """Jobs over groups of GPUs."""

    #: What to measure, in this order.
    jobs: Sequence[Job]
    #: Methods that cannot run, with reasons; kept for the result.
    refused: dict[str, str]
    #: NVML's numbers of the GPUs of each worker.
    groups: Sequence[tuple[int, ...]]
    #: The campaign's folder.
    out: Path
    #: Called from several threads with (GPUs, job's name, what, seconds left in the campaign).
    report: Callable[[tuple[int, ...], str, str, float], None]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def plan(self) -> dict[str, Any]:
        """What would be done, for ``--dry-run``: loads, commands and time."""
        jobs = []
        for job in self.jobs:
            loads = planned(job)
            path = job.model.source or f"<{job.model.id} with dummy weights>"
            ours = environment(job, self.groups[0], {})
            jobs.append(
                {
                    "name": job.name,
                    "command": [*server_command(job, path), "--port", "<free>"],
                    "environment": ours,
                    "estimated_s": round(job.start_s + total_s(loads)),
                    "loads": [
                        {
                            "label": p.label,
                            "use": p.use,
                            "s": round(p.expected_s, 1),
                            "what": p.what,
                        }
                        for p in loads
                    ],
                    "complete": is_complete(self.out / job.name),
                }
            )
        return {
            "gpus": [list(g) for g in self.groups],
            "jobs": jobs,
            "refused": self.refused,
            "estimated_minutes": round(self._left_s(list(self.jobs), {}) / 60, 1),
        }

    def run(self, *, resume: bool = False) -> CampaignResult:
        """Measure everything; a job that fails does not stop the others.

        Parameters
        ----------
        resume : bool
            Skip what is complete. Without it a complete recording is an error.

        Raises
        ------
        ScenarioError
            If a recording exists already and ``resume`` is not set.
        KeyboardInterrupt
            Passed on after all servers were stopped.
        """
        done = {j.name: self.out / j.name for j in self.jobs if is_complete(self.out / j.name)}
        if done and not resume:
            raise ScenarioError(
                f"{next(iter(done.values()))} exists already: add --resume to keep it and measure "
                "the rest, or choose another --out"
            )
        for job in self.jobs:
            folder = self.out / job.name
            if job.name not in done and folder.exists():
                raise ScenarioError(
                    f"{folder} exists but is not a whole recording: remove it, or choose another "
                    "--out"
                )
        self.out.mkdir(parents=True, exist_ok=True)
        for leftover in self.out.glob(".*--*.*"):  # of a campaign that was killed
            owner = leftover.suffixes[-2:-1]
            if owner and not Path(f"/proc/{owner[0][1:]}").exists():
                salvage(leftover, self.out / f"{leftover.name[1:].rsplit('.', 2)[0]}.partial")
                shutil.rmtree(leftover, ignore_errors=True)
        state = CampaignState(self.out)
        for name, reason in self.refused.items():
            state.record(name, JobState(REFUSED, reason=reason))
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        todo = [j for j in self.jobs if j.name not in done]
        for job in todo:
            waiting.put(job)
        failed: dict[str, str] = {}
        left: dict[str, float] = {}
        # Not Thread.join: interrupted by Ctrl-C it takes a running thread for a finished one
        # (Python 3.11), and unfinished work would stay behind.
        ended: list[threading.Event] = []
        for group in self.groups[: max(1, len(todo))]:
            event = threading.Event()
            args = (event, group, waiting, todo, done, failed, left, state)
            threading.Thread(target=self._worker, args=args, daemon=True).start()
            ended.append(event)
        try:
            for event in ended:
                while not event.wait(0.2):
                    pass
        except BaseException:
            self.cancelled.set()
            for event in ended:  # each worker stops its server and removes its unfinished work
                event.wait(30.0)
            raise
        return CampaignResult(done, failed, self.refused)

    def _worker(self, ended: threading.Event, *args: Any) -> None:
        try:
            self._work(*args)
        finally:
            ended.set()

    def _work(
        self,
        group: tuple[int, ...],
        waiting: queue.SimpleQueue[Job],
        todo: list[Job],
        done: dict[str, Path],
        failed: dict[str, str],
        left: dict[str, float],
        state: CampaignState,
    ) -> None:
        while not self.cancelled.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return

            def progress(what: str, seconds: float, job: Job = job) -> None:
                left[job.name] = seconds
                open_jobs = [j for j in todo if j.name not in done and j.name not in failed]
                self.report(group, job.name, what, self._left_s(open_jobs, left))

            begin = time.perf_counter()
            try:
                done[job.name] = measure(job, group, self.out, progress, self._check)
                status = JobState(COMPLETE, time.perf_counter() - begin)
                self.report(group, job.name, "complete", self._left_s([], left))
            except CancelledError:
                return
            except Exception as e:
                known = isinstance(e, QsimError)
                failed[job.name] = str(e) if known else f"{type(e).__name__}: {e}"
                status = JobState(FAILED, time.perf_counter() - begin, failed[job.name])
                self.report(group, job.name, f"failed: {failed[job.name]}", 0.0)
            state.record(job.name, status)

    def _check(self) -> None:
        if self.cancelled.is_set():
            raise CancelledError

    def _left_s(self, open_jobs: Sequence[Job], left: dict[str, float]) -> float:
        """Time left when each free worker takes the next job."""
        workers = sorted(left[j.name] for j in open_jobs if j.name in left)
        workers = [0.0] * (len(self.groups) - len(workers)) + workers
        for job in open_jobs:
            if job.name not in left:
                workers.sort()
                workers[0] += job.start_s + total_s(planned(job))
        return max(workers, default=0.0)


def require_complete(result: CampaignResult) -> None:
    """Raise CalibrationError if a job failed."""
    if result.failed:
        name, reason = next(iter(result.failed.items()))
        more = f" (and {len(result.failed) - 1} more)" if len(result.failed) > 1 else ""
        raise CalibrationError(f"{name} failed{more}: {reason}")
