"""``qsim quality``: how much of the 16-bit model's quality each method keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qsim.cli._command import Command
from qsim.cli._outputs import note, say, to_json
from qsim.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qsim.quality.recovery import Recovery

#: columns of the table: families that a mix usually asks about
_COLUMNS = ("knowledge", "maths", "code", "reasoning", "chat", "commonsense")


@click.command("quality", cls=Command)
@click.argument("model", default="llama-3.1-8b", metavar="[MODEL]")
@click.option("--tasks", metavar="MIX", help="Shares of tasks or families, gsm8k:0.3,mmlu:0.7; "
              "by default mmlu, gsm8k, humaneval, ifeval and arc-c in equal shares.")  # fmt: skip
@click.option("--method", "methods", multiple=True, metavar="ID",
              help="Only this method, with +kv-fp8 after it or not; repeatable.")  # fmt: skip
@click.option("--profile", "profiles", multiple=True, metavar="FILE",
              help="Use the quality measured in this profile; repeatable.")  # fmt: skip
@click.option("--sources/--no-sources", default=True, help="List where the numbers are from.")
@click.option("--list-tasks", is_flag=True, help="List the tasks and families, and stop.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def quality(
    model: str,
    tasks: str | None,
    methods: tuple[str, ...],
    profiles: tuple[str, ...],
    sources: bool,
    list_tasks: bool,
    as_json: bool,
) -> None:
    """Show the recovery of each method: percent of the 16-bit model's score that it keeps.

    Columns are task families, "mix" is what --tasks asks for with its 90% interval. Each task is
    measured (your own), published (for this model and method) or estimated (from its relatives);
    the mix has the status of its weakest task, and "known" counts the tasks that are not estimated.
    """
    from qsim.quality.models import unknown_note
    from qsim.quality.table import recovery_table
    from qsim.quality.tasks import normalise_mix, parse_mix

    if list_tasks:
        click.echo(_task_list(as_json), nl=False)
        return
    mix = normalise_mix(parse_mix(tasks) if tasks is not None else None)
    measured = _measured(model, profiles)
    unknown = unknown_note(model, (r.model for r in recovery_table()))
    if unknown:
        note(unknown)
    rows = _rows(model, mix, methods, measured)
    own = _own_tasks(measured, [whole.method for whole, _ in rows])
    if as_json:
        data = {
            "schema": "qsim-quality-table/1",
            "model": rows[0][0].model,
            "known_model": not unknown,
            "mix": mix,
            "interval": 0.9,
            "methods": [
                {
                    **whole.to_dict(),
                    "families": {f: r.to_dict() for f, r in parts.items()},
                    **({"own_tasks": own[whole.method]} if whole.method in own else {}),
                }
                for whole, parts in rows
            ],
        }
        click.echo(to_json(data), nl=False)
        return
    say(_text(rows, mix, sources, "an unknown model, " if unknown else "", own))


def _measured(model: str, profiles: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """Measured quality by method, from profiles of this model."""
    from qsim.profiles.lookup import load_profile
    from qsim.quality.models import model_key

    found: dict[str, Mapping[str, Any]] = {}
    for name in profiles:
        profile = load_profile(name)
        if model_key(profile.identity.model).id != model_key(model).id:
            raise ProfileError(f"{name} is a profile of {profile.identity.model}, not of {model}")
        if profile.quality is None:
            raise ProfileError(
                f"{name} holds no measured quality; 'qsim calibrate quality' measures it"
            )
        found[profile.identity.method] = profile.quality
    return found


def _own_tasks(
    measured: Mapping[str, Mapping[str, Any]], methods: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """What was measured on tasks of one's own, which no mix has: by method and task."""
    from qsim.quality.stored import read_quality
    from qsim.quality.tasks import OWN

    found = {
        method: {t: e for t, e in tasks.items() if e.get("family") == OWN and "recovery_pct" in e}
        for method in methods
        if method in measured and (tasks := read_quality(measured[method])["tasks"])
    }
    return {method: tasks for method, tasks in found.items() if tasks}


def _rows(
    model: str,
    mix: dict[str, float],
    methods: tuple[str, ...],
    measured: Mapping[str, Mapping[str, Any]],
) -> list[tuple[Recovery, dict[str, Recovery]]]:
    from qsim.catalog.methods import METHODS
    from qsim.quality.recovery import recovery

    wanted = methods or (*METHODS, "bf16+kv-fp8")
    return [
        (
            recovery(model, m, mix, measured.get(m)),
            {f: recovery(model, m, {f: 1.0}, measured.get(m)) for f in _COLUMNS},
        )
        for m in wanted
    ]


def _text(
    rows: list[tuple[Recovery, dict[str, Recovery]]],
    mix: dict[str, float],
    sources: bool,
    which: str = "",
    own_tasks: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> str:
    from qsim.report.text.tables import table

    def known(r: Recovery) -> int:
        return sum(t.status != "estimated" for t in r.tasks)

    def cell(r: Recovery) -> str:
        own = any(t.status == "measured" for t in r.tasks)
        return ("*" if own else "" if known(r) else "~") + f"{r.mean_pct:.1f}"

    body = [
        [whole.method, *(cell(parts[f]) for f in _COLUMNS), f"{whole.mean_pct:.1f}",
         f"{whole.low_pct:.1f}-{whole.high_pct:.1f}", whole.status,
         f"{known(whole)}/{len(whole.tasks)}"]
        for whole, parts in rows
    ]  # fmt: skip
    heads = ["method", *_COLUMNS, "mix", "90% interval", "status", "known"]
    shares = ", ".join(f"{t}:{w:.3g}" for t, w in mix.items())
    own = any(t.status == "measured" for _, parts in rows for r in parts.values() for t in r.tasks)
    lines = [
        f"{rows[0][0].model}: {which}recovery in percent of the 16-bit score "
        f"({'* measured, ' if own else ''}~ no number of this model and method in the family)",
        "",
        table(heads, body),
        "",
        f"mix: {shares}",
    ]
    for method, tasks in (own_tasks or {}).items():
        told = ", ".join(
            f"{t} {e['recovery_pct']:.1f} +- {e['recovery_stderr_pct']:.1f}"
            for t, e in tasks.items()
        )
        lines.append(f"measured on tasks of your own, which are in no mix: {method} {told}")
    if any(whole.status == "estimated" for whole, _ in rows):
        lines.append(
            "known: tasks of the mix with a number of this model and method; the others are "
            "estimated from relatives"
        )
    lines += [
        f"{whole.method}: {note}"
        for whole, _ in rows
        for note in whole.note.split("; ")
        if note and not note.startswith("estimated from") and whole.method != "bf16"
    ]
    cited = list(dict.fromkeys(s for whole, _ in rows for s in whole.sources))
    if sources and cited:
        lines += ["", "Sources of the mix (published numbers, and the nearest ones of estimates):"]
        lines += [f"  {s}" for s in cited]
    return "\n".join(lines)


def _task_list(as_json: bool) -> str:
    from qsim.quality.table import recovery_table
    from qsim.quality.tasks import TASKS
    from qsim.report.text.tables import table

    counts = {t: sum(r.task == t for r in recovery_table()) for t in TASKS}
    rows = [
        {"task": t.id, "family": t.family, "what": t.what, "lm_eval": t.lm_eval or None,
         "published_numbers": counts[t.id]}
        for t in sorted(TASKS.values(), key=lambda t: t.family)
    ]  # fmt: skip
    if as_json:
        return to_json(rows)
    heads = ["family", "task", "what", "lm-eval", "numbers"]
    body = [
        [str(r["family"]), str(r["task"]), str(r["what"]), str(r["lm_eval"] or "-"),
         str(r["published_numbers"])]
        for r in rows
    ]  # fmt: skip
    return table(heads, body, left=4) + "\n"
