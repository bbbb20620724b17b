"""The shipped profiles: whole, with a stated error, and true to their recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsim.calibrate.recording import read_recording
from qsim.calibrate.validate import compare
from qsim.profile import Profile
from qsim.profiles import list_profiles, load_profile

RECORDINGS = Path(__file__).parents[3] / "shared" / "recordings"
RECORDED = {
    "llama-3.1-8b--bf16": "h200_sxm/llama-3.1-8b/bf16",
    "llama-3.1-8b--fp8-w8a8-gpu-spans": "h200_sxm/llama-3.1-8b/fp8-w8a8",
    "llama-3.1-8b--awq-w4a16": "h200_sxm/llama-3.1-8b/awq-w4a16",
    "qwen2.5-14b--bf16-gpu-spans": "h200_sxm/qwen2.5-14b/bf16",
}


@pytest.mark.parametrize("profile_id", sorted(RECORDED.values()))
def test_states_its_error(profile_id: str) -> None:
    assert profile_id in {p.id for p in list_profiles()}
    profile = load_profile(profile_id)
    assert Profile.from_dict(profile.to_dict()) == profile
    stated = profile.fit_error
    assert set(stated["phases"]) == {"mixhi", "val_conv", "val_code"}
    assert stated["worst_mean"] < 5.0
    assert stated["worst_energy"] < 5.0
    assert stated["worst_p99"] < 15.0
    assert profile.engine.max_num_seqs == 1024
    assert profile.engine.max_num_batched_tokens == 8192
    assert profile.memory.kv_bytes_per_token in (131072, 196608)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_replays_its_recording(name: str) -> None:
    if not (RECORDINGS / name).is_dir():
        pytest.skip(f"needs the developers' recordings in {RECORDINGS}")
    recording = read_recording(RECORDINGS / name)
    profile = load_profile(RECORDED[name])
    for label in ("mixhi", "val_conv", "val_code"):
        c = compare(recording, label, profile, held_out=False)
        for metric in ("ttft_ms", "tpot_ms", "e2el_ms"):
            assert abs(c.error_percent(f"mean_{metric}")) < 4.0, (label, metric)
            assert abs(c.error_percent(f"p90_{metric}")) < 6.0, (label, metric)
            assert abs(c.error_percent(f"p99_{metric}")) < 15.0, (label, metric)
        assert abs(c.error_percent("energy_j")) < 4.0, label
