"""The scenario at one point of a sweep: settings, trace and profile."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qsim.checks import near_names
from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import ENGINE
from qsim.traces.trace import Trace

__all__ = ["Scenarios"]

_SHAPE = (
    "format", "columns", "sort", "start", "end", "sample", "scale_prompt", "scale_output",
    "shared_prefix", "speed", "head", "merge",
)  # fmt: skip
_RUN = (
    "trace",
    *_SHAPE,
    "growth",
    "profile",
    "replicas",
    "router",
    "seed",
    "too_long",
    "allow_backlog",
)
#: parts of a profile's id
_PARTS = ("gpu", "model", "method", "tensor_parallel_size")
_PRESET = re.compile(r"[a-z][a-z0-9-]*(:.*)?")


class Scenarios:
    """A base scenario, and what varies.

    Parameters
    ----------
    base : mapping
        Settings by the names of ``qsim simulate``.
    varied : tuple of str
        Names that :meth:`at` will be given.

    Raises
    ------
    ScenarioError
        For an unknown name.
    """

    def __init__(self, base: Mapping[str, Any], varied: tuple[str, ...]) -> None:
        self.base = {k: v for k, v in base.items() if v is not None}
        for name in (*self.base, *varied):
            self._check(name)
        if "profile" in varied and set(_PARTS) & set(varied):
            raise ScenarioError("profile and its parts (gpu, model, method) cannot both be varied")
        # by instance, so that nothing outlives the sweep
        self._load_trace = lru_cache(maxsize=8)(self._read_trace)
        self._load_profile = lru_cache(maxsize=None)(self._read_profile)
        self._prints: dict[int, tuple[Any, str]] = {}

    def _check(self, name: str) -> None:
        known = (*_RUN, *ENGINE, *_PARTS, "rate")
        if name in known or name.startswith("trace."):
            return
        raise ScenarioError(f"{name!r} is no part of a scenario; {near_names(name, known)}")

    def plain(self) -> dict[str, Any]:
        """The base scenario, JSON-ready."""
        return {
            k: v.name if isinstance(v, Trace) else v.id if isinstance(v, Profile) else v
            for k, v in self.base.items()
        }

    def at(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings at one point."""
        return {**self.base, **{k: v for k, v in values.items() if v is not None}}

    def trace(self, settings: Mapping[str, Any]) -> Trace:
        """The traffic of ``settings``; read once if it does not vary.

        Raises
        ------
        TraceError, ScenarioError
            If it cannot be read, or a preset's parameter is given for a file.
        """
        given = settings.get("trace")
        if given is None:
            raise ScenarioError("trace is missing; give a file or a preset")
        parameters = {k[6:]: v for k, v in settings.items() if k.startswith("trace.")}
        if "rate" in settings:
            parameters["rate"] = settings["rate"]
        if isinstance(given, Trace):
            if parameters:
                raise ScenarioError(f"{next(iter(parameters))} is a parameter of presets; the "
                                    "trace is given as such: vary growth")  # fmt: skip
            return given.speed(float(settings.get("growth", 1.0)))
        text = str(given)
        if parameters:
            text = _with_parameters(text, parameters)
        shape = tuple(
            (k, tuple(v) if isinstance(v := settings.get(k), list) else v) for k in _SHAPE
        )
        return self._load_trace(text, shape, float(settings.get("growth", 1.0)), settings["seed"])

    def _read_trace(
        self, text: str, shape: tuple[tuple[str, Any], ...], growth: float, seed: int
    ) -> Trace:
        from qsim.traces import load_trace
        from qsim.traces.reshape import Reshaping, merge_all

        s = dict(shape)
        asked = Reshaping.of(s)
        sort = bool(s["sort"])
        first = load_trace(text, format=s["format"], columns=s["columns"], sort=sort, seed=seed)
        merged = s["merge"] or ()
        others = [merged] if isinstance(merged, str) else merged
        more = (
            asked.apply(load_trace(other, sort=sort, seed=seed), seed, k)
            for k, other in enumerate(others, 1)
        )
        return merge_all(asked.apply(first, seed), more).speed(growth)

    def profile(self, settings: Mapping[str, Any]) -> Profile:
        """The profile of ``settings``; its parts replace those of its id.

        Raises
        ------
        ProfileError, ScenarioError
            If there is none, or parts are given for one that has no id.
        """
        given = settings.get("profile")
        parts = {p: settings[p] for p in _PARTS if p in settings}
        if isinstance(given, Profile):
            if parts:
                raise ScenarioError(f"{next(iter(parts))} chooses among profiles by their id; "
                                    "give the profile as an id")  # fmt: skip
            return given
        if not parts:
            if given is None:
                raise ScenarioError("profile is missing; give an id or a file")
            return self._load_profile(str(given), settings.get("vllm_version"))
        if given is not None and (str(given).endswith(".json") or str(given).count("/") < 2):
            raise ScenarioError(
                f"{next(iter(parts))} replaces a part of a profile's id; the profile is the file "
                f"{given!r}: vary profile instead"
            )
        words = ["h200_sxm", "", "", ""] if given is None else [*str(given).split("/"), ""][:4]
        tp = parts.pop("tensor_parallel_size", None)
        for part, value in parts.items():
            words[_PARTS.index(part)] = str(value)
        if tp is not None:
            words[3] = "" if tp == 1 else f"tp{tp}"
        if not words[1] or not words[2]:
            raise ScenarioError("model and method are needed to choose a profile; give a profile")
        return self._load_profile("/".join(w for w in words if w), settings.get("vllm_version"))

    @staticmethod
    def _read_profile(text: str, vllm_version: str | None) -> Profile:
        from qsim.profiles.lookup import load_profile

        return load_profile(text, vllm_version)

    def fingerprint(self, value: Trace | Profile) -> str:
        """A hash of what a value holds."""
        known = self._prints.get(id(value))
        if known is None or known[0] is not value:
            digest = hashlib.sha256(pickle.dumps(value, protocol=5)).hexdigest()
            known = (value, digest)
            if len(self._prints) >= 64:
                self._prints.pop(next(iter(self._prints)))
            self._prints[id(value)] = known
        return known[1]


def _with_parameters(text: str, parameters: Mapping[str, Any]) -> str:
    """A preset with some of its parameters replaced."""
    if not _PRESET.fullmatch(text):
        raise ScenarioError(
            f"{next(iter(parameters))} is a parameter of presets, and the trace is the file "
            f"{text!r}: vary growth instead"
        )
    name, _, given = text.partition(":")
    merged = dict(p.split("=", 1) for p in given.split(",") if "=" in p)
    merged |= {k: str(v) for k, v in parameters.items()}
    return f"{name}:" + ",".join(f"{k}={v}" for k, v in merged.items())
