"""``qsim profiles``: which profiles there are and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qsim.cli._command import Group
from qsim.cli._outputs import say, write_json
from qsim.profiles.lookup import list_profiles, list_sharded, load_profile, stated_errors
from qsim.profiles.schema import Profile


@click.group("profiles", cls=Group, invoke_without_command=True)
@click.pass_context
def group(ctx: click.Context) -> None:
    """List and show the profiles that come with qsim."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command)


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option("--sharded", is_flag=True,
              help="Instead those of tensor-parallel servers that qsim study compares, and no plan "
              "chooses among.")  # fmt: skip
def list_command(as_json: bool = False, sharded: bool = False) -> None:
    """List the shipped profiles.

    An id means its newest version; @0.24 behind it chooses an older one. A profile of an older
    version is carried to a newer one by --vllm-version where measured factors tell how.
    """
    from qsim.report.text.tables import table

    newest = {e.id: e for e in list_profiles()}
    rows = [
        _row(e.id if newest[e.id] == e else e.name, load_profile(e.name))
        for e in list_profiles(all_versions=True)
    ]
    if sharded:
        rows = [_row(e.id, load_profile(e.id)) for e in list_sharded()]
    if as_json:
        write_json(rows, "-")
        return
    kinds = ("mean", "median", "p99", "energy")
    say(
        table(
            ["id", "source", "vLLM", "KV tokens", *(f"error %\n{k}" for k in kinds)],
            [
                [
                    r["id"],
                    r["source"],
                    r["vllm_version"] or "-",
                    f"{r['kv_tokens']:,}",
                    *(
                        f"{r['error_percent'][k]:.1f}" if k in r["error_percent"] else "-"
                        for k in kinds
                    ),
                ]
                for r in rows
            ],
            left=3,
        )
    )
    say(
        "\nerror: the worst deviation of a simulated mean, median or p99 latency, or energy, from"
        "\nthe measured one, on loads left out of the fit ('qsim profiles show ID' has them all);"
        "\nof a transferred profile an estimate"
    )


@group.command("show")
@click.argument("profile", metavar="ID|FILE")
@click.option("--json", "as_json", is_flag=True, help="The whole profile as JSON.")
@click.option("--vllm-version", metavar="VERSION", help="As it is under this version.")
def show(profile: str, as_json: bool, vllm_version: str | None) -> None:
    """Show one profile."""
    from qsim.report.text.profile import profile_text

    loaded = load_profile(profile, vllm_version)
    if as_json:
        write_json(loaded.to_dict(), "-")
    else:
        say(profile_text(loaded))


@group.command("path")
@click.argument("profile", metavar="ID")
def path(profile: str) -> None:
    """Print the file of a shipped profile."""
    load_profile(profile)  # says what is wrong with an unknown id
    known = {e.name: e.path for e in list_profiles(all_versions=True)}
    known |= {e.id: e.path for e in (*list_sharded(), *list_profiles())}
    click.echo(known.get(profile, Path(profile)))


def _row(id: str, profile: Profile) -> dict[str, Any]:
    memory = profile.memory
    return {
        "id": id,
        "source": profile.identity.source,
        "error_percent": stated_errors(profile),
        "kv_tokens": (memory.num_gpu_blocks - 1) * memory.block_size,
        "vllm_version": profile.identity.vllm_version,
        "date": profile.identity.date,
    }
