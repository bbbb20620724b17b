"""``qsim calibrate versions``: what changed between two versions of vLLM on one GPU."""

from __future__ import annotations

from pathlib import Path

import click

from qsim.cli._command import Command


@click.command("versions", cls=Command)
@click.argument("profiles", nargs=-1, required=True, metavar="PROFILE.json...")
@click.option(
    "--kernel-changed",
    multiple=True,
    metavar="METHOD",
    help="A method whose kernel is another one since: its profiles are not carried.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add the factors to this file; qsim's own is qsim/profiles/versions.json.",
)
def versions(profiles: tuple[str, ...], kernel_changed: tuple[str, ...], out: Path | None) -> None:
    """Compare profiles of the same servers under two versions of vLLM, measured on one GPU.

    Prints, for each server, GPU spans at full clock, host times, KV blocks and power under both as
    a Markdown table, and the factors by which other profiles are carried from the older version to
    the newer, with their errors: a server's own factors against those of the others.
    """
    from qsim.calibrate.transfer.versions import learn, pairs_of, table_rows, write_changes
    from qsim.catalog.methods import find_method
    from qsim.cli._outputs import to_json
    from qsim.profiles.carry import changes
    from qsim.profiles.schema import Profile

    for name in kernel_changed:
        find_method(name)
    pairs = pairs_of([Profile.load(p) for p in profiles])
    change = learn(pairs, kernel_changed)
    rows = table_rows(pairs)
    servers = [r["server"].split("/", 1)[1] for r in rows]
    lines = [f"| {change.before} -> {change.after} | {' | '.join(servers)} |"]
    lines.append(f"|---|{'---:|' * len(rows)}")
    lines += [
        f"| {name} | {' | '.join(r[name] for r in rows)} |" for name in rows[0] if name != "server"
    ]
    click.echo("\n".join(lines))
    click.echo("\nfactors for other servers")
    click.echo(to_json(vars(change)))
    if out is not None:
        write_changes(out, changes(), change)
