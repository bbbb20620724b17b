"""What tuning is told, read and checked: objectives, constraints and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsim.errors import ScenarioError
from qsim.optimize.search.expressions import All, Comparison, parse_condition
from qsim.optimize.search.goals import check_floor
from qsim.optimize.search.measures import Measure, find_measure
from qsim.optimize.search.space import (
    Choices,
    Decision,
    Range,
    parse_decision,
    search_texts,
    value_text,
)
from qsim.optimize.tune.result import Limit
from qsim.profiles.schema import Profile
from qsim.sim.results.slo import Slo


def parse_objectives(names: Sequence[str]) -> tuple[Measure, ...]:
    """Objectives by name or alias, each once.

    Raises
    ------
    ScenarioError
        For an unknown one, one that comes twice, or none.
    """
    if isinstance(names, str):
        raise ScenarioError(f"objectives is {names!r}; must be a list of names")
    found = tuple(find_measure(n) for n in names)
    if not found:
        raise ScenarioError("no objective is given; give at least one, such as energy")
    for i, measure in enumerate(found):
        if measure in found[:i]:
            raise ScenarioError(f"objective {measure.name} is given twice")
    return found


def parse_limits(slos: Sequence[Slo], constraints: Sequence[str]) -> tuple[Limit, ...]:
    """SLOs and conditions as constraints.

    Raises
    ------
    ScenarioError
        For a condition that is not comparisons with <= and >=, joined by and.
    """
    limits = [Limit(find_measure(s.figure), "<=", s.limit_ms) for s in slos]
    for text in constraints:
        condition = parse_condition(text, "--constraint")
        parts = condition.parts if isinstance(condition, All) else (condition,)
        for part in parts:
            if not isinstance(part, Comparison) or isinstance(part.value, str):
                raise ScenarioError(
                    f"--constraint {text!r}: must compare figures with numbers, joined by and, as "
                    'in "p99_ttft_ms<=500 and gpus<=8"'
                )
            if part.op not in ("<=", ">="):
                raise ScenarioError(f"--constraint {text!r}: {part.op} must be <= or >=")
            measure = find_measure(part.name)
            if measure.name in ("quality", "quality_low") and part.op == ">=":
                check_floor(f"--constraint {text!r}: {measure.name}", part.value)
            limits.append(Limit(measure, part.op, part.value))
    return tuple(dict.fromkeys(limits))


def parse_search(
    search: Mapping[str, Any] | Sequence[str], option: str = "--search"
) -> dict[str, Decision]:
    """Decisions by name, from ``{"max_num_seqs": [64, 128]}`` or ``["max_num_seqs=64,128"]``.

    Raises
    ------
    ScenarioError
        For one that does not parse or comes twice.
    """
    found: dict[str, Decision] = {}
    if isinstance(search, Mapping):
        for name, values in search.items():
            if isinstance(values, Choices | Range):
                found[name] = values
            elif isinstance(values, list | tuple):
                found[name] = Choices(tuple(values))
            else:
                found[name] = parse_decision(f"{name}={value_text(values)}")[1]
        return found
    for text in search:
        name, decision = parse_decision(text, option)
        if name in found:
            raise ScenarioError(f"{option} gives {name} twice; give it once")
        found[name] = decision
    return found


def parse_fix(fix: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Values by name; None, or a name alone, leaves a decision to the profile.

    Raises
    ------
    ScenarioError
        For several values of one decision.
    """
    pairs = search_texts(fix)
    found: dict[str, Any] = {}
    for text in pairs:
        if "=" not in text:
            found[text.strip().lstrip("-").replace("-", "_")] = None
            continue
        name, decision = parse_decision(text, "--fix")
        values = decision.grid()
        if len(values) != 1:
            raise ScenarioError(f"--fix {text!r}: must be one value; several are for --search")
        found[name] = values[0]
    return found


def gpu_figures(gpus: Sequence[str], measures: Sequence[Measure]) -> tuple[str, ...]:
    """The figures ``gpus_TYPE`` that are asked for, each of a type that a profile has.

    Raises
    ------
    ScenarioError
        For another type.
    """
    known = {f"gpus_{gpu}" for gpu in gpus}
    asked = list(dict.fromkeys(m.name for m in measures if m.name.startswith("gpus_")))
    for name in asked:
        if name not in known:
            raise ScenarioError(
                f"{name.removeprefix('gpus_')!r} is no type of GPU that a profile in this tuning "
                f"uses; they use: {', '.join(sorted(k.removeprefix('gpus_') for k in known))}"
            )
    return tuple(asked)


def not_owned(profile: Profile, stock: Mapping[str, int]) -> str:
    """That there are no GPUs for a server; "" where there are, or no stock is given."""
    gpu, need = profile.identity.gpu, profile.identity.tensor_parallel_size
    owned = stock.get(gpu, 0)
    if not stock or owned >= need:
        return ""
    return f"one server needs {need} {gpu}, and {owned or 'none'} in stock (--stock)"
