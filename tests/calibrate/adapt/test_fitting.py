"""Factors from a load: what a simulated machine was given is found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsim import load_trace
from qsim.calibrate.adapt.adapting import AS_IS, adapt
from qsim.calibrate.adapt.comparing import compare_load
from qsim.calibrate.adapt.fitting import FactorFit, fit_factors
from qsim.calibrate.adapt.load import Load, replay
from qsim.calibrate.adapt.spread import loads_of
from qsim.calibrate.recordings.read import read_recording
from qsim.errors import CalibrationError
from qsim.profiles.factors import FACTORS, Factors, apply
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Prior, shipped_spread
from qsim.report.text.compare import compare_text
from qsim.sim.scheduler.config import EngineOptions

RECORDINGS = Path(__file__).parents[3] / "recordings"
PROFILE = load_profile("h200_sxm/llama-3.1-8b/fp8-w8a8", "0.24")
BROAD = Prior(np.zeros(9), np.diag(np.array([0.5, 0.5, 0.5, 0.05, 0.05, 0.5, 0.02, 0.1, 0.1]) ** 2))
TRUE = Factors(launch=1.8, scheduler=1.3, front_end=1.4, memory=1.04, compute=0.97, busy_power=0.9)


def measured(factors: Factors, seconds: int = 12, energy: bool = True) -> Load:
    """A load that a machine with these factors answered."""
    trace = load_trace(f"azure-conv-2023:duration={seconds},rate=9,seed=3")
    load = Load("load", trace, np.ones(len(trace)), np.ones(len(trace)), None, EngineOptions())
    seen = replay(load, apply(PROFILE, factors))
    return replace(load, ttft_ms=seen.ttft_ms, e2el_ms=seen.e2el_ms,
                   energy_j=seen.energy_j if energy else None)  # fmt: skip


def test_factors_are_found_again() -> None:
    fit = fit_factors([measured(TRUE)], PROFILE, BROAD)
    found = fit.factors
    assert found.memory == pytest.approx(TRUE.memory, rel=0.015)
    assert found.compute == pytest.approx(TRUE.compute, rel=0.04)
    assert found.launch > 1.1
    for name, (value, low, high) in fit.intervals().items():
        assert low < value < high
        assert low < getattr(TRUE, name) < high, name


def test_what_the_load_does_not_tell_stays_with_the_prior() -> None:
    fit = fit_factors([measured(TRUE, energy=False)], PROFILE, BROAD)
    for name in ("idle_power",):
        value, low, high = fit.intervals()[name]
        assert value == pytest.approx(1.0, abs=0.01)
        assert np.log(high / low) == pytest.approx(2 * 1.645 * 0.02, rel=0.1)


def test_too_few_requests_are_refused() -> None:
    load = measured(Factors())
    few = replace(
        load, trace=load.trace.take(np.arange(5)), ttft_ms=load.ttft_ms[:5],
        e2el_ms=load.e2el_ms[:5],
    )  # fmt: skip
    with pytest.raises(CalibrationError, match="5 requests are too few"):
        fit_factors([few], PROFILE, BROAD)


def test_an_adapted_profile_says_what_it_is_and_is_better() -> None:
    load = measured(TRUE)
    found = adapt([load], PROFILE, prior=BROAD)
    profile = found.profile
    assert isinstance(profile, Profile)
    assert profile.adapted is not None
    assert profile.adapted.loads == ["load"]
    assert set(profile.adapted.factors) == set(FACTORS)
    assert set(found.left_out) == {"load, one half", "load, other half"}
    assert profile.fit_error["worst_mean"] < 6
    before = compare_load(load, PROFILE, explain=False).mismatch_percent
    after = compare_load(load, profile, explain=False).mismatch_percent
    assert after < 1.5 < 4 < before


def several(energy: tuple[float, float, float]) -> list[Load]:
    """Three loads of one machine, the energy of each times a number."""
    loads = [measured(TRUE, seconds=s) for s in (3, 3, 4)]
    return [
        replace(x, name=f"load {i}", energy_j=(x.energy_j or 0.0) * f)
        for i, (x, f) in enumerate(zip(loads, energy, strict=True))
    ]


def test_energy_of_no_use_is_left_alone_and_said(tmp_path: Path) -> None:
    found = adapt(several((1.0, 1e-4, 1.0)), PROFILE, prior=BROAD, idle_w=0.02, notes=["a note"])
    adapted = found.profile.adapted
    assert adapted is not None
    assert adapted.notes == ["a note", *found.notes]
    assert "the energy measured is of no use: for the load 'load 1'" in found.notes[0]
    assert all(x.energy_j is None for x in found.loads)
    assert found.profile.fit_error["worst_energy"] is None
    assert found.profile.fit_error["worst_mean"] < 10
    without = adapt(
        [replace(x, energy_j=None) for x in found.loads], PROFILE, prior=BROAD, cross_validate=False
    )
    assert found.profile.power == without.profile.power
    found.profile.save(tmp_path / "a.json")
    assert Profile.load(tmp_path / "a.json") == found.profile


def test_energy_of_use_is_used() -> None:
    found = adapt(several((1.0, 1.0, 1.0)), PROFILE, prior=BROAD, idle_w=120.0)
    assert found.notes == ()
    assert 0 < found.profile.fit_error["worst_energy"] < 10
    assert found.profile.power.idle_w == pytest.approx(120.0, rel=0.05)


def test_idle_power_that_was_measured_stays_and_tells_of_what_goes_with_it() -> None:
    known = shipped_spread().prior(PROFILE)
    at, busy = FACTORS.index("idle_power"), FACTORS.index("busy_power")
    seen = known.seen("idle_power", known.mean[at] + 0.05, 1e-4)
    assert seen.mean[at] == pytest.approx(known.mean[at] + 0.05, abs=1e-4)
    assert seen.covariance[at, at] == pytest.approx(1e-8, rel=0.01)
    slope = known.covariance[busy, at] / known.covariance[at, at]
    assert seen.mean[busy] - known.mean[busy] == pytest.approx(0.05 * slope, rel=0.01)
    assert seen.covariance[busy, busy] < known.covariance[busy, busy]
    # the shipped spread expects other machines to draw less when idle: this one was measured
    load = measured(replace(TRUE, idle_power=1.06))
    watts = PROFILE.power.idle_w * 1.06
    found = adapt([load], PROFILE, idle_w=watts, cross_validate=False)
    assert found.profile.power.idle_w == pytest.approx(watts, rel=0.01)


def test_energy_of_a_short_load_weighs_what_its_edges_leave_of_it() -> None:
    # 30 J of a load of 0.1 s by a counter that moves every 0.1 s are no word on a machine
    long = measured(TRUE)
    short = replace(long, trace=long.trace.head(21), ttft_ms=long.ttft_ms[:21],
                    e2el_ms=long.e2el_ms[:21])  # fmt: skip
    at = short.trace.arrival_s * 0.02
    short = replace(short, trace=replace(short.trace, arrival_s=at, output_tokens=np.full(21, 2)))
    seen = replay(short, apply(PROFILE, TRUE))
    short = replace(short, ttft_ms=seen.ttft_ms, e2el_ms=seen.e2el_ms, energy_j=seen.energy_j * 0.7)
    power = ("idle_power", "busy_power", "work_power")
    alone = fit_factors([long], PROFILE, BROAD, only=power, of_the_load=True).factors
    both = fit_factors([long, short], PROFILE, BROAD, only=power, of_the_load=True).factors
    assert replay(long, apply(PROFILE, both)).energy_j == pytest.approx(
        replay(long, apply(PROFILE, alone)).energy_j, rel=0.01
    )


def test_loads_that_tell_nothing_of_each_other_make_no_profile() -> None:
    one, two, three = several((1.0, 1.0, 1.0))
    two = replace(two, ttft_ms=two.ttft_ms * 1e-9)
    with pytest.raises(
        CalibrationError, match=r"ttft_ms of the load 'load 1' is off by .*%.*not t"
    ):
        adapt([one, two, three], PROFILE, prior=BROAD)


def test_a_slow_host_is_named() -> None:
    load = measured(Factors(launch=2.2, scheduler=2.2, front_end=2.2), seconds=8)
    c = compare_load(load, PROFILE, prior=BROAD)
    assert c.causes[0].name == "host"
    # a load tells that the host is slow, and not always which part of it
    assert max(middle for middle, _, _ in c.causes[0].factors.values()) > 1.5
    assert c.causes[0].mismatch_percent < 0.4 * c.mismatch_percent


def test_a_machine_beyond_all_that_are_known_is_doubted() -> None:
    slow = measured(Factors(launch=7.0, scheduler=7.0, front_end=7.0))
    compared = compare_load(slow, PROFILE)
    assert any(text.startswith("launch x") for text in compared.beyond)
    assert "WARNING: no known machine is like that" in " ".join(compare_text(compared).split())
    assert compared.to_dict()["beyond_known_machines"] == list(compared.beyond)


def test_what_all_loads_say_is_the_machine_however_far_it_is() -> None:
    far = Factors(launch=7.0, scheduler=7.0, front_end=7.0)
    loads = [measured(far, seconds=s) for s in (6, 7, 8, 9)]
    found = adapt(loads, PROFILE, cross_validate=False)
    assert found.fit.factors.launch > 4.5
    adapted = found.profile.adapted
    assert adapted is not None
    assert any(text.startswith("no known machine has launch x") for text in adapted.notes)


def test_a_machine_like_those_that_are_known_is_not_doubted() -> None:
    known = shipped_spread().prior(PROFILE)
    usual = Factors.of(np.exp(known.mean))
    assert compare_load(measured(usual), PROFILE).beyond == ()


def test_another_setting_is_named() -> None:
    trace = load_trace("azure-code-2023:duration=10,rate=9,seed=1")
    small = EngineOptions(max_num_batched_tokens=2048)
    load = Load("load", trace, np.ones(len(trace)), np.ones(len(trace)), None, small)
    seen = replay(load, PROFILE)
    load = replace(load, ttft_ms=seen.ttft_ms, e2el_ms=seen.e2el_ms, options=EngineOptions())
    c = compare_load(load, PROFILE, prior=BROAD)
    assert "2,048 batched tokens" in [x.name for x in c.causes]


def error_on(others: list[Load], profile: Profile) -> float:
    """Mean mismatch, percent."""
    return float(
        np.mean([compare_load(x, profile, explain=False).mismatch_percent for x in others])
    )


def test_a_load_that_was_held_does_not_make_the_profile_worse() -> None:
    recording = read_recording(RECORDINGS / "llama-3.1-8b--fp8-w8a8--v0.24--2026-11-30")
    loads = {x.name.rpartition(" ")[2]: x for x in loads_of(recording)}
    held = loads.pop("mix80")  # this one alone was answered a sixth more slowly
    found = adapt([held], PROFILE)
    assert found.kept != "all factors"
    notes = found.profile.adapted.notes  # type: ignore[union-attr]
    assert found.kept in notes[-1]
    assert "something held the server" in notes[-2]
    before, after = (error_on(list(loads.values()), p) for p in (PROFILE, found.profile))
    assert after <= before
    # a fit to what happened in this load alone would have been far worse
    own = fit_factors([held], PROFILE, shipped_spread().prior(PROFILE), of_the_load=True)
    assert error_on(list(loads.values()), apply(PROFILE, own.factors)) > 2 * before


def test_loads_that_contradict_each_other_keep_the_profile_or_less_of_the_fit() -> None:
    loads = [
        replace(x, ttft_ms=x.ttft_ms * slow, e2el_ms=x.e2el_ms * slow, name=str(slow))
        for x, slow in zip([measured(Factors(), seconds=4)] * 2, (1.3, 1 / 1.3), strict=True)
    ]
    found = adapt(loads, PROFILE, prior=BROAD)
    assert found.errors[found.kept] <= found.errors[AS_IS]
    assert found.errors[found.kept] < found.errors["all factors"]
    if found.kept == AS_IS:
        assert found.profile.latency == PROFILE.latency
    for value, low, high in found.factors.values():
        assert low <= value <= high


def test_factors_that_are_held_are_as_expected_and_the_others_follow() -> None:
    covariance = np.eye(9) * 0.04
    covariance[0, 1] = covariance[1, 0] = 0.02
    fit = FactorFit(np.full(9, 0.3), covariance)
    held = fit.held(("launch",), BROAD)
    assert held.log_mean[0] == 0.0
    assert held.log_mean[1] == pytest.approx(0.3 - 0.5 * 0.3)
    assert held.log_mean[2:] == pytest.approx(0.3)
    assert held.log_covariance[1, 1] == pytest.approx(0.04 - 0.02**2 / 0.04)
    assert held.log_covariance[0, 0] == pytest.approx(BROAD.covariance[0, 0])
    assert fit.held((), BROAD) is fit
    assert fit.held(FACTORS, BROAD).log_mean == pytest.approx(np.zeros(9))
