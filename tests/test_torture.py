"""A few of the kills of ``make torture``, and full disks where one can be mounted."""

from __future__ import annotations

import sys

import pytest

from tests.torture import full_disks, torture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc"),
]


@pytest.mark.parametrize("name", ["tune", "sweep", "plan", "schedule", "simulate", "calibrate"])
def test_killed_commands_go_on_as_if_undisturbed(name: str) -> None:
    assert sum(torture(2, seed=5, only=(name,)).values()) == 2


def test_a_full_disk_does_not_lose_an_answer() -> None:
    if not full_disks():
        pytest.skip("no tmpfs can be mounted here")
