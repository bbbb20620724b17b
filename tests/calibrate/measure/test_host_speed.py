"""The speed of a host: what is measured, written and compared."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qsim.calibrate.measure.host_speed import HostSpeed, host_speed, read_host_speed
from qsim.errors import CalibrationError
from tests.cli.helpers import qsim

ONE = HostSpeed(0.2, 0.19, 0.21, 8, "a CPU, 4 CPUs", "3.11")


def ticks(every_s: float) -> Any:
    """A clock on which every look takes so long."""
    return (i * every_s for i in itertools.count()).__next__


def test_the_clock_is_that_of_rounds() -> None:
    found = host_speed(0.0, ticks(0.01))
    # two looks a round lie one tick apart: 10 ms for 20 steps
    assert found.step_ms == found.low_ms == found.high_ms == pytest.approx(0.5)
    assert found.rounds == 8
    assert not found.noisy
    assert host_speed(1.0, ticks(0.01)).rounds > 20
    assert found.cpu
    assert found.python.startswith("3.")


def test_the_miniature_goes_on_for_ever() -> None:
    assert host_speed(4.0, ticks(0.01)).rounds > 100  # requests end, and others begin


def test_a_host_that_is_used_is_told() -> None:
    assert replace(ONE, high_ms=0.3).noisy
    assert not ONE.noisy


def test_it_is_read_from_a_file_and_from_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    path.write_text(json.dumps(ONE.to_dict()))
    assert read_host_speed(path) == ONE
    server = tmp_path / "server.json"
    server.write_text(json.dumps({"gpu": "h200_sxm", "host_speed": ONE.to_dict()}))
    assert read_host_speed(tmp_path) == ONE
    server.write_text(json.dumps({"gpu": "h200_sxm"}))
    with pytest.raises(CalibrationError, match="does not hold its host's speed"):
        read_host_speed(tmp_path)


WRONG = [
    ("not json", "cannot be read as JSON"),
    ("[]", "no qsim-host/1"),
    ("{}", "no qsim-host/1"),
    (json.dumps(ONE.to_dict() | {"step_ms": 0}), "step_ms is 0"),
    (json.dumps(ONE.to_dict() | {"low_ms": True}), "low_ms is True"),
    (json.dumps(ONE.to_dict() | {"high_ms": "x"}), "high_ms is 'x'"),
    (json.dumps(ONE.to_dict() | {"high_ms": float("nan")}), "high_ms is nan"),
    (json.dumps(ONE.to_dict() | {"step_ms": 10**400}), "step_ms is a whole number of more than"),
    (json.dumps(ONE.to_dict() | {"step_ms": 5e-324}), "step_ms is 5e-324; must be .* >= 1e-06"),
    (json.dumps(ONE.to_dict() | {"rounds": -3}), "rounds is -3; must be a whole number >= 1"),
    (json.dumps(ONE.to_dict() | {"cpu": "a\x1b[31m"}), "cpu is .* without control characters"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_no_host_speed_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "host.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        read_host_speed(path)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    done = qsim("calibrate", "host", "--seconds", 0.1, "--out", out)
    assert done.exit_code == 0, done.output
    here = read_host_speed(out)
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(replace(here, step_ms=here.step_ms * 1e4).to_dict()))
    done = qsim("calibrate", "host", "--seconds", 0.1, "--against", slow)
    assert done.exit_code == 0, done.output
    assert "this host / that one: x0." in done.stdout
    assert "is not known" in done.stdout
    done = qsim("calibrate", "host", "--against", tmp_path / "none.json")
    assert done.exit_code == 2
