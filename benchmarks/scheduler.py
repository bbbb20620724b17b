"""Time of the scheduler's turns and of whole requests: python benchmarks/scheduler.py

Every figure is the best of several runs, in microseconds and as a ratio to a yardstick measured in
the same process (an append to a list and a pop), which hardly depends on the machine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial

from qsim.sim.scheduler.batch import Batch
from qsim.sim.scheduler.block_ids import prompt_block_ids
from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.request import Request
from qsim.sim.scheduler.scheduler import Scheduler

REPEATS = 5


def timed(run: Callable[[], Iterator[int]]) -> float:
    """Best time per unit; ``run`` sets up until its first yield, then yields the units it did."""
    least = float("inf")
    for _ in range(REPEATS):
        steps = run()
        next(steps)
        start = time.perf_counter()
        units = next(steps)
        least = min(least, (time.perf_counter() - start) / units * 1e6)
    return least


def yardstick() -> Iterator[int]:
    stack: list[int] = []
    yield 0
    for number in range(200_000):
        stack.append(number)
        stack.pop()
    yield 200_000


def decodes(rows: int) -> tuple[Scheduler, Batch]:
    """A scheduler in the midst of decoding so many requests, and the batch in flight."""
    scheduler = Scheduler(EngineConfig())
    for index in range(rows):
        scheduler.add(Request(index, 1000 + index, 100_000))
    batch = scheduler.schedule()
    while batch.num_decodes < rows:
        following = scheduler.schedule()
        scheduler.update(batch)
        batch = following
    return scheduler, batch


def turns(rows: int) -> Iterator[int]:
    scheduler, batch = decodes(rows)
    yield 0
    for _ in range(2000):
        following = scheduler.schedule()
        scheduler.update(batch)
        batch = following
    yield 2000


def turns_in_full(rows: int) -> Iterator[int]:
    """The rules request by request, as after a step that ran out of blocks."""
    scheduler, batch = decodes(rows)
    scheduler._ungroup()
    yield 0
    for _ in range(500):
        scheduler._in_flight.append(following := Batch(batch.step + 1))
        scheduler._group.scheduled += 1
        scheduler._schedule_running(following)
        scheduler.update(batch)
        batch = following
    yield 500


def lives(caching: bool, shared: bool = False) -> Iterator[int]:
    """Whole lives of requests of 1200 + 200 tokens, 32 at a time, one arriving as one leaves."""
    scheduler = Scheduler(EngineConfig(num_gpu_blocks=20_000, enable_prefix_caching=caching))
    rng = random.Random(1)
    arrived = done = 0

    def arrive(output_tokens: int) -> None:
        nonlocal arrived
        ids = [rng.randrange(10), 1000 + arrived] if shared else []
        blocks = prompt_block_ids(ids, 512, 16, 1200)
        scheduler.add(Request(arrived, 1200, output_tokens, block_ids=blocks))
        arrived += 1

    for position in range(32):
        arrive(1 + 200 * (position + 1) // 32)
    batch: Batch | None = None
    yield 0
    while done < 2000:
        following = scheduler.schedule()
        if batch is not None:
            for _ in scheduler.update(batch).finished:
                done += 1
                arrive(200)
        batch = following
    yield done


def short_of_blocks(num_gpu_blocks: int) -> Iterator[int]:
    """2000 requests at once for a pool that makes them preempt each other."""
    rng = random.Random(1)
    scheduler = Scheduler(EngineConfig(num_gpu_blocks=num_gpu_blocks, max_num_seqs=256))
    for index in range(2000):
        scheduler.add(Request(index, rng.randint(50, 2000), rng.randint(20, 500)))
    batch: Batch | None = None
    yield 0
    while scheduler.has_unfinished():
        following = scheduler.schedule()
        if batch is not None:
            scheduler.update(batch)
        batch = following
    yield 2000


def main() -> None:
    unit = timed(yardstick)
    print(f"yardstick: {unit * 1e3:.1f} ns")

    def show(name: str, run: Callable[[], Iterator[int]]) -> None:
        us = timed(run)
        print(f"{name:<66}{us:9.2f} us{us / unit:9.0f} x", flush=True)

    for rows in (1, 16, 64, 256, 1024):
        show(f"schedule + update, {rows} decodes", partial(turns, rows))
    for rows in (1, 16, 64, 256):
        show(f"the same request by request, {rows} decodes", partial(turns_in_full, rows))
    for caching in (False, True):
        show(f"a request of 1200 + 200 tokens, caching {caching}", partial(lives, caching))
    show("the same with a shared prefix of 512 tokens", partial(lives, True, shared=True))
    show("a request where blocks run out", partial(short_of_blocks, 8000))


if __name__ == "__main__":
    main()
