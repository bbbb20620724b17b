"""What the figures of a study may be on another machine than those that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qsim.optimize.study.contenders import Contender
from qsim.optimize.study.point import Point
from qsim.optimize.study.runner import Outcome, Runner
from qsim.sim.fleet.pool import Pool
from qsim.sim.machines import quick_ranges
from qsim.sim.results.backlog import KEPT_UP, UNCLEAR

__all__ = ["machine_notes"]

#: of what a note tells, and how it is called
_FIGURES = {
    "mean_ttft_ms": "mean TTFT",
    "mean_tpot_ms": "mean TPOT",
    "mean_e2el_ms": "mean E2EL",
    "joules_per_output_token": "energy per output token",
}


def machine_notes(runner: Runner, contenders: Iterable[Contender]) -> list[str]:
    """A note for each GPU type whose profiles are not adapted: 90% ranges, as multiples.

    They are of the first contender's first run that was answered in full: the methods of one GPU
    type differ little in them, and on one machine all move together.
    """
    notes = []
    first: dict[str, tuple[Contender, Point]] = {}
    for contender in contenders:
        if contender.profile.adapted is None and contender.gpu not in first:
            point = _first_point(runner.outcomes, contender)
            if point is not None:
                first[contender.gpu] = contender, point
    for gpu, (contender, point) in first.items():
        pool = Pool(contender.profile, point.replicas, contender.options_of(point))
        found = quick_ranges(
            runner.load(point.traffic), [pool], seed=runner.seed, router=runner.router,
            too_long=runner.too_long,
        )  # fmt: skip
        told = [
            f"{name} x{found.ratios[key][0]:.2f} to x{found.ratios[key][1]:.2f}"
            for key, name in _FIGURES.items()
            if key in found.ratios
        ]
        if told:
            notes.append(
                f"machine: on your {gpu} the figures may be other ones, with 90% within "
                f"{', '.join(told)} (told by {contender.id} with {point.traffic.text}). "
                "Methods on one machine move together; 'qsim calibrate adapt' makes a profile one "
                "of yours"
            )
    return notes


def _first_point(outcomes: Mapping[Point, Outcome], contender: Contender) -> Point | None:
    """Its first run under arrivals of its own that kept up."""
    for point, outcome in outcomes.items():
        run = outcome.run
        mine = run.profile == contender.id and run.vllm_version == contender.version
        told = point.concurrency is None and outcome.answered >= 1.0
        if mine and told and run.load in (KEPT_UP, UNCLEAR):
            return point
    return None
