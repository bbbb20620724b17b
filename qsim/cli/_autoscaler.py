"""``--autoscale``: an autoscaler as text, requests=20,min=1,max=8,..."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from qsim.bounds import shown
from qsim.cli._common import option_group
from qsim.cli._pairs import read_pairs
from qsim.errors import ScenarioError

__all__ = ["autoscaler_from", "autoscaler_options", "is_manifest"]

_METRICS = ("requests", "waiting", "running", "kv_usage", "request_rate", "ttft")
#: keys of the text that are fields of ``fleet.autoscaler`` under another name
_FIELDS = {
    "min": "min_replicas", "max": "max_replicas", "kind": "kind", "tolerance": "tolerance",
    "sync": "sync_s", "scrape": "scrape_s", "polling": "polling_s", "cooldown": "cooldown_s",
    "provision": "provision_s",
}  # fmt: skip
_WINDOWS = {"up_window": "scale_up", "down_window": "scale_down"}
#: keys of every signal
_OF_SIGNALS = {"window": "window_s", "activation": "activation"}
_REAL = {"tolerance", "provision", "activation", *_METRICS}
_KEYS = (*_METRICS, *_FIELDS, *_WINDOWS, *_OF_SIGNALS)

autoscaler_options = option_group(
    click.option("--autoscale", "autoscale_text", metavar="KEY=VALUE,...|FILE.yaml",
                 help="Let Kubernetes' autoscaler say how many servers are on, e.g. "
                 "requests=20,min=1,max=8: as many as hold 20 requests each, --replicas at the "
                 "beginning. Keys: what to scale on with its target per server (requests, waiting, "
                 "running, kv-usage, request-rate, ttft in s); min, max; kind (keda, hpa); window, "
                 "activation; up-window, down-window, tolerance; sync, scrape, polling, cooldown, "
                 "provision (seconds). Or a FILE.yaml with the HorizontalPodAutoscaler or "
                 "ScaledObject, as qsim writes them."),
    click.option("--start-s", type=float, metavar="S",
                 help="Seconds from a server's start until it answers, with --autoscale, --failure "
                 "or --mtbf (105 by default: the longest that was measured)."),
)  # fmt: skip


def autoscaler_from(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The autoscaler of a scenario as a command's parameters say it; None if they say none.

    Raises
    ------
    ScenarioError
        If it is malformed.
    """
    text = given.get("autoscale_text")
    if text is None:
        return None
    where = f"--autoscale {shown(text)}"
    if is_manifest(text):
        return _of_manifest(text, where)
    values = _read(text, where)
    signals = [{"metric": m, "target": values[m]} for m in _METRICS if m in values]
    if not signals:
        metrics = ", ".join(_METRICS).replace("_", "-")
        raise ScenarioError(
            f"{where}: has nothing to scale on; give one of {metrics} "
            "with its target, such as requests=20"
        )
    if "max" not in values:
        raise ScenarioError(f"{where}: has no max; give max=SERVERS")
    for key, name in _OF_SIGNALS.items():
        if key in values:
            for signal in signals:
                signal[name] = values[key]
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


def _read(text: str, where: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value, name in read_pairs(text, where, _KEYS):
        try:
            values[key] = (
                value if key == "kind" else float(value) if key in _REAL else int(value, 10)
            )
        except ValueError as e:
            kind = "number" if key in _REAL else "whole number"
            raise ScenarioError(f"{name} is {shown(value)}; must be a {kind}") from e
    return values
