"""Architectures that are not modelled are refused by name; dense ones in other words are read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qsim.catalog.dense import remarks
from qsim.catalog.models import ARCHITECTURES, load_model
from qsim.errors import ScenarioError
from tests.cli.helpers import fails, qsim

LLAMA = ARCHITECTURES["llama-3.1-8b"]
FULL, SLIDING = "full_attention", "sliding_attention"
MLA = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 16, "vocab_size": 102400, "max_position_embeddings": 16384,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
}  # fmt: skip


def folder(path: Path, config: dict[str, Any]) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def llama(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in {**LLAMA, **changes}.items() if v is not ...}


# fields as the public config.json files of these models have them
REFUSED = [
    # DeepSeek-V2/V3, Kimi-K2, MiniCPM3
    (MLA, "kv_lora_rank is 512; multi-head latent attention (MLA)"),
    (llama(model_type="minicpm3", kv_lora_rank=256, q_lora_rank=768), "kv_lora_rank is 256"),
    ({k: v for k, v in MLA.items() if k[:2] not in ("kv", "qk", "v_")}, "model_type is 'deepseek"),
    # Nemotron-H, Jamba, Bamba, Zamba2, Falcon-H1, Granite 4, Mamba
    (llama(hybrid_override_pattern="M-M-M*-"), "hybrid_override_pattern is 'M-M-M*-'; hybrid"),
    (llama(attn_layer_period=8, attn_layer_offset=4), "attn_layer_period is 8; hybrid"),
    (llama(attn_layer_indices=[9, 18, 27], mamba_d_state=128), "attn_layer_indices is [9, 18"),
    (llama(layers_block_type=["mamba", "hybrid"]), "layers_block_type is"),
    (llama(mamba_d_ssm=3072), "mamba_d_ssm is 3072; hybrid and state-space"),
    (llama(layer_types=["mamba", "attention"]), "layer_types is ['mamba', 'attention']; hybrid"),
    (llama(state_size=16), "state_size is 16; hybrid"),
    # Qwen3-Next, Kimi-Linear, MiniMax-01, LFM2, RecurrentGemma
    (llama(layer_types=["linear_attention", FULL]), "layer_types is ['linear_attention'"),
    (llama(full_attention_interval=4), "full_attention_interval is 4; hybrid"),
    (llama(linear_num_value_heads=32), "linear_num_value_heads is 32; hybrid"),
    (llama(linear_attn_config={"kda_layers": [1]}), "linear_attn_config is {'kda_layers': [1]}"),
    (llama(attn_type_list=[0, 0, 1]), "attn_type_list is [0, 0, 1]; hybrid"),
    (llama(layer_types=["conv", FULL], conv_L_cache=3), "conv_L_cache is 3; hybrid"),
    (llama(block_types=["recurrent", "attention"], lru_width=2560), "block_types is"),
    # Mistral 7B v0.1, Phi-3-mini-4k, Qwen2 with its window on, Gemma 2 and 3, Cohere2, Llama 4
    (llama(model_type="mistral", sliding_window=4096), "sliding_window is 4096; sliding-window"),
    (llama(model_type="mistral"), "sliding_window is not given; sliding-window"),
    (llama(model_type="phi3", sliding_window=2047), "sliding_window is 2047"),
    (llama(model_type="qwen2", use_sliding_window=True, sliding_window=32768), "sliding_window is"),
    (llama(layer_types=[SLIDING, FULL], sliding_window=512), "layer_types is ['sliding_attention'"),
    (llama(sliding_window_pattern=6), "sliding_window_pattern is 6"),
    (llama(model_type="gemma2"), "model_type is 'gemma2'; sliding-window"),
    (llama(attention_chunk_size=8192), "attention_chunk_size is 8192; sliding-window and chunked"),
    (llama(layer_types=["chunked_attention", FULL]), "layer_types is ['chunked_attention'"),
    (llama(hybrid_layer_pattern=[0, 1, 1]), "hybrid_layer_pattern is [0, 1, 1]; sliding"),
    # DeepSeek-V3.2, Phi-3-small
    (llama(index_topk=2048), "index_topk is 2048; sparse attention"),
    (llama(dense_attention_every_n_layers=2), "dense_attention_every_n_layers is 2; sparse"),
    # Qwen3-MoE, Mixtral, DeepSeek, DBRX, ERNIE 4.5, gpt-oss
    (llama(num_experts=128, num_experts_per_tok=8), "num_experts is 128; mixture-of-experts"),
    (llama(num_local_experts=8), "num_local_experts is 8; mixture-of-experts"),
    (llama(n_routed_experts=64), "n_routed_experts is 64; mixture-of-experts"),
    (llama(ffn_config={"moe_num_experts": 16}), "ffn_config is {'moe_num_experts': 16}; mixture"),
    (llama(moe_num_experts=[64, 64]), "moe_num_experts is [64, 64]; mixture-of-experts"),
    (llama(moe_intermediate_size=768), "moe_intermediate_size is 768; mixture-of-experts"),
    # Gemma 3n, Hunyuan with CLA, Nemotron-NAS, Llama 3.2 Vision
    (llama(num_kv_shared_layers=15), "num_kv_shared_layers is 15; layers that share a KV cache"),
    (llama(use_cla=True), "use_cla is True; layers that share"),
    (llama(block_configs=[{"attention": {"no_op": True}}]), "block_configs is"),
    (llama(cross_attention_layers=[3, 8]), "cross_attention_layers is [3, 8]; models whose layers"),
    (llama(v_head_dim=64), "v_head_dim is 64; values of another size"),
    # T5, BERT, a classifier, GPT-NeoX, LLaDA
    (llama(is_encoder_decoder=True), "is_encoder_decoder is True; encoder"),
    (llama(model_type="bert"), "model_type is 'bert'; encoder"),
    (llama(architectures=["Qwen2ForSequenceClassification"]), "models that do not generate text"),
    (llama(model_type="gpt_neox"), "model_type is 'gpt_neox'; an MLP without a gate"),
    (llama(model_type="Dream"), "model_type is 'Dream'; diffusion"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), REFUSED)
@pytest.mark.parametrize("nested", [False, True])
def test_what_is_not_modelled_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], words: str, nested: bool
) -> None:
    if nested:
        config = {"architectures": ["XForConditionalGeneration"], "model_type": "x",
                  "text_config": config, "vision_config": {"hidden_size": 1024}}  # fmt: skip
        if "do not generate" in words:
            return
    with pytest.raises(ScenarioError) as caught:
        load_model(folder(tmp_path / "m", config))
    assert f"config.json: {words}" in str(caught.value) or words in str(caught.value)
    assert str(caught.value).count("config.json") == 1
    assert "not supported" in str(caught.value)


@pytest.mark.parametrize("command", ["methods", "transfer", "run"])
def test_the_commands_refuse_it(tmp_path: Path, command: str) -> None:
    model = folder(tmp_path / "m", MLA)
    words = {
        "methods": ("methods", "--model", model),
        "transfer": ("calibrate", "transfer", "--to", "h100_sxm", "--model", model, "--out", "o"),
        "run": ("calibrate", "run", "--model", model, "--dummy-weights", "--gpu-type", "h200_sxm",
                "--methods", "bf16", "--out", tmp_path / "o", "--dry-run"),
    }  # fmt: skip
    fails(qsim(*words[command]), 2, "config.json: kv_lora_rank is 512; multi-head latent")


def test_a_config_under_another_name(tmp_path: Path) -> None:
    file = tmp_path / "Odd-8B.json"
    file.write_text(json.dumps(llama()))
    model = load_model(str(file), dummy_weights=True)
    assert (model.id, model.source) == ("odd-8b", None)
    with pytest.raises(ScenarioError, match="architecture without weights: add --dummy-weights"):
        load_model(str(file))
    file.write_text(json.dumps(MLA))
    fails(qsim("methods", "--model", file), 2, "Odd-8B.json: kv_lora_rank is 512")


def test_a_hugging_face_id_needs_huggingface_hub_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(folder(tmp_path / "cached", llama(num_hidden_layers=16))) / "config.json"
    asked = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if name != "org/Name-4B":
            raise OSError(f"404 Client Error.\n\nRepository Not Found for {name}")
        return str(cache)

    hub = ModuleType("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", download, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model = load_model("org/Name-4B", dummy_weights=True)
    assert (model.id, model.architecture.num_hidden_layers) == ("name-4b", 16)
    assert asked == [("org/Name-4B", "config.json")]
    transfer = ("calibrate", "transfer", "--to", "h100_sxm", "--out", tmp_path / "o", "--model")
    fails(qsim(*transfer, "org/none"), 2, "cannot get config.json of 'org/none': 404 Client Error.",
          "give a folder that holds its config.json")  # fmt: skip
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails(qsim(*transfer, "org/Name-4B"), 5, "needs the package 'huggingface_hub'",
          "pip install huggingface_hub")  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": None},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 131072,
         "max_window_layers": 28},
        {"model_type": "qwen3", "sliding_window": 4096},  # off unless use_sliding_window is true
        {"model_type": "phi3", "sliding_window": 262144},  # longer than any sequence
        {"layer_types": [FULL] * 32, "sliding_window": 512},
        {"layers_block_type": ["attention"] * 32},
        {"num_experts": 0, "num_local_experts": None, "kv_lora_rank": None},
        {"num_experts": 1, "moe_topk": 1, "num_shared_expert": 1, "moe_intermediate_size": 14336},
        {"attention_chunk_size": None, "num_kv_shared_layers": 0, "use_cla": False},
        {"is_encoder_decoder": False, "attn_type_list": [1, 1], "index_topk": 0},
        {"num_nextn_predict_layers": 1},
        {"v_head_dim": 128},
        {"head_dim": None},
    ],
)  # fmt: skip
def test_fields_that_change_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = load_model("llama-3.1-8b", dummy_weights=True).architecture
    read = load_model(folder(tmp_path / "m", llama(**changes))).architecture
    qwen = str(changes.get("model_type")).startswith("qwen2")
    assert read == plain.__class__(**{**vars(plain), "qkv_bias": qwen})


def test_other_names_of_the_same_fields(tmp_path: Path) -> None:
    plain = load_model("llama-3.1-8b", dummy_weights=True).architecture
    other = llama(
        model_type="chatglm", num_hidden_layers=..., num_layers=32, num_key_value_heads=...,
        multi_query_group_num=8, head_dim=..., kv_channels=128, intermediate_size=...,
        ffn_hidden_size=14336, vocab_size=..., padded_vocab_size=128256,
        max_position_embeddings=..., seq_length=131072,
    )  # fmt: skip
    assert load_model(folder(tmp_path / "m", other)).architecture == plain


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config", "thinker_config"])
def test_a_language_model_inside_a_multimodal_one(tmp_path: Path, key: str) -> None:
    plain = load_model("llama-3.1-8b", dummy_weights=True).architecture
    inner = llama(architectures=None, tie_word_embeddings=..., vocab_size=...)
    config: dict[str, Any] = {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        key: {"text_config": inner} if key == "thinker_config" else inner,
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024},
        "vocab_size": 128256, "tie_word_embeddings": False,
    }  # fmt: skip
    model = load_model(folder(tmp_path / "m", config))
    assert model.architecture == plain
    (remark,) = model.remarks
    assert remark.startswith("vision_config: the weights and the memory of that part are not count")


def test_a_model_type_that_is_not_known_is_told(tmp_path: Path) -> None:
    assert remarks(LLAMA) == []
    model = folder(tmp_path / "m", llama(model_type="brand_new"))
    result = qsim("methods", "--model", model)
    assert result.exit_code == 0
    assert "model_type is 'brand_new', which qsim does not know" in result.stderr
