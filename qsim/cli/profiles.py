"""``qsim profiles``: which profiles there are and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qsim.cli._common import write_json
from qsim.profile import Profile
from qsim.profiles import list_profiles, load_profile

__all__ = ["group"]


@click.group(invoke_without_command=True)
@click.pass_context
def group(ctx: click.Context) -> None:
    """List and show the profiles that come with qsim."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command)


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def list_command(as_json: bool = False) -> None:
    """List the shipped profiles."""
    from qsim.report.tables import table

    rows = [_row(e.id, Profile.load(e.path)) for e in list_profiles()]
    if as_json:
        write_json(rows, "-")
        return
    click.echo(
        table(
            ["id", "source", "held-out error", "KV tokens", "vLLM", "date"],
            [
                [
                    r["id"],
                    r["source"],
                    r["held_out_error"] or "-",
                    f"{r['kv_tokens']:,}",
                    r["vllm_version"] or "-",
                    r["date"] or "-",
                ]
                for r in rows
            ],
            left=3,
        )
    )


@group.command("show")
@click.argument("profile", metavar="ID|FILE")
@click.option("--json", "as_json", is_flag=True, help="The whole profile as JSON.")
def show(profile: str, as_json: bool) -> None:
    """Show one profile."""
    from qsim.report.text import profile_text

    loaded = load_profile(profile)
    if as_json:
        write_json(loaded.to_dict(), "-")
    else:
        click.echo(profile_text(loaded))


@group.command("path")
@click.argument("profile", metavar="ID")
def path(profile: str) -> None:
    """Print the file of a shipped profile."""
    load_profile(profile)  # says what is wrong with an unknown id
    known = {e.id: e.path for e in list_profiles()}
    click.echo(known.get(profile, Path(profile)))


def _row(id: str, profile: Profile) -> dict[str, Any]:
    memory = profile.memory
    return {
        "id": id,
        "source": profile.identity.source,
        "held_out_error": _error(profile.fit_error),
        "kv_tokens": (memory.num_gpu_blocks - 1) * memory.block_size,
        "vllm_version": profile.identity.vllm_version,
        "date": profile.identity.date,
    }


def _error(fit_error: Mapping[str, Any]) -> str:
    """The stated error in a few words, if the profile states one."""
    return ", ".join(f"{k} {v:.1f}%" for k, v in fit_error.items() if isinstance(v, int | float))
