"""``qsim calibrate``: measure servers, fit profiles, check them against recordings."""

from __future__ import annotations

from typing import ClassVar

import click

from qsim.cli._command import TableGroup

__all__ = ["group"]


class _Group(TableGroup):
    """The commands by name, with the line for the help page."""

    package = "qsim.cli.calibrate"
    lines: ClassVar = {
        "run": "Measure quantization methods on real vLLM servers, and fit profiles.",
        "adapt": "Adapt a profile to the machine of a vLLM server, in a minute and a half.",
        "host": "Time what vLLM's Python host thread does: seconds, without a GPU.",
        "agreement": "Compare the scheduler's batches with recorded ones, step by step.",
        "quality": "Measure quality with lm-eval on vLLM servers; store it in profiles.",
        "table": "Print what recordings show: step times, energy, KV capacity.",
        "spread": "Learn from recordings how machines of one type differ.",
        "versions": "Compare profiles of the same servers under two versions of vLLM.",
        "transfer": "Make profiles of GPUs and models that were not measured.",
        "fit": "Fit profiles from recordings.",
        "validate": "Replay recorded loads, and compare with what was measured.",
    }


@click.group("calibrate", cls=_Group)
def group() -> None:
    """Measure a server, fit a profile of it, and check how well the profile predicts."""
