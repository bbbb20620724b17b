"""What options say whose values are texts of their own, such as ``KEY=VALUE,...``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from qsim.bounds import shown
from qsim.checks import near_names, parse_count
from qsim.errors import ScenarioError
from qsim.sim.scheduler.config import ENGINE

#: what makes a value of a text, or raises ValueError; and what the value must be, for errors
Reader = tuple[Callable[[str], Any], str]


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


_TEXT: Reader = (str, "a text")
_NUMBER: Reader = (float, "a number")
_WHOLE: Reader = (int, "a whole number")
_COUNT: Reader = (parse_count, "a whole number")
_FLAG: Reader = (_flag, "true or false")


def read_pairs(
    text: str,
    where: str,
    readers: Mapping[str, Reader],
    error: type[click.UsageError] | type[ScenarioError] = ScenarioError,
) -> dict[str, Any]:
    """The values of ``KEY=VALUE`` pairs between commas, by key.

    ``where`` is the option with its text. Keys have underscores; a text may have dashes for them.
    What is no pair, or a key that is unknown or given twice, is a ScenarioError; a value that
    cannot be read is an ``error``.
    """
    values: dict[str, Any] = {}
    for pair in text.split(","):
        word, equals, value = (part.strip() for part in pair.partition("="))
        key, word = word.replace("-", "_"), word.replace("_", "-")
        if not equals or not value:
            raise ScenarioError(f"{where}: {shown(pair)} is no KEY=VALUE pair")
        if key not in readers:
            near = near_names(word, [k.replace("_", "-") for k in readers])
            raise ScenarioError(f"{where}: unknown key {shown(word)}; {near}")
        if key in values:
            raise ScenarioError(f"{where}: {word} is given twice")
        read, rule = readers[key]
        try:
            values[key] = read(value)
        except ValueError:
            raise error(f"{where}: {word} is {shown(value)}; must be {rule}") from None
    return values


def _pool_readers() -> dict[str, Reader]:
    readers = {"profile": _TEXT, "replicas": _COUNT, "weight": (float, "a number > 0"),
               "name": _TEXT, **dict.fromkeys(ENGINE, _COUNT)}  # fmt: skip
    readers |= dict.fromkeys(("scheduling_policy", "vllm_version"), _TEXT)
    flags = ("enable_prefix_caching", "async_scheduling", "long_prefill_token_threshold_adaptive")
    return readers | dict.fromkeys(flags, _FLAG)


def put_pools(data: dict[str, Any], texts: Sequence[str], values: dict[str, Any]) -> None:
    """Put the pools of ``--pool`` into a scenario's data, and take what they say of ``values``.

    Engine options among these hold where a text does not give its own.
    """
    for name in ("profile", "replicas"):
        if name in values:
            raise ScenarioError(
                f"--{name} and --pool are both given; each pool has its own {name}: give it there"
            )
    shared = {name: values.pop(name) for name in ENGINE if name in values}
    pools = []
    for text in texts:
        where = f"--pool {shown(text)}"
        pool = read_pairs(text, where, _pool_readers())
        if "profile" not in pool:
            raise ScenarioError(f"{where}: has no profile; give profile=ID|FILE")
        engine = {**shared, **{k: pool.pop(k) for k in ENGINE if k in pool}}
        pools.append(pool | ({"engine": engine} if engine else {}))
    data.setdefault("fleet", {})["pools"] = pools


_FAILURE: dict[str, Reader] = {
    "at": _NUMBER, "for": _NUMBER, "server": (int, "a number"), "pool": _TEXT,
}  # fmt: skip


def failures_from(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The failures of a scenario as a command's parameters say them; None if they say none."""
    texts, mtbf_s = given.get("failure_texts") or (), given.get("mtbf_s")
    settings = {k: given[k] for k in ("repair_s", "retries") if given.get(k) is not None}
    if "repair_s" in settings and mtbf_s is None:
        raise ScenarioError("--repair-time is given without --mtbf; a --failure has its own for=")
    if not texts and mtbf_s is None:
        if "retries" in settings:
            raise ScenarioError("--retries is given, and no server fails: give --failure or --mtbf")
        return None
    events = []
    for text in texts:
        where = f"--failure {shown(text)}"
        event = read_pairs(text, where, _FAILURE)
        for key in ("at", "for"):
            if key not in event:
                raise ScenarioError(f"{where}: has no {key}; give {key}=SECONDS")
        events.append({f"{k}_s" if k in ("at", "for") else k: v for k, v in event.items()})
    return {"events": events, **({} if mtbf_s is None else {"mtbf_s": mtbf_s}), **settings}


_METRICS = ("requests", "waiting", "running", "kv_usage", "request_rate", "ttft")
#: keys of an autoscaler's text that are fields of ``fleet.autoscaler`` under another name
_FIELDS = {
    "min": "min_replicas", "max": "max_replicas", "kind": "kind", "tolerance": "tolerance",
    "sync": "sync_s", "scrape": "scrape_s", "polling": "polling_s", "cooldown": "cooldown_s",
    "provision": "provision_s",
}  # fmt: skip
_WINDOWS = {"up_window": "scale_up", "down_window": "scale_down"}
#: keys of every signal
_OF_SIGNALS = {"window": "window_s", "activation": "activation"}
_AUTOSCALER: dict[str, Reader] = {
    **dict.fromkeys((*_METRICS, *_FIELDS, *_WINDOWS, *_OF_SIGNALS), _WHOLE),
    **dict.fromkeys(("tolerance", "provision", "activation", *_METRICS), _NUMBER),
    "kind": _TEXT,
}


def autoscaler_from(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The autoscaler of a scenario as a command's parameters say it; None if they say none."""
    text = given.get("autoscale_text")
    if text is None:
        return None
    where = f"--autoscale {shown(text)}"
    if is_manifest(text):
        return _of_manifest(text, where)
    values = read_pairs(text, where, _AUTOSCALER)
    every = {name: values[key] for key, name in _OF_SIGNALS.items() if key in values}
    signals = [{"metric": m, "target": values[m], **every} for m in _METRICS if m in values]
    if not signals:
        metrics = ", ".join(_METRICS).replace("_", "-")
        raise ScenarioError(
            f"{where}: has nothing to scale on; give one of {metrics} "
            "with its target, such as requests=20"
        )
    if "max" not in values:
        raise ScenarioError(f"{where}: has no max; give max=SERVERS")
    found: dict[str, Any] = {"signals": signals}
    for key, value in values.items():
        if key in _FIELDS:
            found[_FIELDS[key]] = value
        elif key in _WINDOWS:
            found[_WINDOWS[key]] = {"stabilization_window_s": value}
    return found


def is_manifest(text: str) -> bool:
    """Whether ``--autoscale`` names a file."""
    return text.endswith((".yaml", ".yml")) or ("=" not in text and os.path.isfile(text))


def _of_manifest(path: str, where: str) -> dict[str, Any]:
    """What the one autoscaler among the objects of a YAML file says, as a scenario has it."""
    from qsim.documents import read_yaml_documents
    from qsim.optimize.deploy.autoscaler import KINDS, read_autoscaler

    found = [
        document
        for document in read_yaml_documents(path)
        if isinstance(document, dict) and document.get("kind") in KINDS
    ]
    if len(found) != 1:
        names = " or ".join(KINDS)
        raise ScenarioError(
            f"{where}: has {len(found) or 'no'} objects of kind {names}; must have one, as qsim "
            "plan --export kubernetes=FOLDER/ writes it for a fleet of one pool"
        )
    try:
        read = asdict(read_autoscaler(found[0]))
    except ScenarioError as error:
        raise ScenarioError(f"{where}: {error}") from error
    return {k: list(v) if isinstance(v, tuple) else v for k, v in read.items()}


def prices_from(texts: Sequence[str]) -> dict[str, float]:
    """Prices by GPU."""
    return {p.split("=")[0]: float(p.split("=")[1]) for p in texts}


def gpus_from(texts: Sequence[str], option: str) -> dict[str, int]:
    """Numbers of GPUs by type, each ``GPU=N``; no type may come twice."""
    found: dict[str, int] = {}
    for text in texts:
        gpu, equals, count = (part.strip() for part in text.partition("="))
        if not (gpu and equals and count.isascii() and count.isdigit()):
            raise ScenarioError(f"{option} is {text[:80]!r}; must be GPU=N, such as h100_sxm=8")
        if gpu in found:
            raise ScenarioError(f"{option} gives {gpu} twice; give their sum once")
        if len(count) > 7:
            raise ScenarioError(f"{option} is {text[:80]!r}; that many GPUs there are not")
        found[gpu] = int(count)
    return found


def rates_from(text: str) -> list[float]:
    """``5,10,20`` as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ScenarioError(
            f"--rates is {text[:80]!r}; must be requests a second, such as 5,10,20"
        ) from None
