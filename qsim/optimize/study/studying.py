"""``qsim.study``: what quantization does to a model, on GPUs, under traffic."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from qsim.bounds import shown
from qsim.errors import ScenarioError
from qsim.optimize.deploy.vllm import option_words
from qsim.optimize.economics.prices import prices_of
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.goals import check_floor
from qsim.optimize.search.journal import open_run_journal
from qsim.optimize.study.application import application_rows, application_saturation, task_shapes
from qsim.optimize.study.application_claims import application_claims
from qsim.optimize.study.comparing import listed
from qsim.optimize.study.contenders import (
    Contender,
    Line,
    choose_contenders,
    common_size,
    gpus_of,
    line_of,
    method_order,
    remade,
)
from qsim.optimize.study.findings import MOST_BEYOND, decide, findings_of, usable_runs
from qsim.optimize.study.levels import HardwareRow, ParallelismRow, WorkloadRow
from qsim.optimize.study.point import Point
from qsim.optimize.study.result import StudyResult
from qsim.optimize.study.runner import SIZES, Asked, Outcome, Runner, Sizes
from qsim.optimize.study.shapes import DEFAULT_TRAFFIC, SHAPES, Shape, find_shape
from qsim.optimize.study.system_claims import hardware_claims, parallelism_claims
from qsim.optimize.study.systems import (
    hardware_rows,
    hardware_saturation,
    parallel_saturation,
    parallelism_rows,
    sharded,
)
from qsim.optimize.study.traffics import MainTraffic, loader, main_traffic
from qsim.optimize.study.versions import alike, of_one_version, version_notes
from qsim.optimize.study.workload import workload_rows
from qsim.optimize.study.workload_claims import workload_claims
from qsim.scenario import Scenario
from qsim.scenario.arguments import StudyArguments
from qsim.scenario.names import build, scenario_of
from qsim.scenario.resolve import candidates_of, searched_engine
from qsim.sim.fleet.admission import text_notes
from qsim.sim.fleet.pool import Pool
from qsim.sim.machines import quick_ranges
from qsim.sim.results.backlog import KEPT_UP, UNCLEAR

#: of the decision table: percent of the 16-bit score at the low end of the interval
DEFAULT_FLOOR_PCT = 90.0
#: shares of the work at which its parts begin
_BEGIN = {"saturation": 0.0, "application": 0.25, "workload": 0.4, "parallelism": 0.9,
          "hardware": 0.95}  # fmt: skip


def study(
    asked: Scenario | str = DEFAULT_TRAFFIC,
    model: str | None = None,
    *,
    journal: str | Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    **more: Unpack[StudyArguments],
) -> StudyResult:
    """Characterize the quantization methods of a model: application to hardware.

    Parameters
    ----------
    asked : Scenario or str
        All of what is asked; or the traffic of the workload, parallelism and hardware levels, a
        file or a preset, and the next arguments say the rest.
    model : str, optional
        Take its shipped profiles.
    journal : path, optional
        Each finished run is kept here at once, a line each, so that a study can be resumed.
    resume : bool
        Take finished runs from ``journal``; without it there must be none in it.
    jobs, dask, progress
        As for :func:`qsim.plan`; the answer does not depend on them.
    **more
        Fields of the scenario by name; see :class:`qsim.scenario.arguments.StudyArguments`. Without
        ``gpus`` all types take part of which the model has profiles; with one the hardware level
        still compares it with the others.

    Returns
    -------
    StudyResult

    Raises
    ------
    ScenarioError
        If an argument is wrong, or nothing can be simulated.
    ProfileError
        If there is no such profile.
    TraceError
        If the traffic cannot be read.
    """
    if not isinstance(asked, Scenario | str):
        raise TypeError("study() takes a scenario, or its traffic as a file or a preset")
    scenario = _scenario(asked, model, more)
    check_tasks(scenario)
    return study_for(
        scenario, journal=journal, resume=resume, jobs=jobs, dask=dask, progress=progress
    )


def check_tasks(scenario: Scenario) -> None:
    """Refuse tasks of a study without the level that has them.

    Raises
    ------
    ScenarioError
        If ``applications`` is given, and the application level is left out.
    """
    wanted = scenario.study
    if wanted.applications and "application" not in wanted.levels:
        raise ScenarioError(
            f"applications is {', '.join(wanted.applications)}, and the application level is not "
            "among levels, which alone has tasks: leave it out, or add the level (--task, --level)"
        )


def check_traffic(scenario: Scenario) -> None:
    """Refuse traffic of a study that has no level with traffic.

    Raises
    ------
    ScenarioError
        If there is any beside the default, and only the application level is asked for.
    """
    if [*scenario.study.levels] != ["application"]:
        return
    section = scenario.traffic
    usual = type(section)(trace=DEFAULT_TRAFFIC, text_prompts=section.text_prompts)
    other = [k for k, v in section if v != getattr(usual, k) and (k, v) != ("trace", None)]
    if not other:
        return
    name, value = other[0], getattr(section, other[0])
    raise ScenarioError(
        f"traffic.{name} is {shown(value)}, and the application level has traffic of its own: "
        "leave it out, or add a level that is under TRACE (--level workload)"
    )


def _scenario(asked: Scenario | str, model: str | None, more: Mapping[str, Any]) -> Scenario:
    if isinstance(asked, Scenario):
        return scenario_of("study", asked, model, more)
    return build("study", {"trace": asked, "model": model, **more})


@dataclass(frozen=True)
class _Parts:
    """Who takes part in which level."""

    gpus: tuple[str, ...]
    lines: Mapping[str, Line]
    groups: Mapping[str, Sequence[Contender]]
    machines: Mapping[str, Line]
    notes: tuple[str, ...]

    @property
    def all(self) -> tuple[Contender, ...]:
        """Everybody, once."""
        lists = [*self.lines.values(), *self.groups.values(), *self.machines.values()]
        return tuple({(c.id, c.version): c for some in lists for c in some}.values())


def study_for(
    scenario: Scenario,
    *,
    journal: str | Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    sizes: Sizes = SIZES,
) -> StudyResult:
    """:func:`study` of a scenario; ``sizes`` says how much is simulated."""
    wanted, seed = scenario.study, scenario.seed
    shapes = [find_shape(n) for n in wanted.applications] or [*SHAPES.values()]
    for path, given in (("slos", scenario.slos), ("goodput", scenario.goodput),
                        ("fleet.failures", scenario.fleet.failures)):  # fmt: skip
        if given:
            raise ScenarioError(f"{path} is given, and study does not read it: leave it out")
    floor = wanted.min_quality
    floor = DEFAULT_FLOOR_PCT if floor is None else check_floor("min_quality", floor)
    check_traffic(scenario)
    section = scenario.traffic
    if section.trace is None:
        section = section.model_copy(update={"trace": DEFAULT_TRAFFIC})
    traffic = main_traffic(section, seed)
    parts = _parts(scenario)
    with (
        open_run_journal(journal, resume, "study") as kept,
        open_executor(jobs, dask=dask) as executor,
    ):
        load, router = loader(section, seed), scenario.fleet.router
        runner = Runner(
            executor, kept, load, seed, router, "reject", sizes, section.text_prompts, progress
        )
        found = _levels(runner, parts, traffic, shapes, [*wanted.levels])
        machine = machine_notes(runner, parts.all)
        untold = text_notes(c.profile for c in parts.all) if section.text_prompts else []
        if progress is not None:
            progress(1.0, "done")
    return replace(
        _concluded(found, runner, floor),
        command=_command(scenario, traffic),
        settings=scenario.to_dict("study"),
        notes=(
            *found.notes,
            *_run_notes(runner),
            *untold,
            *machine,
            *((kept.failure,) if kept.failure else ()),
        ),
    )


def _parts(scenario: Scenario) -> _Parts:
    wanted, accounts = scenario.study, scenario.accounts
    options = searched_engine(scenario, wanted, "study")
    prices = prices_of(accounts)
    among = candidates_of(scenario, wanted)
    gpus = among.gpus
    if among.model is not None and not gpus:
        gpus = gpus_of(among.model)

    sharding = "parallelism" in wanted.levels
    contenders, notes = choose_contenders(
        among.model, gpus, among.methods, among.profiles, options, prices, accounts.provider,
        sharded=sharding,
    )  # fmt: skip
    gpus = tuple(dict.fromkeys(c.gpu for c in contenders))
    machines = contenders
    others: tuple[str, ...] = ()
    if len(gpus) == 1 and among.model is not None and "hardware" in wanted.levels:
        others = tuple(g for g in gpus_of(among.model) if g not in gpus)
        methods = {c.method for c in contenders}
        more, _ = choose_contenders(
            among.model, others, (), (), options, prices, accounts.provider
        ) if others else ([], [])  # fmt: skip
        machines = [*contenders, *(c for c in more if c.method in methods)]
    size = common_size(contenders, gpus)
    every = tuple(dict.fromkeys(c.gpu for c in machines))
    shared = common_size(machines, every)
    left = [c.id for c in contenders if c.tensor_parallel_size != size]
    groups = {g: sharded(contenders, g) for g in gpus}
    if left and not any(groups.values()):
        notes.append(f"servers of another size than {size} GPUs took no part: {', '.join(left)}")

    def at(contender: Contender, version: str) -> Contender | None:
        if options.vllm_version is not None:  # asked for: no other one
            return None
        return remade(contender, version, options, prices, accounts.provider)

    machines = [c for c in machines if c.tensor_parallel_size == shared]
    machines = [*alike(of_one_version(machines, lambda c: c.gpu, at))]
    lines = {g: alike(line) for g in gpus if (line := line_of(contenders, g, size))}
    layouts = {
        g: alike(of_one_version(some, lambda c: c.tensor_parallel_size, at))
        for g, some in groups.items()
        if some
    }
    by_gpu = {g: line for g in every if (line := line_of(machines, g, shared))}
    levels = wanted.levels
    notes += version_notes(
        lines if {"application", "workload"} & {*levels} else {},
        layouts if "parallelism" in levels else {},
        by_gpu if "hardware" in levels else {},
    )
    return _Parts(gpus, lines, layouts, by_gpu, tuple(notes))


def _levels(
    runner: Runner,
    parts: _Parts,
    traffic: MainTraffic,
    shapes: Sequence[Shape],
    levels: Sequence[str],
) -> StudyResult:
    """Simulate, level after level: first what rates follow from."""
    lines, groups, machines = parts.lines, parts.groups, parts.machines
    notes = list(parts.notes)
    first: list[tuple[str, list[Asked]]] = []
    if "application" in levels:
        asked = [a for line in lines.values() for a in application_saturation(runner, line, shapes)]
        first.append(("application", asked))
    if "workload" in levels:
        first.append(("workload", hardware_saturation(runner, lines, traffic)))
    if "parallelism" in levels:
        asked = [a for some in groups.values() for a in parallel_saturation(runner, some, traffic)]
        first.append(("parallelism", asked))
        if not groups:
            model = next(iter(lines.values()))[0].profile.identity.model
            notes.append(
                f"parallelism: there are profiles of {model} for one tensor-parallel size only; "
                "'qsim calibrate transfer --tensor-parallel-size 2' makes others, 'qsim calibrate "
                "run' measures them; give them with --profile"
            )
    if "hardware" in levels:
        first.append(("hardware", hardware_saturation(runner, machines, traffic)))
    total = sum(len(asked) for _, asked in first) or 1
    begin = 0.0
    for level, asked in first:
        end = begin + _BEGIN["application"] * len(asked) / total
        runner.run(level, asked, begin, end)
        begin = end
    tasks = task_shapes(runner, shapes) if "application" in levels else ()
    application = (
        application_rows(runner, lines, shapes, _BEGIN["application"], _BEGIN["workload"])
        if "application" in levels
        else ()
    )
    workload: tuple[WorkloadRow, ...] = ()
    if "workload" in levels:
        workload = workload_rows(runner, lines, traffic, _BEGIN["workload"], _BEGIN["parallelism"])
        if traffic.preset is None:
            notes.append("burstiness: the traffic is a file, whose gaps are what they are")
    parallelism: tuple[ParallelismRow, ...] = ()
    if "parallelism" in levels:
        parallelism = parallelism_rows(
            runner, groups, traffic, _BEGIN["parallelism"], _BEGIN["hardware"]
        )
    hardware: tuple[HardwareRow, ...] = ()
    if "hardware" in levels:
        hardware = hardware_rows(runner, machines, traffic, _BEGIN["hardware"], 1.0)
    everybody = parts.all
    return StudyResult(
        everybody[0].profile.identity.model,
        parts.gpus,
        method_order(c.method for c in everybody),
        tasks,
        traffic.closed(runner.sizes.requests).words[0] if traffic.preset is None
        else shlex.join((traffic.preset, *traffic.words[1:])),
        application, workload, parallelism, hardware,
        runner.runs, (), (), tuple(c.provenance() for c in everybody), tuple(notes),
    )  # fmt: skip


def _concluded(found: StudyResult, runner: Runner, floor_pct: float) -> StudyResult:
    """With findings and decisions."""
    answered = {o.run.id: o.answered for o in runner.outcomes.values()}
    usable = usable_runs(found.runs, answered)
    transferred = frozenset(p.profile for p in found.provenance if p.source == "transferred")
    claims = [
        *application_claims(found.model, found.application, found.tasks, usable),
        *workload_claims(found.workload, usable),
        *parallelism_claims(found.parallelism, usable),
        *hardware_claims(found.hardware, usable),
    ]
    return replace(
        found,
        findings=findings_of(claims, found.runs, transferred),
        decisions=decide(found.application, usable, floor_pct, found.runs),
    )


def _run_notes(runner: Runner) -> list[str]:
    """What a reader must know of the runs."""
    notes = [
        f"not simulated: {point.profile} with {point.traffic.text}: {reason}"
        for point, reason in runner.failures.items()
    ]
    runs = runner.runs.values()
    beyond = [r for r in runs if r.beyond_measured > MOST_BEYOND]
    if beyond:
        profiles = listed(sorted({r.profile for r in beyond}))
        notes.append(
            f"{len(beyond)} of {len(runs)} runs have more than {MOST_BEYOND:.0%} of their steps "
            f"beyond the measured range (of {profiles}); no finding or decision rests on them"
        )
    short = [o.run for o in runner.outcomes.values() if o.answered < 1.0]
    if short:
        profiles = listed(sorted({r.profile for r in short}))
        notes.append(
            f"in {len(short)} of {len(runs)} runs some requests are too long for the server and "
            f"rejected or cut (of {profiles}); those that answer fewer than others of the same "
            "traffic are not compared with them"
        )
    return notes


def _command(scenario: Scenario, traffic: MainTraffic) -> str:
    """``qsim study ...`` that makes all of it again."""
    wanted, accounts = scenario.study, scenario.accounts
    words = ["qsim", "study"]
    if [*wanted.levels] != ["application"]:  # which has traffic of its own
        words += traffic.words
    among = candidates_of(scenario, wanted)
    if among.model is not None:
        words += ["--model", among.model]
    for flag, values in (
        ("--gpu", among.gpus),
        ("--method", among.methods),
        ("--profile", [p if isinstance(p, str) else p.id for p in among.profiles]),
        ("--task", wanted.applications),
        ("--level", wanted.levels if len(wanted.levels) < 4 else ()),
        ("--price", [f"{g}={usd:.15g}" for g, usd in accounts.prices.items()]),
    ):
        for value in values:
            words += [flag, str(value)]
    engines = [p.engine.options() for p in scenario.fleet.pools]
    words += option_words(engines[0].to_dict() if engines else {})
    if wanted.min_quality is not None:
        words += ["--min-quality", f"{wanted.min_quality:.15g}"]
    if wanted.beyond_measured:
        words.append("--beyond-measured")
    if scenario.traffic.text_prompts:
        words.append("--text-prompts")
    if scenario.fleet.router != "least-requests":
        words += ["--router", scenario.fleet.router]
    if accounts.provider != "specialty":
        words += ["--provider", accounts.provider]
    if scenario.seed:
        words += ["--seed", str(scenario.seed)]
    return shlex.join([*words, "--out", "study"])


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
            too_long=runner.too_long, text_prompts=runner.text_prompts,
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
