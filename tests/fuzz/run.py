"""Runs many cases in worker processes, with a limit of time for each."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.fuzz.cases import Case, draw, seeds

__all__ = ["CORPUS", "drawn", "keep", "run"]

CORPUS = Path(__file__).parent / "corpus"
#: most time of one case by the clock, s, of a machine that may be busy; a worker counts 20 s of
#: the processor's itself
LIMIT_S = 240.0


class _Worker:
    """One process that judges cases; started again when one took too long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.answers: queue.Queue[str | None] = queue.Queue()
        self.count = 0

    def _start(self) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        self.answers = queue.Queue()
        self.said: list[str] = []
        process, answers, said = self.process, self.answers, self.said

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line)
            answers.put(None)

        def listen() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                del said[:-20]

        for target in (read, listen):
            threading.Thread(target=target, daemon=True).start()

    def judge(self, case: Case) -> list[str]:
        if self.process is None or self.count >= 500:  # memory of a library's own caches
            self.close()
            self._start()
            self.count = 0
        self.count += 1
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(case.to_json()) + "\n")
            self.process.stdin.flush()
            # the first case also pays for the imports
            answer = self.answers.get(timeout=LIMIT_S + (40 if self.count == 1 else 5))
        except queue.Empty:
            self.close()
            return [f"took more than {LIMIT_S:.0f} s"]
        except OSError:
            answer = None
        if answer is None:
            said = "".join(self.said[-5:])
            code = self.process.wait()
            self.close()
            return [f"ended the process ({code}): {said[-300:]}"]
        found: list[str] = json.loads(answer)
        return found

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def drawn(count: int, seed: int) -> Iterator[Case]:
    """``count`` cases; case k depends on the seed and k alone."""
    for k in range(count):
        yield draw(random.Random(f"{seed}/{k}"))


def run(
    cases: Iterable[Case], workers: int = 1, progress: bool = False
) -> list[tuple[Case, list[str]]]:
    """Judge cases; those that something was wrong with."""
    seeds()  # once, before the threads
    left = iter(cases)
    lock = threading.Lock()
    failed: list[tuple[Case, list[str]]] = []
    done = 0
    begin = time.monotonic()

    def work(folder: Path) -> None:
        nonlocal done
        worker = _Worker(folder)
        try:
            while True:
                with lock:
                    case = next(left, None)
                if case is None:
                    return
                found = worker.judge(case)
                with lock:
                    done += 1
                    if found:
                        failed.append((case, found))
                        if progress:
                            path = keep(case, found, Path("fuzz-failures"))
                            print(f"{path}: {'; '.join(found)[:300]}", flush=True)
                    if progress and done % 500 == 0:
                        pace = done / (time.monotonic() - begin)
                        print(f"{done} cases, {len(failed)} failed, {pace:.0f}/s", flush=True)
        finally:
            worker.close()

    with tempfile.TemporaryDirectory() as scratch:
        threads = [
            threading.Thread(target=work, args=(Path(scratch) / str(k),)) for k in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return failed


def keep(case: Case, found: list[str], folder: Path) -> Path:
    """Write a case to a folder; its name tells it from others."""
    folder.mkdir(parents=True, exist_ok=True)
    text = Case(case.argv, case.files, f"{case.note}: {'; '.join(found)}"[:500]).to_json()
    name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    path = folder / f"{name}.json"
    path.write_text(text, encoding="utf-8")
    return path


def summary(failed: list[tuple[Case, list[str]]]) -> Counter[str]:
    """Findings by their first words."""
    return Counter(" ".join(f.split()[:4]) for _, found in failed for f in found)
