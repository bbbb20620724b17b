"""What is recommended can be started: positions, KV cache and activations fit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qsim.catalog.gpus import GIB, GPUS
from qsim.errors import ScenarioError
from qsim.profiles.lookup import list_profiles, load_profile
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.scheduler.server_memory import kv_room, memory_notes, most_positions
from tests.cli.helpers import fails, qsim, write
from tests.make_profile import make_profile

LLAMA = "h200_sxm/llama-3.1-8b/fp8-w8a8"
LONG = "arrival_s,prompt_tokens,output_tokens\n0,200000,10\n1,300,10\n"
IDS = [e.id for e in list_profiles()]


@pytest.fixture(scope="module")
def llama() -> Profile:
    return load_profile(LLAMA)


@pytest.mark.parametrize("command", ["plan", "simulate", "tune", "sweep"])
def test_a_length_beyond_the_model_is_refused(tmp_path: Path, command: str) -> None:
    trace = write(tmp_path / "long.csv", LONG)
    words = {
        "plan": ("--model", "llama-3.1-8b", "--method", "fp8-w8a8", "--slo", "ttft:p99:60000"),
        "simulate": ("--profile", LLAMA),
        "tune": ("--profile", LLAMA, "--trials", 2),
        "sweep": ("--profile", LLAMA, "--grid", "replicas=1"),
    }[command]
    result = qsim(command, trace, *words, "--max-model-len", 262144)
    assert "max_model_len is 262144; must be <= 131072, the positions" in result.stderr
    if command != "sweep":  # whose rows have their errors
        assert result.exit_code in (2, 3)
        assert "vllm serve" not in result.stdout


def test_the_advice_is_not_what_cannot_be_done(tmp_path: Path) -> None:
    trace = write(tmp_path / "long.csv", LONG)
    run = ("simulate", trace, "--profile", LLAMA)
    result = qsim(*run)
    fails(result, 2, "model and KV cache hold at most 131072 tokens; give --too-long reject")
    assert "raise" not in result.stderr
    write(trace, LONG.replace("200000", "100000"))
    fails(qsim(*run, "--max-model-len", "8K"), 2, "raise --max-model-len, to at most 131072, or")
    write(trace, LONG.replace("1,300,10\n", ""))
    alone = qsim(*run, "--too-long", "reject")
    fails(alone, 2, "no request is left to simulate")
    assert "give --too-long" not in alone.stderr


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 32768}, 32768),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"seq_length": 8192}, 8192),
        ({"max_position_embeddings": 8192, "n_positions": 4096}, 4096),
        # Llama 3.1 says its scaled positions, Qwen2.5 with YaRN its original ones
        ({"max_position_embeddings": 131072,
          "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0,
          "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "yarn",
          "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2}}, 8192),
        ({"max_position_embeddings": 131072,
          "rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, 131072),
        ({}, None),
    ],
)  # fmt: skip
def test_positions_as_vllm_counts_them(config: dict[str, Any], positions: int | None) -> None:
    assert most_positions(config) == positions


@pytest.mark.parametrize("id_", IDS)
def test_every_shipped_profile_fits_its_gpu(id_: str) -> None:
    profile = load_profile(id_)
    config = EngineOptions().resolve(profile)
    memory = profile.memory
    block_bytes = memory.kv_bytes_per_token * memory.block_size
    total = GPUS[profile.identity.gpu].memory_bytes
    assert config.num_gpu_blocks == memory.num_gpu_blocks
    assert memory.weight_bytes + config.num_gpu_blocks * block_bytes < 0.93 * total
    assert config.max_model_len < config.num_gpu_blocks * memory.block_size
    cut = config.max_model_len < profile.engine.max_model_len
    notes = memory_notes(profile, config)
    assert cut == any(f"max_model_len is {config.max_model_len:,} and not" in n for n in notes)
    # more tokens in a step leave fewer blocks, never more
    rooms = [kv_room(profile, 1024 * 2**k, 1024) for k in range(8)]
    assert all(a.blocks >= b.blocks for a, b in pairwise(rooms))
    for room in rooms:
        assert room.most is not None
        kv_bytes = room.most * block_bytes
        assert kv_bytes == 0 or memory.weight_bytes + kv_bytes + room.extra_bytes < total


def test_nineteen_profiles_say_that_their_context_is_cut() -> None:
    profiles = [load_profile(i) for i in IDS]
    cut = [p for p in profiles if memory_notes(p, EngineOptions().resolve(p))]
    assert len(cut) == 19
    assert {p.identity.model for p in cut} == {"llama-3.1-70b"}


def test_the_notes_are_shown(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.csv", "arrival_s,prompt_tokens,output_tokens\n0,300,10\n")
    small = "h100_sxm/llama-3.1-70b/int8-w8a8"
    note = "max_model_len is 8,288 and not 131,072: the KV cache of 519 blocks holds no longer"
    assert note in qsim("simulate", trace, "--profile", small).stderr
    plan = qsim("plan", trace, "--profile", small, "--slo", "ttft:mean:9000", "--no-headroom")
    assert note in " ".join(plan.stdout.split())
    assert "--max-model-len 8288" in plan.stdout
    told = qsim("simulate", trace, "--profile", LLAMA, "--max-num-batched-tokens", "64K")
    blocks = load_profile(LLAMA).memory.num_gpu_blocks
    assert f"instead of {blocks:,} (estimated)" in told.stderr


def test_a_larger_budget_takes_its_activations_from_the_cache(llama: Profile) -> None:
    options = EngineOptions(max_num_batched_tokens=65536)
    whole = llama.memory.num_gpu_blocks
    blocks = options.resolve(llama).num_gpu_blocks
    # gate and up, their product, and three hidden states of 57,344 more tokens, in bf16
    least_bytes = (65536 - 8192) * 2 * 3 * (14336 + 4096)
    fewer_bytes = (whole - blocks) * 16 * 131072
    assert least_bytes <= fewer_bytes < 4.1 * least_bytes
    assert EngineOptions(max_num_batched_tokens=2048).resolve(llama).num_gpu_blocks == whole
    # more seats need more logits: 4 bytes for each of 128,256
    seats = EngineOptions(max_num_seqs=4096).resolve(llama).num_gpu_blocks
    assert whole - seats == -(-3072 * 128256 * 4 // (16 * 131072))
    # what is told counts: vLLM then asks for no profile run
    fixed = EngineOptions(max_num_batched_tokens=65536, num_gpu_blocks_override=50_000)
    assert fixed.resolve(llama).num_gpu_blocks == 50_000
    with pytest.raises(ScenarioError, match=r"32768; its activations need about .* lower it"):
        EngineOptions(max_num_batched_tokens=32768).resolve(
            load_profile("h100_sxm/llama-3.1-70b/fp8-w8a8")
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_cache_memory_bytes": 200 * GIB},
         r"kv_cache_memory_bytes is 214748364800; must be <= \d+ \(1[23]\d\.\d GiB\): the weights"),
        ({"num_gpu_blocks_override": 70_000}, "num_gpu_blocks_override is 70000; must be <= 6"),
    ],
)  # fmt: skip
def test_a_cache_that_the_gpu_cannot_hold(
    llama: Profile, options: dict[str, int], words: str
) -> None:
    with pytest.raises(ScenarioError, match=words):
        EngineOptions(**options).resolve(llama)
    half = {k: v // 2 for k, v in options.items()}
    assert EngineOptions(**half).resolve(llama).num_gpu_blocks > 30_000


def test_a_gpu_that_is_not_known_and_one_with_less_memory(llama: Profile) -> None:
    much = EngineOptions(num_gpu_blocks_override=70_000)
    other = replace(llama, identity=replace(llama.identity, gpu="b200"))
    assert much.resolve(other).num_gpu_blocks == 70_000
    told = {"gpu_memory_utilization": 0.5, "gpu_memory_bytes": 40 * GIB}
    small = replace(llama.memory, num_gpu_blocks=4000, measured_with=told)
    with pytest.raises(ScenarioError, match="num_gpu_blocks_override is 70000; must be <= 14240"):
        much.resolve(replace(llama, memory=small))
    # of a profile without an architecture nothing is known
    large = EngineOptions(max_num_batched_tokens=65536)
    assert large.resolve(make_profile()).num_gpu_blocks == 4096
