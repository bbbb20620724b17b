"""The scenario at one point of a sweep, and its trace and profile."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qsim.checks import near_names
from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.scenario.names import fill, place_of
from qsim.scenario.paths import put_at
from qsim.scenario.resolve import check_lone_weight, load_profile_of, load_traffic, one_pool
from qsim.scenario.sections import PARTS, PoolSection, Traffic
from qsim.sim.scheduler.config import ENGINE
from qsim.traces.trace import Trace

#: what may be varied by the name of its option, beside the engine's
_RUN = ("trace", "format", "columns", "sort", "start", "end", "speed", "head", "sample",
        "scale_prompt", "scale_output", "shared_prefix", "merge", "growth", "profile",
        "replicas", "router", "seed", "too_long", "text_prompts", "allow_backlog")  # fmt: skip
#: the parts of a profile's id, in its order
_ID = ("gpu", "model", "method", "tensor_parallel_size")
#: of the traffic's fields, those that its requests do not depend on
_NO_SHAPE = ("too_long", "stream", "text_prompts")
_PRESET = re.compile(r"[a-z][a-z0-9-]*(:.*)?")


def is_part(name: str) -> bool:
    """Whether it replaces a part of the profile's id, or is a parameter of a preset."""
    return name in PARTS or name == "rate" or name.startswith("trace.")


class Scenarios:
    """A base scenario, and what varies.

    ``varied`` are names that :meth:`at` will be given: options of ``qsim simulate``, paths of a
    scenario (``fleet.pools.1.replicas``), or names that :func:`is_part` knows. ``parts`` are values
    of the latter that are the same everywhere.

    Raises
    ------
    ScenarioError
        For an unknown name.
    """

    def __init__(
        self, base: Scenario, varied: tuple[str, ...], parts: Mapping[str, Any] | None = None
    ) -> None:
        self.base = base
        self.parts = dict(parts or {})
        for name in (*self.parts, *varied):
            self.check(name)
        if "profile" in varied and set(_ID) & set(varied):
            raise ScenarioError("profile and its parts (gpu, model, method) cannot both be varied")
        # by instance, so that nothing outlives the sweep
        self._load_trace = lru_cache(maxsize=8)(self._read_trace)
        self._load_profile = lru_cache(maxsize=None)(self._read_profile)
        self._pools: dict[str, Any] = {}
        self._traffic: dict[str, Any] = {}

    @staticmethod
    def check(name: str) -> None:
        """Refuse a name that is no part of a scenario."""
        known = (*_RUN, *ENGINE, *_ID, "rate")
        if name in known or name.startswith(("trace.", "traffic.", "fleet.")):
            return
        raise ScenarioError(f"{name!r} is no part of a scenario; {near_names(name, known)}")

    def at(self, values: Mapping[str, Any]) -> Scenario:
        """The scenario at one point.

        Raises
        ------
        ScenarioError
            If a value is not allowed, or a part is given for what has no parts.
        """
        given = {k: v for k, v in {**self.parts, **values}.items() if v is not None}
        parts = {k: v for k, v in given.items() if is_part(k)}
        data = self.base.given()
        names = fill(data, "simulate", {k: v for k, v in given.items() if place_of("simulate", k)})
        for path, value in given.items():
            if path.startswith(("traffic.", "fleet.")):
                put_at(data, path, value, Scenario)
        point = Scenario.from_dict(data, names=names)
        parameters = {k.removeprefix("trace."): v for k, v in parts.items() if k not in _ID}
        if parameters:
            point = point.updated({"traffic.trace": _with_parameters(point.traffic, parameters)})
        chosen = {k: parts[k] for k in _ID if k in parts}
        if chosen:
            pools = point.given().get("fleet", {}).get("pools") or [{}]
            name = _with_parts(pools, chosen)
            pools[0] = {k: v for k, v in pools[0].items() if k not in PARTS} | {"profile": name}
            point = point.updated({"fleet.pools": pools})
        check_lone_weight(point)
        return point

    def trace(self, point: Scenario) -> Trace:
        """The traffic of a point; read once if it does not vary.

        Raises
        ------
        TraceError, ScenarioError
            If there is none, or it cannot be read.
        """
        traffic = point.traffic
        key = tuple((k, _hashed(v)) for k, v in traffic if k not in _NO_SHAPE)
        self._traffic = {repr(key): traffic}
        return self._load_trace(repr(key), point.seed if isinstance(traffic.trace, str) else 0)

    def _read_trace(self, key: str, seed: int) -> Trace:
        return load_traffic(self._traffic[key], seed)

    def profiles(self, point: Scenario) -> list[Profile]:
        """The profile of each pool of a point.

        Raises
        ------
        ProfileError, ScenarioError
            If there is no pool, or one has none.
        """
        pools = point.fleet.pools
        if not pools:
            one_pool(point)  # it says so
        return [self._profile(pool, f"fleet.pools[{i}]") for i, pool in enumerate(pools)]

    def _profile(self, pool: PoolSection, where: str) -> Profile:
        named = tuple((k, _hashed(getattr(pool, k))) for k in ("profile", *PARTS))
        key = repr((named, pool.engine.vllm_version))
        self._pools = {key: (pool, where)}
        return self._load_profile(key)

    def _read_profile(self, key: str) -> Profile:
        return load_profile_of(*self._pools[key])


def _hashed(value: Any) -> Any:
    """A value of a section, or the identity of an object that was given in Python."""
    if isinstance(value, list):
        return tuple(map(_hashed, value))
    return value if value is None or isinstance(value, str | int | float) else id(value)


def _with_parts(pools: list[dict[str, Any]], parts: Mapping[str, Any]) -> str:
    """The id of the pool's profile with some of its parts replaced."""
    first = next(iter(parts))
    if len(pools) > 1:
        raise ScenarioError(
            f"{first} is varied, and the scenario has {len(pools)} pools: vary one's profile, "
            "as in fleet.pools.0.profile"
        )
    given = pools[0].get("profile")
    if isinstance(given, Profile):
        raise ScenarioError(
            f"{first} chooses among profiles by their id; give the profile as an id"
        )
    if given is not None and (str(given).endswith(".json") or str(given).count("/") < 2):
        raise ScenarioError(
            f"{first} replaces a part of a profile's id; the profile is the file {given!r}: vary "
            "profile instead"
        )
    if given is None:
        size = pools[0].get("tensor_parallel_size", 1)
        words = [pools[0].get("gpu", "h200_sxm"), pools[0].get("model", ""),
                 pools[0].get("method", ""), "" if size == 1 else f"tp{size}"]  # fmt: skip
    else:
        words = [*str(given).split("/"), ""][:4]
    for part, value in parts.items():
        tp = part == "tensor_parallel_size"
        words[_ID.index(part)] = ("" if value == 1 else f"tp{value}") if tp else str(value)
    if not words[1] or not words[2]:
        raise ScenarioError("model and method are needed to choose a profile; give a profile")
    return "/".join(w for w in words if w)


def _with_parameters(traffic: Traffic, parameters: Mapping[str, Any]) -> str:
    """A preset with some of its parameters replaced."""
    first = next(iter(parameters))
    text = "" if traffic.trace is None else traffic.trace
    if isinstance(text, Trace):
        raise ScenarioError(
            f"{first} is a parameter of presets; the trace is given as such: vary growth"
        )
    if not _PRESET.fullmatch(text):
        raise ScenarioError(
            f"{first} is a parameter of presets, and the trace is the file {text!r}: vary growth "
            "instead"
        )
    name, _, given = text.partition(":")
    merged = dict(p.split("=", 1) for p in given.split(",") if "=" in p)
    merged |= {k: str(v) for k, v in parameters.items()}
    return f"{name}:" + ",".join(f"{k}={v}" for k, v in merged.items())
