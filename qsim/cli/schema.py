"""``qsim schema``: what a scenario file may hold."""

from __future__ import annotations

import click

from qsim.cli._command import Command
from qsim.cli._outputs import write_json


@click.command(cls=Command)
@click.option("--out", metavar="FILE", default="-", show_default=True,
              help="Write it to a file; - for stdout.")  # fmt: skip
def schema(out: str) -> None:
    """Print the JSON Schema of a scenario file.

    Editors complete and check YAML by it: begin the file with
    # yaml-language-server: $schema=scenario.schema.json
    """
    from qsim.scenario import Scenario

    write_json(Scenario.json_schema(), out)
