"""``--pool``: a pool of equal servers as text, profile=ID,replicas=4,max-num-seqs=256,..."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from qsim.bounds import shown
from qsim.cli._common import count
from qsim.cli._pairs import read_pairs
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.sim.fleet.pool import Pool

__all__ = ["fleet_title", "parse_pool", "pool_option", "put_pools"]

#: ``--pool``, any number of times
pool_option = click.option(
    "--pool",
    "pool_texts",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="A pool of equal servers, e.g. profile=ID,replicas=4,max-num-seqs=256; repeat for a "
    "mixed fleet behind one router. Keys: profile, replicas, weight, name and the engine options, "
    "which otherwise are those beside it.",
)


def parse_pool(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A pool of a scenario as a text describes it.

    Parameters
    ----------
    text : str
        ``KEY=VALUE`` pairs between commas; dashes or underscores in keys.
    options : mapping
        Engine options that hold where the text does not give its own.

    Raises
    ------
    ScenarioError
        Naming the key, its value and what is allowed.
    """
    from qsim.sim.scheduler.config import ENGINE

    where = f"--pool {shown(text)}"
    known = ("profile", "replicas", "weight", "name", *ENGINE)
    values = {key: _reader(key)(value, name) for key, value, name in read_pairs(text, where, known)}
    if "profile" not in values:
        raise ScenarioError(f"{where}: has no profile; give profile=ID|FILE")
    engine = {**options, **{k: values[k] for k in ENGINE if k in values}}
    pool = {k: v for k, v in values.items() if k not in ENGINE}
    return pool | ({"engine": engine} if engine else {})


def put_pools(data: dict[str, Any], texts: Sequence[str], values: dict[str, Any]) -> None:
    """Put the pools of ``--pool`` into a scenario's data, and take what they say of ``values``.

    Raises
    ------
    ScenarioError
        If one is malformed, or ``--profile`` or ``--replicas`` is given beside them.
    """
    from qsim.sim.scheduler.config import ENGINE

    for name in ("profile", "replicas"):
        if name in values:
            raise ScenarioError(
                f"--{name} and --pool are both given; each pool has its own {name}: give it there"
            )
    engine = {name: values.pop(name) for name in ENGINE if name in values}
    data.setdefault("fleet", {})["pools"] = [parse_pool(text, engine) for text in texts]


def fleet_title(resolved: Mapping[str, Any], pools: Sequence[Pool]) -> str:
    """The pools in words; of a single one the profile's id."""
    if len(pools) == 1:
        return f"{resolved['replicas']} x {resolved['profile']}"
    names = [p.profile if isinstance(p.profile, str) else p.profile.id for p in pools]
    return " + ".join(f"{p.replicas} x {name}" for p, name in zip(pools, names, strict=True))


def _reader(key: str) -> Callable[[str, str], Any]:
    if key in ("profile", "name", "scheduling_policy", "vllm_version"):
        return lambda value, where: value
    if key == "weight":
        return _number
    if key in (
        "enable_prefix_caching",
        "async_scheduling",
        "long_prefill_token_threshold_adaptive",
    ):
        return _flag
    return _count


def _count(value: str, where: str) -> int:
    try:
        return count(value)
    except (click.BadParameter, ValueError) as e:
        raise ScenarioError(f"{where} is {shown(value)}; must be a whole number") from e


def _number(value: str, where: str) -> float:
    try:
        return float(value)
    except ValueError as e:
        raise ScenarioError(f"{where} is {shown(value)}; must be a number > 0") from e


def _flag(value: str, where: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ScenarioError(f"{where} is {shown(value)}; must be true or false")
    return value.lower() == "true"
