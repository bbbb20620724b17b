"""``qsim calibrate``: measure servers, fit profiles, check them against recordings."""

from __future__ import annotations

from importlib import import_module

import click

from qsim.cli._command import Group

__all__ = ["group"]

#: name -> (module, attribute); imported when the command is used
_COMMANDS = {
    "run": ("qsim.cli.calibrate.run", "run"),
    "adapt": ("qsim.cli.calibrate.adapt", "adapt_command"),
    "host": ("qsim.cli.calibrate.host", "host_command"),
    "agreement": ("qsim.cli.calibrate.agreement", "agreement"),
    "quality": ("qsim.cli.calibrate.quality", "quality"),
    "table": ("qsim.cli.calibrate.table", "table"),
    "spread": ("qsim.cli.calibrate.spread", "spread"),
    "versions": ("qsim.cli.calibrate.versions", "versions"),
    "transfer": ("qsim.cli.calibrate.transfer", "transfer"),
    "fit": ("qsim.cli.calibrate.fit", "fit_command"),
    "validate": ("qsim.cli.calibrate.validate", "validate_command"),
}


class _Group(Group):
    """A group with a command in each module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command = getattr(import_module(module), attribute)
        return command if isinstance(command, click.Command) else None


@click.group("calibrate", cls=_Group)
def group() -> None:
    """Measure a server, fit a profile of it, and check how well the profile predicts."""
