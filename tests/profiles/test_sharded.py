"""Profiles of tensor-parallel servers that a study compares and plans do not choose among."""

from __future__ import annotations

import pytest

from qsim.profiles.lookup import (
    find_profiles,
    list_profiles,
    list_sharded,
    load_profile,
    stated_errors,
)
from qsim.profiles.schema import Profile
from tests.cli.helpers import qsim

ENTRIES = list_sharded()


def test_they_are_found_by_id_and_chosen_by_nothing_else() -> None:
    assert len(ENTRIES) > 100
    assert not {e.id for e in ENTRIES} & {e.id for e in list_profiles()}
    ids = {e.id for e in find_profiles("llama-3.1-8b", ("h200_sxm",))}
    assert "h200_sxm/llama-3.1-8b/bf16/tp2" not in ids
    profile = load_profile("h200_sxm/llama-3.1-8b/bf16/tp2")
    assert profile.id == "h200_sxm/llama-3.1-8b/bf16/tp2"
    assert profile.transferred
    assert {e.id for e in list_sharded("llama-3.1-8b")} < {e.id for e in ENTRIES}


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "qwen2.5-14b", "qwen2.5-32b"])
def test_each_is_whole_and_faster_than_fewer_gpus(model: str) -> None:
    for entry in list_sharded(model):
        profile = Profile.load(entry.path)
        assert profile.id == entry.id
        assert profile.identity.tensor_parallel_size in (2, 4)
        assert set(stated_errors(profile)) == {"mean", "median", "p99", "energy"}
        half = profile.id.replace("/tp4", "/tp2") if profile.id.endswith("/tp4") else (
            profile.id.removesuffix("/tp2"))  # fmt: skip
        known = {e.id for e in (*ENTRIES, *list_profiles())}
        if half in known:
            fewer = load_profile(half)
            assert profile.memory.num_gpu_blocks > fewer.memory.num_gpu_blocks


def test_the_list_of_them() -> None:
    result = qsim("profiles", "list", "--sharded")
    assert result.exit_code == 0
    assert "h200_sxm/llama-3.1-8b/bf16/tp4" in result.stdout
    assert "h200_sxm/llama-3.1-8b/bf16 " not in result.stdout
    path = qsim("profiles", "path", "a100_sxm/qwen2.5-14b/awq-w4a16/tp2").stdout.strip()
    assert path.endswith("sharded/a100_sxm/qwen2.5-14b/awq-w4a16/tp2.json")
