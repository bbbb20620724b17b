from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from qsim.errors import InfeasibleError
from qsim.optimize.deploy.vllm import checkpoint, serve_command
from qsim.optimize.plan.candidate import Candidate
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.sim.scheduler.config import EngineConfig, EngineOptions

OUTCOME = FleetOutcome(3, {}, (), None, {})


def candidate(**changes: Any) -> Candidate:
    base = Candidate(
        "h200_sxm/llama-3.1-8b/fp8-w8a8", "h200_sxm", "llama-3.1-8b", "fp8-w8a8", 1,
        engine=EngineConfig(max_model_len=16384, max_num_seqs=256), feasible=True, outcome=OUTCOME,
    )  # fmt: skip
    return replace(base, **changes)


def options_of(command: str) -> dict[str, str]:
    words = shlex.split(command)
    assert words[:2] == ["vllm", "serve"]
    pairs = {}
    for name, value in zip(words, [*words[1:], ""], strict=True):
        if name.startswith("--"):
            pairs[name] = "" if value.startswith("--") else value
    return pairs


def test_every_setting_that_was_simulated_is_told() -> None:
    command = serve_command(candidate())
    assert command.startswith("vllm serve RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic ")
    assert options_of(command) == {
        "--tensor-parallel-size": "1",
        "--max-model-len": "16384",
        "--max-num-seqs": "256",
        "--max-num-batched-tokens": "8192",
        "--enable-prefix-caching": "",
        "--async-scheduling": "",
        "--port": "8000",
    }


def test_what_was_switched_off_is_switched_off() -> None:
    engine = EngineConfig(
        enable_prefix_caching=False,
        async_scheduling=False,
        long_prefill_token_threshold=2048,
        scheduling_policy="priority",
    )
    options = EngineOptions(kv_cache_memory_bytes=1 << 34, num_gpu_blocks_override=999)
    told = options_of(serve_command(candidate(engine=engine, options=options), port=8003))
    assert "--no-enable-prefix-caching" in told
    assert "--no-async-scheduling" in told
    assert told["--long-prefill-token-threshold"] == "2048"
    assert told["--scheduling-policy"] == "priority"
    assert told["--kv-cache-memory-bytes"] == str(1 << 34)
    assert told["--num-gpu-blocks-override"] == "999"
    assert told["--port"] == "8003"


def test_the_methods_own_arguments_are_quoted() -> None:
    args = ("--quantization", "fp8", "--hf-overrides", '{"a": 1}')
    words = shlex.split(serve_command(candidate(vllm_args=args, tensor_parallel_size=2)))
    assert words[3:7] == list(args)
    assert words[words.index("--tensor-parallel-size") + 1] == "2"


def test_an_infeasible_candidate_has_no_command() -> None:
    with pytest.raises(InfeasibleError, match="too slow"):
        serve_command(candidate(feasible=False, reason="too slow"))


def test_checkpoints() -> None:
    assert checkpoint("llama-3.1-8b", "bf16") == "meta-llama/Llama-3.1-8B-Instruct"
    fp8 = checkpoint("llama-3.1-8b", "fp8-w8a8")
    assert checkpoint("llama-3.1-8b", "fp8-w8a8+kv-fp8") == fp8
    assert checkpoint("toy-1b", "bf16") == "path/to/toy-1b-bf16"
