"""A router as text: its name, and parameters behind a colon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qsim.bounds import shown
from qsim.checks import is_number, near_names
from qsim.errors import ScenarioError


@dataclass(frozen=True)
class Parameter:
    """A number that a router takes."""

    default: float
    least: float
    most: float


_LIMITS = {
    "balance_abs_threshold": Parameter(4.0, 0.0, 1e9),
    "balance_rel_threshold": Parameter(1.5, 1.0, 1e9),
}
#: what each router takes, by its name; those that are not here take nothing
PARAMETERS: dict[str, dict[str, Parameter]] = {
    "prefix-affinity": {"cache_threshold": Parameter(0.5, 0.0, 1.0), **_LIMITS},
    "session-affinity": _LIMITS,
    "kv-aware": {
        "overlap_score_credit": Parameter(1.0, 0.0, 1.0),
        "prefill_load_scale": Parameter(1.0, 0.0, 1e6),
    },
}


@dataclass(frozen=True)
class RouterSpec:
    """A router and its parameters, those that were not given included."""

    name: str
    parameters: dict[str, float] = field(default_factory=dict)


def parse_router(text: str, known: Mapping[str, Any]) -> RouterSpec:
    """``NAME`` or ``NAME:PARAMETER=VALUE,...``, of the routers that are ``known``.

    Raises
    ------
    ScenarioError
        For an unknown router or parameter, or a value that is not allowed.
    """
    name, colon, rest = text.partition(":") if isinstance(text, str) else (text, "", "")
    if not isinstance(name, str) or name not in known:
        raise ScenarioError(f"router is {shown(name)}; must be one of: {', '.join(known)}")
    allowed = PARAMETERS.get(name, {})
    values = {key: p.default for key, p in allowed.items()}
    if not colon:
        return RouterSpec(name, values)
    if not allowed:
        raise ScenarioError(
            f"router is {shown(text)}; {name} takes no parameters: give {name} alone"
        )
    given: set[str] = set()
    for pair in rest.split(","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            raise ScenarioError(
                f"router is {shown(text)}: {shown(pair)} is no PARAMETER=VALUE; {name} takes "
                f"{', '.join(allowed)}"
            )
        if key not in allowed:
            raise ScenarioError(
                f"router {name}: unknown parameter {shown(key)}; {near_names(key, allowed)}"
            )
        if key in given:
            raise ScenarioError(f"router {name}: {key} is given twice; give it once")
        given.add(key)
        values[key] = _value(name, key, value, allowed[key])
    return RouterSpec(name, values)


def _value(name: str, key: str, text: str, allowed: Parameter) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not allowed.least <= value <= allowed.most:
        raise ScenarioError(
            f"router {name}: {key} is {shown(text)}; must be a number from {allowed.least:g} to "
            f"{allowed.most:g}"
        )
    return value


def router_text(value: Mapping[str, Any]) -> str:
    """``{name: NAME, PARAMETER: VALUE}`` as text; what it says is checked by `parse_router`.

    Raises
    ------
    ValueError
        If there is no name, or a value is no number.
    """
    name = value.get("name")
    rest = {k: v for k, v in value.items() if k != "name" and v is not None}
    if not isinstance(name, str) or not all(is_number(v) for v in rest.values()):
        raise ValueError
    return name + (":" + ",".join(f"{k}={v!r}" for k, v in rest.items()) if rest else "")
