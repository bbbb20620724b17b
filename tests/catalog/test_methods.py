"""The catalogue of methods: bytes against vLLM's own, refusals, and ``qsim methods``."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.catalog.gpus import GPUS, GpuType
from qsim.catalog.methods import KV_FP8, METHODS, check, find_method, weight_bytes
from qsim.catalog.models import ARCHITECTURES, Architecture, Model, load_model
from qsim.errors import ScenarioError
from tests.cli.helpers import fails, qsim

H200, H100, A100 = GPUS["h200_sxm"], GPUS["h100_sxm"], GPUS["a100_sxm"]
SMALL = Architecture(
    hidden_size=1024,
    intermediate_size=2048,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=32000,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    qkv_bias=False,
)


def model(name: str = "llama-3.1-8b", **own: object) -> Model:
    """An architecture; with ``own`` a checkpoint whose config.json says so."""
    known = load_model(name, dummy_weights=True)
    return replace(known, config={**known.config, **own}, source="/checkpoint") if own else known


def test_the_catalogue_holds_the_methods_of_the_design() -> None:
    assert list(METHODS) == [
        "bf16", "fp8-w8a8", "fp8-w8a8-static", "fp8-block", "int8-w8a8", "gptq-w4a16",
        "awq-w4a16", "gptq-w8a16", "w4a8-fp8", "nvfp4-w4a16", "mxfp4-w4a16",
    ]  # fmt: skip
    for method in METHODS.values():
        assert (method.config is None) == (method.id == "bf16")
        assert method.hopper
        assert method.ampere or method.refusal
        assert method.serve_args == []


@pytest.mark.parametrize(
    ("method", "loaded"),
    [  # parameters of a 2-layer Llama (SMALL) as vLLM 0.24.0 builds it, bytes
        ("bf16", 169_879_584),
        ("int8-w8a8", 151_070_788),
        ("fp8-w8a8-static", 151_005_288),
        ("awq-w4a16", 141_936_672),
        ("nvfp4-w4a16", 142_747_772),
        ("mxfp4-w4a16", 142_157_892),
    ],
)
def test_weight_bytes_are_those_that_vllm_builds(method: str, loaded: int) -> None:
    positions = SMALL.max_position_embeddings * SMALL.head_dim * 2  # a table, not a weight
    # what is left are a few scales of the KV cache and of whole tensors
    assert abs(weight_bytes(METHODS[method], SMALL) + positions - loaded) < 150


@pytest.mark.parametrize(
    ("method", "gib"),
    [("bf16", 15.0), ("fp8-w8a8", 8.55), ("fp8-block", 8.55), ("int8-w8a8", 8.52),
     ("gptq-w8a16", 8.68), ("awq-w4a16", 5.49), ("nvfp4-w4a16", 5.70), ("w4a8-fp8", 5.70)],
)  # fmt: skip
def test_weight_bytes_are_those_that_servers_on_an_h200_reported(method: str, gib: float) -> None:
    expected = weight_bytes(METHODS[method], model().architecture) / 2**30
    assert abs(expected / gib - 1) < 0.03


@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    method=st.sampled_from(sorted(METHODS)),
    tp=st.sampled_from([1, 2, 4, 8]),
)
def test_tensor_parallelism_splits_the_weights(name: str, method: str, tp: int) -> None:
    a = model(name).architecture
    whole, part = weight_bytes(METHODS[method], a), weight_bytes(METHODS[method], a, tp)
    # norms and the scales of row-parallel layers are on every GPU
    assert whole <= tp * part < whole * 1.01
    if method != "bf16":
        assert whole < weight_bytes(METHODS["bf16"], a)


def test_an_fp8_kv_cache_on_top_of_any() -> None:
    for name in METHODS:
        method = find_method(name + KV_FP8)
        assert method.id == name + KV_FP8
        assert method.serve_args == ["--kv-cache-dtype", "fp8"]
        assert method.kv_bytes_per_value == 1
        assert weight_bytes(method, SMALL) == weight_bytes(METHODS[name], SMALL)
        assert method.config == METHODS[name].config


@pytest.mark.parametrize("name", ["fp8", "awq-w4a16+kv-int8", "bf16+", "", "BF16"])
def test_an_unknown_method_is_refused(name: str) -> None:
    with pytest.raises(ScenarioError, match=r"method is '.*'; must be one of bf16, fp8-w8a8"):
        find_method(name)


def test_an_unknown_method_has_near_matches() -> None:
    with pytest.raises(ScenarioError, match=r"did you mean .*awq-w4a16"):
        find_method("awq-w4a61")


def test_every_method_runs_on_an_h200() -> None:
    for name in ("llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b"):
        for method in METHODS.values():
            assert check(method, model(name), H200) is None, (name, method.id)
            assert check(find_method(method.id + KV_FP8), model(name), H200) is None


@pytest.mark.parametrize(
    ("method", "name", "gpu", "tp", "reason"),
    [
        ("w4a8-fp8", "llama-3.1-8b", A100, 1, "A100 SXM 80 GB: .* needs compute capability 9.0"),
        ("bf16+kv-fp8", "llama-3.1-8b", A100, 1, "no attention kernel for an FP8 KV cache"),
        ("bf16", "llama-3.1-70b", H200, 1, r"does not fit: weights of 131\.4 GiB .*--tensor-par"),
        ("bf16", "qwen2.5-32b", H100, 1, None),
        ("bf16", "llama-3.1-70b", H100, 1, "does not fit"),
        ("bf16", "llama-3.1-70b", H200, 2, None),
        ("fp8-w8a8", "llama-3.1-70b", H100, 1, None),
        ("bf16", "llama-3.1-8b", H200, 3, "num_attention_heads 32 cannot be divided over 3 GPUs"),
        ("gptq-w4a16", "qwen2.5-32b", H200, 8, None),
        ("gptq-w4a16", "qwen2.5-14b", H200, 8, "down_proj is 1728 x 5120 .* multiples of 128 x 64"),
        ("fp8-w8a8", "qwen2.5-14b", H200, 8, None),
    ],
)
def test_what_a_gpu_cannot_run_is_refused(
    method: str, name: str, gpu: GpuType, tp: int, reason: str | None
) -> None:
    found = check(find_method(method), model(name), gpu, tp)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found), found


def groups(bits: int) -> dict[str, object]:
    return {"quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": bits}}}}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "own", "reason"),
    [
        ("bf16", None, None),
        ("fp8-w8a8", None, None),  # quantized while it loads
        ("awq-w4a16", None, "not quantized and vLLM cannot make awq-w4a16 while it loads"),
        ("bf16", {"quant_method": "awq", "bits": 4}, "quantized with 'awq', which is not bf16"),
        ("awq-w4a16", {"quant_method": "awq", "bits": 4}, None),
        ("awq-w4a16+kv-fp8", {"quant_method": "awq", "bits": 4}, None),
        ("gptq-w4a16", {"quant_method": "gptq", "bits": 8}, "8-bit weights; gptq-w4a16 has 4"),
        ("gptq-w8a16", {"quant_method": "gptq", "bits": 8}, None),
        ("fp8-block", {"quant_method": "fp8"}, None),
        ("fp8-w8a8", groups(8), None),
        ("w4a8-fp8", groups(8), "8-bit weights; w4a8-fp8 has 4"),
        ("int8-w8a8", {"quant_method": "bitsandbytes"}, "'bitsandbytes', which is not int8-w8a8"),
        ("fp8-w8a8", METHODS["int8-w8a8"].config, "integer weights; fp8-w8a8 has floating-point"),
        ("int8-w8a8", METHODS["fp8-w8a8"].config, "floating-point weights; int8-w8a8 has integer"),
        ("fp8-w8a8", METHODS["fp8-w8a8-static"].config, "inputs of static scales; fp8-w8a8 has"),
        ("gptq-w8a16", METHODS["int8-w8a8"].config, "quantized inputs; gptq-w8a16 has 16-bit"),
        ("gptq-w4a16", METHODS["w4a8-fp8"].config, "quantized inputs; gptq-w4a16 has 16-bit"),
        ("mxfp4-w4a16", METHODS["nvfp4-w4a16"].config, None),  # groups alone tell these apart
        # 4 bits for inputs, too, which vLLM leaves out on Hopper
        (
            "nvfp4-w4a16",
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 4, "type": "float"},
                        "input_activations": {"num_bits": 4, "type": "float", "dynamic": "local"},
                    }
                },
            },
            None,
        ),
        (
            "int8-w8a8",
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": 7}},
            None,
        ),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    method: str, own: dict[str, object] | None, reason: str | None
) -> None:
    found = check(find_method(method), model(quantization_config=own), H200)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found


def test_methods_prints_a_line_each() -> None:
    lines = qsim("methods").stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(METHODS)
    here = qsim("methods", "--gpu", "a100_sxm").stdout
    assert "not here: not supported" not in here
    assert "not here: the CUTLASS W4A8 kernel needs compute capability 9.0" in here


def test_methods_json_has_what_a_server_needs() -> None:
    rows = json.loads(qsim("methods", "--model", "llama-3.1-70b", "--json").stdout)
    by_id = {r["method"]: r for r in rows}
    assert list(by_id) == list(METHODS)
    assert by_id["fp8-block"]["quantization_config"]["weight_block_size"] == [128, 128]
    assert by_id["awq-w4a16"]["weight_bytes"] == weight_bytes(
        METHODS["awq-w4a16"], model("llama-3.1-70b").architecture
    )
    assert "does not fit" in by_id["bf16"]["refusal"]
    assert by_id["fp8-w8a8"]["refusal"] is None
    assert by_id["bf16"]["kv_bytes_per_token"] == 80 * 2 * 8 * 128 * 2
    assert all(r["dummy_weights"] for r in rows)


def test_methods_refuses_what_it_does_not_know() -> None:
    fails(qsim("methods", "--gpu", "b200"), 2, "'b200'", "h200_sxm")
    fails(qsim("methods", "--model", "gpt-5"), 2, "'gpt-5'", "llama-3.1-8b", "config.json")
