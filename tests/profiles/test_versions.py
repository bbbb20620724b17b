"""Profiles of several versions of vLLM: which one an id means, and how others are carried."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import qsim
from qsim.calibrate.transfer.versions import learn, pairs_of
from qsim.catalog.versions import default_limits
from qsim.documents import read_json
from qsim.edge import build
from qsim.errors import CalibrationError, ProfileError
from qsim.optimize.plan.profile_choice import choose_profiles
from qsim.profiles.carry import FILE, Change, carry, changes
from qsim.profiles.lookup import (
    carry_note,
    list_profiles,
    load_profile,
    transfer_note,
    version_of,
)
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces import Trace

FP8 = "h200_sxm/llama-3.1-8b/fp8-w8a8"
#: not measured under 0.33
OLDER = "h200_sxm/qwen2.5-14b/bf16"


def test_an_id_means_the_newest_that_was_measured() -> None:
    assert load_profile(FP8).identity.vllm_version.startswith("0.33")
    assert load_profile(OLDER).identity.vllm_version.startswith("0.24")
    newest = {e.id: e.version for e in list_profiles()}
    assert newest[FP8] == "0.33"
    assert newest[OLDER] == "0.24"
    both = [e.version for e in list_profiles(all_versions=True) if e.id == FP8]
    assert both == ["0.24", "0.33"]


def test_a_version_chooses() -> None:
    old = load_profile(FP8, "0.24")
    assert old == load_profile(f"{FP8}@0.24") == load_profile(FP8, "0.24.0")
    assert old.identity.vllm_version == "0.24.0"
    assert old.id == load_profile(FP8).id == FP8
    # between two that were measured the older one runs, by the rules asked for
    assert load_profile(FP8, "0.30") == old
    assert load_profile(FP8, "0.40") == load_profile(FP8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{OLDER}@0.33", "was measured under vLLM 0.24"),
        (f"{OLDER}@new", "vllm_version is 'new'"),
        (f"{OLDER}@0.20", "must be 0.24 or newer"),
        ("h200_sxm/llama-3.1-8b/int9@0.33", "did you mean"),
    ],
)
def test_what_there_is_not(name: str, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        load_profile(name)


def test_a_profile_is_carried_by_measured_factors_and_says_so() -> None:
    old, new = load_profile(OLDER), load_profile(OLDER, "0.33")
    (change,) = (c for c in changes() if (c.before, c.after) == ("0.24", "0.33"))
    assert new.identity.vllm_version == "0.33"
    assert new.carried is not None
    assert new.carried.vllm_version == "0.24.0"
    f = change.decode
    assert new.latency.decode.base_ms == [pytest.approx(f * x) for x in old.latency.decode.base_ms]
    slopes = zip(
        new.latency.decode.ms_per_context_token,
        old.latency.decode.ms_per_context_token,
        strict=True,
    )
    for a, b in slopes:
        assert a == [pytest.approx(f * x) for x in b]
    assert new.latency.eager.base_ms[0] == pytest.approx(
        change.eager * old.latency.eager.base_ms[0]
    )
    assert new.host.launch_decode_ms[0] == pytest.approx(
        change.launch_decode * old.host.launch_decode_ms[0]
    )
    lost = (old.memory.num_gpu_blocks - new.memory.num_gpu_blocks) * 16
    assert lost * old.memory.kv_bytes_per_token / 2**30 == pytest.approx(-change.kv_gib, abs=0.01)
    for key in ("worst_mean", "worst_energy"):
        assert new.fit_error[key] > old.fit_error[key]
    note = transfer_note(new)
    assert note is not None
    assert "was measured under vLLM 0.24.0 and carried to 0.33" in note
    assert carry_note(old) is None
    # what is carried can be kept, and read again
    assert Profile.from_dict(json.loads(json.dumps(new.to_dict()))) == new
    assert version_of(new, "0.33") == new


def test_what_nothing_measured_tells_is_not_carried() -> None:
    marlin = load_profile("h200_sxm/llama-3.1-8b/nvfp4-w4a16", "0.24")
    assert carry(marlin, "0.33") is None  # another kernel since
    assert version_of(marlin, "0.33") is marlin
    assert carry(load_profile("a100_sxm/llama-3.1-8b/fp8-block"), "0.33") is None  # another GPU
    assert carry(load_profile(OLDER), "0.30") is None  # a version that nobody compared
    assert carry(replace(load_profile(OLDER), identity=replace(
        load_profile(OLDER).identity, vllm_version="")), "0.33") is None  # fmt: skip


def test_candidates_are_of_one_version() -> None:
    found = choose_profiles("qwen2.5-14b", ["h200_sxm"], ["fp8-w8a8", "bf16"], [])
    assert [c.profile.identity.vllm_version[:4] for c in found] == ["0.33", "0.33"]
    found = choose_profiles("qwen2.5-14b", ["h200_sxm"], ["fp8-w8a8", "bf16"], [], "0.24")
    assert [c.profile.identity.vllm_version[:4] for c in found] == ["0.24", "0.24"]
    assert all(c.profile.carried is None for c in found)


def test_a_simulation_takes_the_version_s_profile_and_says_what_was_carried() -> None:
    trace = Trace([0.0, 0.5], [500, 600], [50, 60])
    old = qsim.simulate(trace, FP8, options=EngineOptions(vllm_version="0.24"))
    new = qsim.simulate(trace, FP8)
    assert old.summary()["mean_e2el_ms"] != new.summary()["mean_e2el_ms"]
    carried = qsim.simulate(trace, OLDER, options=EngineOptions(vllm_version="0.33"))
    assert any("carried to 0.33" in note for note in carried.notes)
    assert not any("carried" in note for note in new.notes)


def test_factors_are_learnt_from_pairs(tmp_path: Path) -> None:
    ids = ("bf16", "fp8-w8a8", "awq-w4a16")
    old = [load_profile(f"h200_sxm/llama-3.1-8b/{m}", "0.24") for m in ids]
    new = [_slower(p, f) for p, f in zip(old, (1.0, 1.02, 1.04), strict=True)]
    change = learn(pairs_of([*old, *new]))
    assert (change.before, change.after, change.gpu) == ("0.24", "0.33", "h200_sxm")
    assert change.decode == pytest.approx(1.02)
    assert change.eager == change.piecewise == 1.0
    assert change.result_ms == pytest.approx(0.1)
    # 1.00 by the others' 1.03, 1.04 by their 1.01: 3%
    assert change.error_percent["decode"] == pytest.approx(3.0, abs=0.1)
    with pytest.raises(CalibrationError, match="given under one version only"):
        pairs_of([*old, *new[1:]])
    with pytest.raises(CalibrationError, match="those of two versions"):
        pairs_of(old)
    with pytest.raises(CalibrationError, match="given twice"):
        pairs_of([*old, *old, *new])


def _slower(p: Profile, f: float) -> Profile:
    d = p.latency.decode
    slopes = [[f * x for x in row] for row in d.ms_per_context_token]
    decode = replace(d, base_ms=[f * x for x in d.base_ms], ms_per_context_token=slopes)
    host = p.as_measured().host
    return replace(
        p.as_measured(),
        identity=replace(p.identity, vllm_version="0.33.0"),
        latency=replace(p.latency, decode=decode),
        host=replace(host, result_ms=host.result_ms + 0.1),
    )


def test_the_shipped_factors_are_whole() -> None:
    data = read_json(FILE, ProfileError)
    assert tuple(build(Change, c, FILE.name, ProfileError) for c in data["changes"]) == changes()
    for c in changes():
        assert 0.8 < c.decode < 1.25
        assert c.kv_gib < 0
        assert {"decode", "prefill", "power", "kv_tokens", "host"} <= set(c.error_percent)


@pytest.mark.parametrize(
    ("gpu", "gib", "limits"),
    [
        ("h200_sxm", 139.8, (8192, 1024)),
        ("h100_sxm", 79.1, (8192, 1024)),
        ("a100_sxm", 79.1, (2048, 256)),  # by its name, whatever its memory
        ("a100_sxm", 39.4, (2048, 256)),
        ("l40s", 44.4, (2048, 256)),
    ],
)
def test_defaults_by_gpu(gpu: str, gib: float, limits: tuple[int, int]) -> None:
    """Those of ``get_batch_defaults`` in vLLM's arg_utils.py for its API server."""
    assert default_limits(gpu, int(gib * 2**30)) == limits


def test_a_transferred_profile_has_the_defaults_of_its_gpu() -> None:
    for entry in list_profiles():
        if entry.gpu != "h200_sxm":
            engine = load_profile(entry.id).engine
            want = (2048, 256) if entry.gpu == "a100_sxm" else (8192, 1024)
            assert (engine.max_num_batched_tokens, engine.max_num_seqs) == want, entry.id
