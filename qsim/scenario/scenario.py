"""``Scenario``: what a command is asked, typed and checked once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from qsim.bounds import MAX_SEED, Items, Whole, shown
from qsim.checks import near_names
from qsim.documents import read_json, read_yaml, to_yaml
from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.scenario.fields import MOST, Word, empty_list
from qsim.scenario.paths import paths_named, put_at
from qsim.scenario.searches import (
    CapacitySection,
    CurveSection,
    PlanSection,
    ScheduleSection,
    StudySection,
    SweepSection,
    TuneSection,
)
from qsim.scenario.section import Doubt, Field, Section, plainly
from qsim.scenario.sections import Accounts, Fleet, Traffic
from qsim.sim.results.slo import Slo, parse_slos
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from pydantic import ValidationError

    from qsim.edge import Place


#: commands with a section of their own
COMMANDS = ("plan", "tune", "schedule", "sweep", "study", "capacity", "curve")
_SECTIONS = ("traffic", *COMMANDS)
#: what every resolved scenario says
_ALWAYS = ("traffic", "fleet", "slos", "seed")


class Scenario(Section):
    """What is asked of qsim: traffic, a fleet, limits, and what a search looks for.

    The same in Python, in YAML or JSON (:meth:`load`), and on the command line. A section may be
    given as a mapping; :meth:`json_schema` says what each may hold.

    Raises
    ------
    ScenarioError
        Naming the field, its value and what is allowed.

    Examples
    --------
    >>> chat = Scenario(
    ...     traffic={"trace": "azure-conv-2023:duration=60,rate=2"},
    ...     fleet={"pools": [{"profile": "h200_sxm/llama-3.1-8b/fp8-w8a8", "replicas": 2}]},
    ...     slos=["ttft:p99:500"],
    ... )
    >>> chat.fleet.pools[0].replicas
    2
    >>> chat.updated({"fleet.pools.0.engine.max_num_seqs": 64}).to_dict()["fleet"]["pools"]
    [{'profile': 'h200_sxm/llama-3.1-8b/fp8-w8a8', 'replicas': 2, 'engine': {'max_num_seqs': 64}}]
    """

    traffic: Traffic = Field(default_factory=Traffic)
    fleet: Fleet = Field(default_factory=Fleet)
    slos: Annotated[list[Word], Items(MOST)] = Field(
        default_factory=empty_list, description="METRIC:STATISTIC:MS, such as ttft:p99:500."
    )
    goodput: Annotated[list[Word], Items(MOST)] = Field(
        default_factory=empty_list, description="METRIC:MS, limits of single requests; plan."
    )
    allow_backlog: bool = Field(
        default=False,
        description="Do not count a fleet that finishes less than arrives as missing its SLOs.",
    )
    accounts: Accounts = Field(default_factory=Accounts)
    seed: Annotated[int, Whole(0, MAX_SEED)] = Field(default=0, description="Of every random draw.")
    plan: PlanSection = Field(default_factory=PlanSection)
    tune: TuneSection = Field(default_factory=TuneSection)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    sweep: SweepSection = Field(default_factory=SweepSection)
    study: StudySection = Field(default_factory=StudySection)
    capacity: CapacitySection = Field(default_factory=CapacitySection)
    curve: CurveSection = Field(default_factory=CurveSection)

    def __init__(self, **data: Any) -> None:
        self._become(_checked(data, "", {}))

    @classmethod
    def from_dict(
        cls, data: object, where: str = "", names: Mapping[Place, str] | None = None
    ) -> Scenario:
        """Check plain data.

        Parameters
        ----------
        data : object
            Of YAML or JSON.
        where : str
            The file, which begins an error.
        names : mapping, optional
            What an error calls a field, by its place, where that is not its path.

        Raises
        ------
        ScenarioError
            Naming the field, its value and what is allowed.
        """
        before = f"{where}: " if where else ""
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise ScenarioError(
                f"{before}holds {shown(data)}; must be a mapping of the sections "
                f"{', '.join(cls.model_fields)}"
            )
        return cls.made(dict(found := _checked(data, before, names or {})), found.model_fields_set)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scenario:
        """Read a YAML (1.2) or JSON file.

        Raises
        ------
        ScenarioError
            If it cannot be read, or as :meth:`from_dict`.
        """
        name = os.fspath(path)
        return cls.from_dict(read_data(path), name)

    def updated(self, values: Mapping[str, Any]) -> Scenario:
        """The same with other values, by path: ``{"fleet.pools.0.replicas": 2}``.

        A pool is named by its number from 0, its name or its profile's id.

        Raises
        ------
        ScenarioError
            For a path that leads nowhere (near ones are named), or a value that is not allowed.
        """
        data = self.given()
        for path, value in values.items():
            put_at(data, path, value, type(self))
        return type(self).from_dict(data)

    def limits(self) -> tuple[Slo, ...]:
        """The SLOs, parsed."""
        return parse_slos(self.slos)

    def to_dict(self, command: str = "simulate") -> dict[str, Any]:
        """As resolved for a command: defaults included, JSON-ready.

        Of the sections those that the command reads, and those that were given.
        """
        wanted = {*_ALWAYS, command, *self.model_fields_set}
        data = {
            k: v
            for k, v in self.resolved().items()
            if k in wanted and not (k in COMMANDS and k != command and not v)
        }
        for pool, section in zip(data["fleet"].get("pools", ()), self.fleet.pools, strict=True):
            starts = command == "schedule" or self.fleet.autoscaler is not None
            if not starts and "lifecycle" not in section.model_fields_set:
                del pool["lifecycle"]
        for name, section in [("", self), *((n, getattr(self, n)) for n in data if n in _SECTIONS)]:
            part = data[name] if name else data
            for key, field in type(section).model_fields.items():
                if field.default is False and part.get(key) is False:
                    del part[key]
        for name in COMMANDS:
            for key in {"search", "fix", "over"} & set(data.get(name, ())):
                data[name][key] = _by_name(data[name][key])
        plain: dict[str, Any] = _plain(data)
        return plain

    def to_yaml(self, command: str = "simulate") -> str:
        """:meth:`to_dict` as text that :meth:`load` reads."""
        return to_yaml(self.to_dict(command))

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema (draft 2020-12) of a scenario file."""
        from qsim.scenario.models import json_schema

        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **json_schema(cls),
            "title": "qsim scenario",
        }


def read_data(path: str | os.PathLike[str]) -> Any:
    """The plain data of a scenario file: JSON if its name ends so, YAML otherwise."""
    return read_json(path) if os.fspath(path).endswith(".json") else read_yaml(path)


def _checked(data: dict[str, Any], before: str, names: Mapping[Place, str]) -> Section:
    try:
        return plainly(Scenario, data)
    except (Doubt, RecursionError):
        pass
    from pydantic import ValidationError

    from qsim.scenario.models import judged

    try:
        return judged(Scenario, data)
    except ValidationError as e:
        raise ScenarioError(_explained(e, before, names)) from None
    except RecursionError:
        raise ScenarioError(f"{before}is nested too deeply") from None


def _explained(error: ValidationError, before: str, names: Mapping[Place, str]) -> str:
    from qsim.edge import message

    problem = error.errors(include_url=False)[0]

    def unknown(at: Place, known: Iterable[str]) -> str:
        key = str(at[-1])
        found = paths_named(key, Scenario)[:4] if len(at) == 1 else []
        return f"it belongs to {' or '.join(found)}" if found else near_names(key, known)

    return f"{before}{message(Scenario, problem, names, unknown)}"


def _by_name(values: Any) -> Any:
    """``["max_num_seqs=64,128"]`` and ``{"max_num_seqs": [64, 128]}`` said in one way."""
    if isinstance(values, list):
        pairs = [text.partition("=") for text in values]
        named = {n.strip().lstrip("-").replace("-", "_"): v if e else None for n, e, v in pairs}
        return named if len(named) == len(values) else values
    return {
        k: ",".join(_word(v) for v in vs)
        if isinstance(vs, list) and not any(isinstance(v, str) and "," in v for v in vs)
        else vs
        for k, vs in values.items()
    }


def _word(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    """Without what is empty; objects of Python's by their name."""
    if isinstance(value, dict):
        plain = {k: _plain(v) for k, v in value.items()}
        return {k: v for k, v in plain.items() if v not in ({}, [])}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Trace):
        return value.name
    if isinstance(value, Profile):
        return value.id
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
