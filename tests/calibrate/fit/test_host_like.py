"""Putting a profile on the machine of another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.calibrate.fit.host import slower_than, with_host_like
from qsim.cli import main
from qsim.errors import CalibrationError, ProfileError
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import HostTimes, Profile
from tests.calibrate.synthetic import true_profile


def twice_as_slow(host: HostTimes) -> HostTimes:
    """All the work of the host takes twice as long, and launches of this method 1.5 times more."""
    return HostTimes(
        schedule_ms=[2 * v for v in host.schedule_ms],
        update_ms=[2 * v for v in host.update_ms],
        launch_decode_ms=[3 * v for v in host.launch_decode_ms],
        launch_piecewise_ms=[3 * v for v in host.launch_piecewise_ms],
        launch_eager_ms=[3 * v for v in host.launch_eager_ms],
        result_ms=2 * host.result_ms,
        turn_ms=2 * host.turn_ms,
        gpu_gap_ms=host.gpu_gap_ms,
        idle_sleep_ms=host.idle_sleep_ms,
        wake_ms=2 * host.wake_ms,
    )


@pytest.fixture
def slow() -> Profile:
    true = true_profile()
    return replace(
        true,
        identity=replace(true.identity, method="fp8-w8a8"),
        host=twice_as_slow(true.host),
        frontend=true.frontend.times(2.0),
    )


def test_only_what_is_the_methods_own_stays(slow: Profile) -> None:
    true = true_profile()
    assert slower_than(slow.host, true.host) == pytest.approx(2.0)
    put = with_host_like(slow, true)
    assert put.frontend == true.frontend
    assert (put.host.schedule_ms, put.host.update_ms) == (
        true.host.schedule_ms,
        true.host.update_ms,
    )
    for name in ("launch_decode_ms", "launch_piecewise_ms", "launch_eager_ms"):
        want = [1.5 * v for v in getattr(true.host, name)]
        assert getattr(put.host, name) == pytest.approx(want, abs=1e-6)
    assert (put.latency, put.power, put.fit_error) == (slow.latency, slow.power, slow.fit_error)
    assert put.measured_host is not None
    assert (put.measured_host.like, put.measured_host.slower) == (true.id, 2.0)


def test_what_was_measured_comes_back(slow: Profile, tmp_path: Path) -> None:
    put = with_host_like(slow, true_profile())
    assert put.as_measured() == slow
    assert slow.as_measured() is slow
    put.save(tmp_path / "put.json")
    again = Profile.load(tmp_path / "put.json")
    assert again == put
    assert with_host_like(again, true_profile()) == put  # from what was measured, not twice
    assert "measured_host" not in slow.to_dict()


def test_a_wrong_measured_host_is_named(slow: Profile) -> None:
    data = with_host_like(slow, true_profile()).to_dict()
    data["measured_host"]["host"]["update_ms"] = [1.0]
    with pytest.raises(ProfileError, match=r"measured_host\.host\.update_ms is \[1\.0\]"):
        Profile.from_dict(data)


def test_what_cannot_lend_its_host(slow: Profile) -> None:
    true = true_profile()
    with pytest.raises(CalibrationError, match="has the host of another profile"):
        with_host_like(true, with_host_like(slow, true))
    with pytest.raises(CalibrationError, match="has the host of another profile"):
        with_host_like(true, load_profile("h100_sxm/llama-3.1-8b/bf16"))
    two = replace(true, identity=replace(true.identity, tensor_parallel_size=2))
    with pytest.raises(CalibrationError, match=r"bf16/tp2 runs on 2 GPUs and .* on 1"):
        with_host_like(slow, two)


@pytest.mark.slow
def test_the_command(recording_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    like = "h200_sxm/llama-3.1-8b/fp8-w8a8"
    args = ["calibrate", "fit", str(recording_folder), "--out", str(out), "--no-validation"]
    done = CliRunner().invoke(main, [*args, "--host-like", f"{like}@0.24"])
    assert done.exit_code == 0, done.output
    put, reference = Profile.load(out), load_profile(like, "0.24")
    assert put.frontend == reference.frontend
    assert put.measured_host is not None
    assert f"host as that of {like}" in done.output
    shown = CliRunner().invoke(main, ["profiles", "show", str(out)]).output
    assert f"that of {like}; the one measured takes {put.measured_host.slower:.2f}" in " ".join(
        shown.split()
    )
    assert slower_than(put.as_measured().host, reference.host) == pytest.approx(
        put.measured_host.slower, abs=1e-3
    )
