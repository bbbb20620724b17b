"""The shipped profiles: whole, with a stated error, and true to their recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsim.calibrate.recording import read_recording
from qsim.calibrate.validate import compare
from qsim.profile import Profile
from qsim.profiles import list_profiles, load_profile

OWN = Path(__file__).parents[2] / "recordings"
OTHERS = Path(__file__).parents[3] / "shared" / "recordings"
RECORDED = {
    "llama-3.1-8b--bf16": "h200_sxm/llama-3.1-8b/bf16",
    "llama-3.1-8b--fp8-w8a8-gpu-spans": "h200_sxm/llama-3.1-8b/fp8-w8a8",
    "llama-3.1-8b--awq-w4a16": "h200_sxm/llama-3.1-8b/awq-w4a16",
    "qwen2.5-14b--bf16-gpu-spans": "h200_sxm/qwen2.5-14b/bf16",
}
METHODS = ("bf16", "fp8-w8a8", "fp8-block", "int8-w8a8", "gptq-w8a16", "w4a8-fp8", "nvfp4-w4a16")


def test_what_is_shipped() -> None:
    want = {f"h200_sxm/llama-3.1-8b/{m}" for m in METHODS} | set(RECORDED.values())
    assert {p.id for p in list_profiles()} == want


@pytest.mark.parametrize("profile_id", sorted(p.id for p in list_profiles()))
def test_states_its_error(profile_id: str) -> None:
    profile = load_profile(profile_id)
    assert profile.id == profile_id
    assert Profile.from_dict(profile.to_dict()) == profile
    stated = profile.fit_error
    labels = set(stated["phases"])
    assert labels >= {"mixhi", "val_conv", "val_code"} or labels == {
        "val_moderate",
        "val_overload",
    }
    named = {r for by_recording in stated["phases"].values() for r in by_recording}
    assert named == set(profile.identity.recordings)
    assert stated["worst_mean"] < 6.0
    assert stated["worst_energy"] < 5.0
    assert stated["worst_p99"] < 15.0
    assert profile.engine.max_num_seqs == 1024
    assert profile.engine.max_num_batched_tokens == 8192
    assert profile.memory.kv_bytes_per_token in (131072, 196608)


def check(path: Path, profile_id: str, labels: tuple[str, ...], p90_percent: float) -> None:
    recording = read_recording(path)
    profile = load_profile(profile_id)
    for label in labels:
        c = compare(recording, label, profile, held_out=False)
        for metric in ("ttft_ms", "tpot_ms", "e2el_ms"):
            assert abs(c.error_percent(f"mean_{metric}")) < 4.0, (label, metric)
            assert abs(c.error_percent(f"p90_{metric}")) < p90_percent, (label, metric)
            assert abs(c.error_percent(f"p99_{metric}")) < 15.0, (label, metric)
        assert abs(c.error_percent("energy_j")) < 4.0, label


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_replays_its_recording(name: str) -> None:
    if not (OTHERS / name).is_dir():
        pytest.skip(f"needs the developers' recordings in {OTHERS}")
    check(OTHERS / name, RECORDED[name], ("mixhi", "val_conv", "val_code"), 6.0)


@pytest.mark.parametrize("method", METHODS)
def test_replays_the_recording_of_its_calibration(method: str) -> None:
    name = f"llama-3.1-8b--{method}--2026-11-20"
    profile_id = f"h200_sxm/llama-3.1-8b/{method}"
    check(OWN / name, profile_id, ("val_moderate", "val_overload"), 8.0)
