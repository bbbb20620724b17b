"""Many searches over one executor, each one simulation ahead at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import TypeVar

from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, run_fleet
from qsim.profiles.schema import Profile
from qsim.traces.trace import Trace

T = TypeVar("T")
N = TypeVar("N", int, float)
#: called with a fraction in [0, 1] and a text after every simulation
Progress = Callable[[float, str], None]
#: What a search yields: a fleet to simulate, and about how many more there will be
Step = tuple[FleetTask, int]


def part_of(progress: Progress | None, begin: float, end: float) -> Progress | None:
    """A callback for a part of the work, from ``begin`` to ``end`` of the whole."""
    if progress is None:
        return None
    return lambda share, text: progress(begin + (end - begin) * share, text)


def of_fleets(
    search: Generator[N, FleetOutcome, T], fleet: Callable[[N], FleetTask], left: int
) -> Generator[Step, FleetOutcome, T]:
    """A search over a number, such as a speed, as :func:`drive` runs it.

    ``fleet`` is the one to simulate for a number; about ``left`` simulations follow each, for the
    progress that is shown.
    """
    try:
        number = next(search)
        while True:
            number = search.send((yield fleet(number), left))
    except StopIteration as stop:
        found: T = stop.value
        return found


def drive(
    executor: Executor,
    searches: Sequence[Generator[Step, FleetOutcome, T]],
    names: Sequence[str],
    progress: Progress | None = None,
) -> list[T]:
    """Run all searches to their end; what each returned, in their order.

    A search yields fleets (:data:`Step`), is sent what came of each, and has an error of the
    simulation thrown into it.
    """
    found: dict[int, T] = {}
    running: dict[Future[FleetOutcome], int] = {}
    probes = [0] * len(searches)
    shares = [0.0] * len(searches)

    def advance(i: int, resume: Callable[[], Step]) -> None:
        try:
            task, left = resume()
        except StopIteration as stop:
            found[i] = stop.value
            shares[i] = 1.0
            return
        shares[i] = max(shares[i], probes[i] / (probes[i] + 1 + left))
        running[executor.submit(run_fleet, task)] = i

    for i, search in enumerate(searches):
        advance(i, search.__next__)
    while running:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in sorted(finished, key=lambda f: running[f]):
            i = running.pop(future)
            search, error = searches[i], future.exception()
            probes[i] += 1
            if error is not None:
                advance(i, lambda s=search, e=error: s.throw(e))  # type: ignore[misc]
            else:
                advance(i, lambda s=search, f=future: s.send(f.result()))  # type: ignore[misc]
            if progress is not None:
                progress(sum(shares) / len(shares), names[i])
    return [found[i] for i in range(len(searches))]


def drive_with(
    jobs: int,
    dask: str | None,
    trace: Trace,
    profiles: Sequence[Profile],
    searches: Sequence[Generator[Step, FleetOutcome, T]],
    names: Sequence[str],
    progress: Progress | None = None,
) -> list[T]:
    """:func:`drive` in an executor of its own, which gets the trace and the profiles once."""
    with open_executor(jobs, at_most=len(profiles), dask=dask) as executor:
        executor.share(trace)
        for profile in profiles:
            executor.share(profile)
        found = drive(executor, searches, names, progress)
    if progress is not None:
        progress(1.0, "done")
    return found
