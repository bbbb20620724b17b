"""Options for clients that wait or give up, and for servers that fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from qsim.bounds import shown
from qsim.cli._common import option_group
from qsim.cli._pairs import read_pairs
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.scenario import Scenario

__all__ = ["check_think_time", "client_options", "failures_from"]

client_options = option_group(
    click.option("--concurrency", type=int, metavar="N",
                 help="Clients, each of which sends the next request of TRACE when its last one "
                 "has ended; when requests arrive in TRACE means nothing then."),
    click.option("--think-time", "think_time_s", type=float, metavar="S",
                 help="Mean seconds that a client of --concurrency waits after an answer, "
                 "exponentially distributed."),
    click.option("--client-timeout", "client_timeout_s", type=float, metavar="S",
                 help="Seconds after which a client gives up, and the server aborts its request."),
    click.option("--failure", "failure_texts", multiple=True, metavar="KEY=VALUE,...",
                 help="A server fails, e.g. at=600,for=120,server=0 (seconds of TRACE; pool=NAME "
                 "of several); repeat for more."),
    click.option("--mtbf", "mtbf_s", type=float, metavar="S",
                 help="Mean seconds that a server is on before it fails, at random."),
    click.option("--repair-time", "repair_s", type=float, metavar="S",
                 help="Mean seconds until it is repaired (0 by default); then it starts."),
    click.option("--retries", type=int, metavar="N",
                 help="How often a client sends a request again that a failed server has lost "
                 "(2 by default)."),
)  # fmt: skip


def check_think_time(command: str, scenario: Scenario) -> None:
    """Refuse ``--think-time`` where nobody thinks, in the words of the command line.

    Raises
    ------
    ScenarioError
        If ``simulate`` has no clients, or ``capacity`` no users.
    """
    given = f"--think-time is {scenario.traffic.think_time_s:g}"
    if command == "simulate" and scenario.traffic.concurrency is None:
        raise ScenarioError(
            f"{given}, and there are no clients that think: give --concurrency, too; sessions of a "
            "trace have delays of their own"
        )
    if command == "capacity" and not scenario.capacity.users:
        raise ScenarioError(f"{given}, and rates are searched: ask for --users, too")


def failures_from(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The failures of a scenario as a command's parameters say them; None if they say none.

    Raises
    ------
    ScenarioError
        If one is malformed, or belongs to failures and nothing fails.
    """
    texts, mtbf_s = given.get("failure_texts") or (), given.get("mtbf_s")
    settings = {k: given[k] for k in ("repair_s", "retries") if given.get(k) is not None}
    if "repair_s" in settings and mtbf_s is None:
        raise ScenarioError("--repair-time is given without --mtbf; a --failure has its own for=")
    if not texts and mtbf_s is None:
        if "retries" in settings:
            raise ScenarioError("--retries is given, and no server fails: give --failure or --mtbf")
        return None
    found = {"events": [_failure(text) for text in texts], "mtbf_s": mtbf_s, **settings}
    return {k: v for k, v in found.items() if v is not None}


def _failure(text: str) -> dict[str, Any]:
    where = f"--failure {shown(text)}"
    names = {"at": "at_s", "for": "for_s", "server": "server", "pool": "pool"}
    values: dict[str, Any] = {}
    for key, value, name in read_pairs(text, where, list(names)):
        try:
            values[names[key]] = (
                value if key == "pool" else int(value) if key == "server" else float(value)
            )
        except ValueError as e:
            raise ScenarioError(f"{name} is {shown(value)}; must be a number") from e
    missing = [key for key in ("at", "for") if names[key] not in values]
    if missing:
        raise ScenarioError(f"{where}: has no {missing[0]}; give {missing[0]}=SECONDS")
    return values
