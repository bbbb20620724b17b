"""``qsim calibrate``: measure servers, fit profiles, check them against recordings."""

from __future__ import annotations

from importlib import import_module

import click

from qsim.cli._command import Group

__all__ = ["group"]

#: name -> (module, attribute, what it does); imported when the command is used
_COMMANDS = {
    "run": (
        "qsim.cli.calibrate.run",
        "run",
        "Measure quantization methods on real vLLM servers, and fit profiles.",
    ),
    "adapt": (
        "qsim.cli.calibrate.adapt",
        "adapt_command",
        "Adapt a profile to the machine of a vLLM server, in a minute and a half.",
    ),
    "host": (
        "qsim.cli.calibrate.host",
        "host_command",
        "Time what vLLM's Python host thread does: seconds, without a GPU.",
    ),
    "agreement": (
        "qsim.cli.calibrate.agreement",
        "agreement",
        "Compare the scheduler's batches with recorded ones, step by step.",
    ),
    "quality": (
        "qsim.cli.calibrate.quality",
        "quality",
        "Measure quality with lm-eval on vLLM servers; store it in profiles.",
    ),
    "table": (
        "qsim.cli.calibrate.table",
        "table",
        "Print what recordings show: step times, energy, KV capacity.",
    ),
    "spread": (
        "qsim.cli.calibrate.spread",
        "spread",
        "Learn from recordings how machines of one type differ.",
    ),
    "versions": (
        "qsim.cli.calibrate.versions",
        "versions",
        "Compare profiles of the same servers under two versions of vLLM.",
    ),
    "transfer": (
        "qsim.cli.calibrate.transfer",
        "transfer",
        "Make profiles of GPUs and models that were not measured.",
    ),
    "fit": ("qsim.cli.calibrate.fit", "fit_command", "Fit profiles from recordings."),
    "validate": (
        "qsim.cli.calibrate.validate",
        "validate_command",
        "Replay recorded loads, and compare with what was measured.",
    ),
}


class _Group(Group):
    """A group with a command in each module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])


@click.group("calibrate", cls=_Group)
def group() -> None:
    """Measure a server, fit a profile of it, and check how well the profile predicts."""
