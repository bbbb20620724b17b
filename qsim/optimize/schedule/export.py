"""A timetable in a form that can be carried out: a table, or Deployments with cron triggers."""

from __future__ import annotations

from typing import Any

from qsim.errors import ScenarioError
from qsim.optimize.deploy.deployment import Pool, distinct
from qsim.optimize.deploy.export import Export, _put, parse_export
from qsim.optimize.deploy.kubernetes import manifests, to_yaml
from qsim.optimize.schedule.problem import PoolChoice
from qsim.optimize.schedule.result import Schedule

SCHEDULE_EXPORTS = ("csv", "kubernetes")
DAY_S = 86400
_DAYS = 7


def parse_schedule_export(text: str) -> Export:
    """``parse_export`` for what a schedule can be written as."""
    return parse_export(text, SCHEDULE_EXPORTS)


def export_schedule(
    found: Schedule, export: Export | str, *, week_day: int = 0, timezone: str = "Etc/UTC"
) -> str | None:
    """Write the timetable; returns the text if there is no path.

    ``export`` is ``csv`` or ``kubernetes``, with ``=PATH`` after it or not. Time 0 of the trace is
    a midnight of ``timezone``, as the tz database names it, on ``week_day``, 0 for Sunday.

    Raises
    ------
    ScenarioError
        For another kind, or if the timetable is longer than a week.
    """
    export = parse_schedule_export(export) if isinstance(export, str) else export
    if export.kind == "csv":
        table = found.to_csv()
        return _put(export.path, table, {"schedule.csv": table})
    columns = {k: [row[k] for row in found.counts] for k in range(len(found.choices))}
    used = [k for k, column in columns.items() if any(column)]
    servers = distinct([_servers(found.choices[k], columns[k]) for k in used])
    objects: list[dict[str, Any]] = []
    for k, pool in zip(used, servers, strict=True):
        objects += _pool_objects(found, pool, columns[k], week_day, timezone)
    files = {f"{o['metadata']['name']}-{o['kind'].lower()}.yaml": to_yaml([o]) for o in objects}
    return _put(export.path, to_yaml(objects), files)


def _servers(choice: PoolChoice, column: list[int]) -> Pool:
    pool = choice.pool
    return Pool.of(
        pool.profile,
        pool.options,
        max(1, column[0]),
        max_replicas=max(column),
        startup_s=pool.lifecycle.start_s,
    )


def _pool_objects(
    found: Schedule, servers: Pool, column: list[int], week_day: int, timezone: str
) -> list[dict[str, Any]]:
    deployment, *others = manifests(servers, "none")
    triggers = cron_triggers(column, found.problem.window_s, found.lead_s, week_day, timezone)
    scaled = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {**deployment["metadata"]},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": deployment["metadata"]["name"],
            },
            "minReplicaCount": min(column),
            "maxReplicaCount": max(column),
            "pollingInterval": 15,
            "cooldownPeriod": 0,
            "triggers": triggers,
        },
    }
    return [deployment, *others, scaled]


def check_week(timetable_s: float) -> None:
    """Cron triggers repeat by the week.

    Raises
    ------
    ScenarioError
        If a timetable is longer.
    """
    if timetable_s > _DAYS * DAY_S:
        raise ScenarioError(
            f"the timetable lasts {timetable_s / DAY_S:.3g} days; cron triggers repeat by "
            "the week: cut the trace to 7 days (--end 604800) or export csv"
        )


def cron_triggers(
    column: list[int], window_s: float, lead_s: float, week_day: int, timezone: str
) -> list[dict[str, Any]]:
    """KEDA's cron triggers of one pool: for each level above the lowest, when it is needed.

    KEDA takes the highest of the active triggers, so that a trigger a level and stretch suffices.
    A stretch begins ``lead_s`` before its first window, rounded up to a minute.

    Raises
    ------
    ScenarioError
        If the timetable is longer than a week, which cron's days of the week cannot say.
    """
    windows = len(column)
    check_week(windows * window_s)
    lead = -(-round(lead_s) // 60)
    triggers = []
    for level in range(min(column) + 1, max(column) + 1):
        begin = None
        for t in range(windows + 1):
            needed = t < windows and column[t] >= level
            if needed and begin is None:
                begin = t
            elif not needed and begin is not None:
                first = round(begin * window_s / 60) - lead
                triggers.append(
                    {
                        "type": "cron",
                        "metadata": {
                            "timezone": timezone,
                            "start": _cron(first, week_day),
                            "end": _cron(round(t * window_s / 60), week_day),
                            "desiredReplicas": str(level),
                        },
                    }
                )
                begin = None
    return triggers


def _cron(minute: int, week_day: int) -> str:
    """Minutes since time 0 as ``minute hour * * day-of-week``."""
    day, rest = divmod(minute, 1440)
    return f"{rest % 60} {rest // 60} * * {(week_day + day) % 7}"
