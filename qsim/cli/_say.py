"""Text for people on a terminal."""

from __future__ import annotations

import click

from qsim.bounds import printable

__all__ = ["say"]


def say(text: str, nl: bool = True, err: bool = False) -> None:
    """Print text, on stderr with ``err``.

    Names in it may come from a file, so nothing in it but its line ends controls the terminal.
    """
    click.echo("\n".join(map(printable, text.split("\n"))), nl=nl, err=err)
