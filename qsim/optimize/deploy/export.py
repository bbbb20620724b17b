"""A fleet in a form that can be started, or simulated again: ``--export``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qsim.errors import InfeasibleError, ScenarioError
from qsim.files import write_text
from qsim.optimize.deploy.deployment import Pool, distinct, pools_of
from qsim.optimize.deploy.kubernetes import manifests, to_yaml
from qsim.optimize.deploy.vllm import GPUS_PER_HOST, serve_script
from qsim.optimize.plan.candidate import Candidate
from qsim.optimize.plan.result import Plan
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.scenario.sections import Traffic
from qsim.sim.fleet.admission import resolve_fleet
from qsim.sim.results.slo import Slo
from qsim.sim.run_scenario import fleet_of
from qsim.traces.parts import is_large
from qsim.traces.reshape import forecast
from qsim.traces.trace import Trace

EXPORTS = ("vllm", "kubernetes", "scenario")
SIMULATED_EXPORTS = ("kubernetes", "vllm")
#: name of a scenario in a folder
_SCENARIO = "scenario.yaml"


@dataclass(frozen=True)
class Export:
    """What to write (one of :data:`EXPORTS`) and where: a file, a folder, or None for stdout."""

    kind: str
    path: str | None = None

    def __str__(self) -> str:
        return self.kind if self.path is None else f"{self.kind}={self.path}"


def parse_export(text: str, kinds: tuple[str, ...] = EXPORTS) -> Export:
    """Read ``KIND`` or ``KIND=PATH``, KIND being one of ``kinds``.

    Raises
    ------
    ScenarioError
        If it is neither, or KIND is unknown.
    """
    kind, equals, path = str(text).partition("=")
    kind = kind.strip()
    if kind not in kinds or (equals and not path):
        raise ScenarioError(
            f"export is {text!r}; must be one of {', '.join(kinds)}, with =FILE or =FOLDER/ "
            "after it to write there"
        )
    return Export(kind, path or None)


def export_pools(
    pools: Pool | list[Pool],
    export: Export,
    *,
    autoscaler: str = "hpa",
    gpus_per_host: int = GPUS_PER_HOST,
) -> str | None:
    """Write the commands or the manifests; returns the text if there is no path.

    To a folder (it exists, or the path ends in ``/``) go ``serve.sh``, or one YAML file an object;
    to a file all of it. Each file is written whole or not at all.

    Raises
    ------
    ScenarioError
        For another kind of export, an unknown autoscaler, or a server of more GPUs than a machine.
    """
    if export.kind == "vllm":
        script = serve_script(pools, gpus_per_host)
        return _put(export.path, script, {"serve.sh": script}, executable=True)
    if export.kind != "kubernetes":
        raise ScenarioError(f"export is {export.kind!r}; must be vllm or kubernetes for servers")
    objects = manifests(pools, autoscaler)
    several = isinstance(pools, list) and len(pools) > 1
    files = {
        (f"{o['metadata']['name']}-" if several else "") + f"{o['kind'].lower()}.yaml": to_yaml([o])
        for o in objects
    }
    return _put(export.path, to_yaml(objects), files)


def export_plan(
    plan: Plan,
    export: Export | str,
    *,
    candidate: Candidate | None = None,
    trace: Trace | None = None,
    scenario: Scenario | None = None,
    profile: Profile | None = None,
    autoscaler: str = "hpa",
    gpus_per_host: int = GPUS_PER_HOST,
) -> str | None:
    """Write the plan's best fleet (or that of ``candidate``); returns the text without a path.

    ``export`` is ``vllm``, ``kubernetes`` or ``scenario``, with ``=PATH`` after it or not. For
    ``scenario``, ``trace`` is what was planned for (before growth and peak hour), written beside
    the scenario where none names it; ``scenario`` is what the plan was asked; and ``profile`` is
    the candidate's, where it was not read from a file.

    Raises
    ------
    InfeasibleError
        If nothing meets the SLOs.
    ScenarioError
        As :func:`export_pools`; or if a scenario needs files beside it and there is no path.
    """
    export = parse_export(export) if isinstance(export, str) else export
    chosen = candidate or plan.best
    if chosen is None or not chosen.feasible:
        raise InfeasibleError("no candidate of this plan meets the SLOs: nothing to export")
    if export.kind != "scenario":
        pools = pools_of(chosen, plan.router_of(chosen))
        return export_pools(pools, export, autoscaler=autoscaler, gpus_per_host=gpus_per_host)
    return _scenario(plan, export.path, chosen, trace, scenario, profile)


def pools_scenario(
    pools: Sequence[Pool],
    traffic: Traffic,
    profiles: Sequence[str],
    slos: Sequence[Slo | str],
    settings: Mapping[str, Any],
) -> Scenario:
    """The scenario of ``qsim simulate`` that gives the figures of a fleet again.

    ``profiles`` are those of the pools, as ids or files; ``settings`` has the ``seed`` and
    ``too_long`` of its simulation, and ``text_prompts`` if prompts were texts.
    """
    given = {**traffic.given(), "too_long": settings["too_long"]}
    if settings.get("text_prompts"):
        given["text_prompts"] = True
    if is_large(str(traffic.trace)):
        given["stream"] = False  # taken in parts its percentiles would be a little off
    servers = [
        {
            "profile": profile,
            "replicas": pool.replicas,
            "engine": pool.options.to_dict(),
            **({} if pool.weight is None else {"weight": pool.weight}),
        }
        for pool, profile in zip(pools, profiles, strict=True)
    ]
    return Scenario(
        traffic=given,
        fleet={"pools": servers, "router": pools[0].router},
        slos=[str(s) for s in slos],
        allow_backlog=bool(settings.get("allow_backlog")),
        seed=settings["seed"],
    )


def export_scenario(scenario: Scenario, path: str | None) -> str | None:
    """Write a scenario file, which begins with how it is run; returns the text without a path.

    In a folder (it exists, or the path ends in ``/``) it is ``scenario.yaml``.
    """
    name = "FILE.yaml" if path is None else " ".join(str(_inside(path, _SCENARIO)).split())
    text = f"# qsim simulate {name}\n{scenario.to_yaml()}"
    return _put(path, text, {_SCENARIO: text})


def _scenario(
    plan: Plan,
    path: str | None,
    chosen: Candidate,
    trace: Trace | None,
    asked: Scenario | None,
    profile: Profile | None,
) -> str | None:
    beside = None if path is None else _inside(path, _SCENARIO).with_suffix("")
    if asked is not None and isinstance(asked.traffic.trace, str):
        traffic = asked.traffic
    elif trace is None or beside is None:
        raise ScenarioError(
            "this plan's trace was not read by name and needs a file beside the scenario; give "
            "the trace and a path: --export scenario=FILE.yaml"
        )
    else:
        from qsim.traces.write import write_trace

        file = beside.with_name(f"{beside.name}-trace.csv.gz")
        shaped = plan.forecast
        planned, _ = forecast(trace, shaped.growth, shaped.peak_hour_start_s is not None)
        write_trace(planned, file)
        traffic = Traffic(trace=str(file))
    sources = []
    for blank in chosen.blanks:
        source = blank.source
        if source is None:
            if profile is None or beside is None or chosen.parts:
                raise ScenarioError(
                    f"{blank.profile} was not read from a file; give the profile and a path, so "
                    "that it can be written beside the scenario"
                )
            source = f"{beside}-profile.json"
            profile.save(source)
        sources.append(source)
    pools = pools_of(chosen, plan.router_of(chosen))
    scenario = pools_scenario(pools, traffic, sources, plan.slos, plan.settings)
    return export_scenario(scenario, path)


def _inside(path: str, name: str) -> Path:
    folder = path.endswith(("/", os.sep)) or Path(path).is_dir()
    return Path(path) / name if folder else Path(path)


def _put(
    path: str | None, text: str, files: Mapping[str, str], executable: bool = False
) -> str | None:
    if path is None:
        return text
    first = next(iter(files))
    if _inside(path, first) == Path(path):
        targets = {Path(path): text}
    else:
        targets = {Path(path) / name: content for name, content in files.items()}
    for target, content in targets.items():
        write_text(target, content)
        if executable:
            target.chmod(target.stat().st_mode | 0o111)
    return None


def simulate_command(plan: Plan, candidate: Candidate, asked: Scenario) -> str:
    """What gives a planned fleet's figures again; "" for a trace or profile not read by name.

    ``asked`` is what the plan was asked; it names the trace.
    """
    trace = asked.traffic.trace
    sources = [blank.source for blank in candidate.blanks]
    if not isinstance(trace, str) or any(s is None or "," in s for s in sources):
        return ""
    words = ["qsim", "simulate", trace]
    given = {k: v for k, v in asked.traffic.given().items() if k != "trace"}
    if is_large(trace):
        given["stream"] = False  # taken in parts its percentiles would be a little off
    for name, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", f"traffic.{name}={text}"]
    pools = pools_of(candidate, plan.router_of(candidate))
    for pool, source in zip(pools, sources, strict=True):
        parts = [f"profile={source}", f"replicas={pool.replicas}"]
        if pool.weight is not None and pool.weight != 1:
            parts.append(f"weight={pool.weight!r}")
        for name, value in pool.options.to_dict().items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            parts.append(f"{name.replace('_', '-')}={text}")
        words += ["--pool", ",".join(parts)]
    words += ["--router", pools[0].router, "--seed", str(asked.seed)]
    words += [w for s in plan.slos for w in ("--slo", str(s))]
    return shlex.join(words)


def servers_of(scenario: Scenario) -> list[Pool]:
    """The fleet's pools with what starts them, and the autoscaler that was simulated.

    Raises
    ------
    ScenarioError, ProfileError
        As simulating them.
    """
    fleet = fleet_of(scenario)
    asked = fleet["pools"]
    setup = resolve_fleet(**fleet)
    found = []
    for given, pool in zip(asked, setup.pools, strict=True):
        settings = setup.autoscaler if pool.first is not None else None
        found.append(
            Pool.of(
                pool.profile,
                given.options,
                pool.asked,
                setup.router,
                startup_s=pool.lifecycle.start_s,
                weight=pool.weight if len(asked) > 1 else None,
                autoscaler=None if settings is None else replace(settings, pools=()),
            )
        )
    return distinct(found)


def export_simulated(scenario: Scenario, export: Export | str) -> str | None:
    """Write the commands or the manifests; returns the text if there is no path.

    ``export`` is ``kubernetes`` or ``vllm``, with ``=PATH`` after it or not.

    Raises
    ------
    ScenarioError
        For another kind, or an autoscaler that no manifest holds.
    """
    export = parse_export(export, SIMULATED_EXPORTS) if isinstance(export, str) else export
    return export_pools(servers_of(scenario), export, autoscaler="none")
