"""docs/calibration.md says what the commands do."""

from __future__ import annotations

import re
from pathlib import Path

import click

from qsim.cli.calibrate.run import run
from qsim.cli.calibrate.table import table
from qsim.cli.methods import methods
from tests.cli.helpers import qsim

DOCS = Path(__file__).parents[2] / "docs"


def test_the_catalogue_is_what_the_command_prints() -> None:
    text = (DOCS / "calibration.md").read_text(encoding="utf-8")
    printed = qsim("methods", "--model", "llama-3.1-8b").stdout
    assert "\n".join(f"    {line}" for line in printed.splitlines()) in text


def test_every_option_is_documented() -> None:
    for page, commands in (("calibration.md", [run]), ("cli.md", [methods, table])):
        text = (DOCS / page).read_text(encoding="utf-8")
        for command in commands:
            for param in command.params:
                if isinstance(param, click.Option):
                    for name in param.opts:
                        assert re.search(rf"{name}(?![-\w])", text), f"{page}: {name}"


def test_every_load_is_explained() -> None:
    from tests.calibrate.measure.test_workload import job, planned

    text = (DOCS / "calibration.md").read_text(encoding="utf-8")
    for phase in planned(job()):
        named = f"`{phase.label}`" in text
        assert named or (phase.label in ("over40", "over120") and "`over8` ... `over250`" in text)
