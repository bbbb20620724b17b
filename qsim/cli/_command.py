"""Commands that refuse an option that is given twice, where click takes the last one silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import ClassVar

import click

from qsim.bounds import shown

#: largest numbers of an option; what it means has limits of its own
_LARGEST, _LARGEST_WHOLE = 1e18, 1 << 64


def _refuse_repeated(command: click.Command, ctx: click.Context, args: list[str]) -> None:
    """Usage error for options of one value, or flags, that ``args`` holds more than once."""
    _, _, order = command.make_parser(ctx).parse_args(args=list(args))
    for param, times in Counter(order).items():
        if not isinstance(param, click.Option) or times == 1:
            continue
        if param.multiple or param.count or (not param.expose_value and param.is_flag):
            continue  # --help and --version answer once
        names = {*param.opts, *param.secondary_opts}
        given = [
            " ".join(args[i : i + (1 if param.is_flag or "=" in word else 2)])
            for i, word in enumerate(args)
            if word.partition("=")[0] in names
        ]
        name = max(param.opts, key=len)
        why = "" if param.is_flag else "it takes one value: "
        raise click.UsageError(
            f"{name} is given {times} times ({', '.join(given)}); {why}give it once", ctx
        )


def _check_numbers(command: click.Command, ctx: click.Context) -> None:
    """Usage error for a number, given here or in a scenario, that is not finite or immense."""
    for param in command.params:
        value = ctx.params.get(param.name or "")
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, bool) or not isinstance(part, int | float):
                continue
            if not abs(part) <= (_LARGEST if isinstance(part, float) else _LARGEST_WHOLE):
                name = max(param.opts, key=len)
                raise click.UsageError(f"{name} is {shown(part)}; must be a finite number, at most "
                                       f"{_LARGEST:g}", ctx)  # fmt: skip


#: options of some commands, and what stands for them where there is none
_INSTEAD = {
    "--model": ("--profile", "a server is named by its profile, GPU/MODEL/METHOD (qsim profiles)"),
    "--method": ("--profile", "a server is named by its profile, GPU/MODEL/METHOD (qsim profiles)"),
    "--gpu": ("--profile", "a server is named by its profile, GPU/MODEL/METHOD (qsim profiles)"),
    "--autoscale": ("--autoscaler", "qsim simulate runs a fleet under an autoscaler; this is what "
                    "an export writes"),
}  # fmt: skip


def _tell_instead(command: click.Command, ctx: click.Context, error: click.NoSuchOption) -> None:
    """Usage error that says what there is instead of an option of other commands."""
    name, why = _INSTEAD.get(error.option_name, ("", ""))
    if any(name in param.opts for param in command.params):
        raise click.UsageError(
            f"No such option {error.option_name!r}: give {name}; {why}", ctx
        ) from None


class Command(click.Command):
    """A command whose single options may be given once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, after a look for repeated options."""
        try:
            if not ctx.resilient_parsing:
                _refuse_repeated(self, ctx, args)
            left = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            _tell_instead(self, ctx, error)
            raise
        if not ctx.resilient_parsing:
            _check_numbers(self, ctx)
        return left


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type  # this one

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, after a look for repeated options."""
        if args and not ctx.resilient_parsing:
            _refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)


class TableGroup(Group):
    """A group that knows its commands by name, and imports the one that is used."""

    #: Where each command is, in a module of its name.
    package: ClassVar[str]
    #: By name, the line for the help page.
    lines: ClassVar[Mapping[str, str]]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self.lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None if there is none of that name."""
        if cmd_name not in self.lines:
            return None
        there = vars(import_module(f"{self.package}.{cmd_name}")).values()
        return next(c for c in there if isinstance(c, click.Command) and c.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.lines.items()))
