"""Factors of a machine, applied to a profile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from qsim.errors import ProfileError
from qsim.profiles.factors import FACTORS, Factors, apply, scheduler_ms
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Adapted, Profile
from qsim.profiles.spread import FILE, shipped_spread

PROFILE = load_profile("h200_sxm/llama-3.1-8b/fp8-w8a8", "0.24")

#: by factor, what it changes; everything else stays
PARTS = {
    "launch": ("launch_decode_ms", "launch_piecewise_ms", "launch_eager_ms"),
    "scheduler": ("schedule_ms", "update_ms", "result_ms", "turn_ms", "wake_ms"),
    "front_end": ("frontend",),
    "memory": ("decode", "ms_per_decode_context_token"),
    "compute": ("piecewise", "eager"),
    "limit": ("throttle",),
    "idle_power": ("idle_w",),
    "busy_power": ("busy_w",),
    "work_power": ("j_per",),
}


def leaves(data: object, path: str = "") -> dict[str, float]:
    if isinstance(data, dict):
        return {k: v for key, x in data.items() for k, v in leaves(x, f"{path}/{key}").items()}
    if isinstance(data, list):
        return {k: v for i, x in enumerate(data) for k, v in leaves(x, f"{path}/{i}").items()}
    return {path: data} if isinstance(data, int | float) else {}


def test_factors_of_one_change_nothing() -> None:
    assert apply(PROFILE, Factors()) == PROFILE.__class__(
        **{**vars(PROFILE), "measured_host": None}
    )


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_changes_its_own_part(name: str) -> None:
    before = leaves(asdict(PROFILE))
    after = leaves(asdict(apply(PROFILE, Factors(**{name: 2.0}))))
    changed = {k for k in before if after.get(k) != before[k]}
    assert changed
    for path in changed:
        assert any(part in path for part in PARTS[name]), path
        assert after[path] == pytest.approx(2 * before[path])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e4])
def test_a_factor_must_be_a_number(value: float) -> None:
    with pytest.raises(ProfileError, match="memory is"):
        apply(PROFILE, Factors(memory=value))


def test_an_adapted_profile_is_kept_whole(tmp_path: Path) -> None:
    from dataclasses import replace

    factors = {n: [1.1, 1.0, 1.2] for n in FACTORS}
    adapted = replace(
        apply(PROFILE, Factors(memory=1.1)),
        adapted=Adapted(PROFILE.id, list(PROFILE.identity.recordings), ["a load"], factors),
    )
    adapted.save(tmp_path / "a.json")
    assert Profile.load(tmp_path / "a.json") == adapted


def test_the_shipped_spread_is_sound() -> None:
    spread = shipped_spread()
    assert FILE.is_file()
    assert set(spread.mean) == set(spread.sd) == set(FACTORS)
    prior = spread.prior(PROFILE)
    assert np.all(np.linalg.eigvalsh(prior.covariance) > 0)
    assert len(spread.machines) >= 8
    draws = np.exp(prior.draw(1000, np.random.default_rng(0)))
    assert 0.8 < np.median(draws[:, FACTORS.index("memory")]) < 1.2


def test_of_a_slow_host_less_slowness_is_expected() -> None:
    spread = shipped_spread()
    slow = apply(PROFILE, Factors(launch=2.0, scheduler=2.0))
    at = FACTORS.index("scheduler")
    assert scheduler_ms(slow.host) == pytest.approx(2 * scheduler_ms(PROFILE.host))
    off = spread.prior(PROFILE).mean[at] - spread.prior(slow).mean[at]
    assert off == pytest.approx(np.log(2))
