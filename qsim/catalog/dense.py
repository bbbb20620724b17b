"""Which config.json files describe what qsim models: a dense decoder with full attention.

Step times, KV bytes and weights are those of blocks of grouped-query attention over all tokens and
a gated MLP. A model that keeps something else for a token (MLA's latent, a state, a window), or
that computes with a part of its weights, would be wrong in all of them, so it is refused by name.
Field names are those of the public config.json files, as vLLM's ``model_arch_config_convertor.py``
and Transformers' ``configuration_*.py`` read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qsim.bounds import shown

#: where multimodal models keep their language model
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
#: one name each for what models call differently; vLLM takes them for the same
_ALIASES = {
    "num_hidden_layers": ("num_layers",),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "head_dim": ("kv_channels", "hidden_size_per_head"),
    "intermediate_size": ("ffn_hidden_size",),
    "vocab_size": ("padded_vocab_size",),
    "max_position_embeddings": ("seq_length", "max_sequence_length", "max_seq_length"),
    "attention_bias": ("add_qkv_bias", "use_qkv_bias", "qkv_bias"),
}

_MLA = "multi-head latent attention (MLA) is not supported"
_STATE = "hybrid and state-space models (Mamba, linear attention, convolutions) are not supported"
_WINDOW = "sliding-window and chunked attention are not supported"
_SPARSE = "sparse attention is not supported"
_EXPERTS = "mixture-of-experts models are not supported"
_SHARED = "layers that share a KV cache are not supported"
_UNLIKE = "models whose layers differ from each other are not supported"
_ENCODER = "encoder and encoder-decoder models are not supported"
_UNGATED = "an MLP without a gate is not supported"
_HALVES = "an intermediate_size that counts gate and up projection together is not supported"
_DIFFUSION = "diffusion language models are not supported"
_SILENT = "models that do not generate text are not supported"
_VALUES = "values of another size than keys are not supported"

#: fields that say so by being there with a value (not null, false, 0 or empty)
_FIELDS: dict[str, tuple[str, ...]] = {
    _MLA: ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"),
    _STATE: (
        "hybrid_override_pattern", "layers_block_type", "block_types", "_block_types",
        "attn_layer_period", "attn_layer_indices", "attn_layer_idx", "hybrid_layer_ids",
        "full_attn_idxs", "full_attention_interval", "linear_attn_config", "state_size", "d_state",
        "time_step_rank", "lru_width", "conv_L_cache", "mb_per_layer", "rwkv_version",
        "hgrn_config",
    ),
    _SPARSE: (
        "index_topk", "index_n_heads", "sparse_attention_config", "sparse_config",
        "dense_attention_every_n_layers", "blocksparse_block_size", "use_sparse_attention",
        "compress_ratios",
    ),
    _WINDOW: ("attention_chunk_size", "global_attn_every_n_layers", "local_attention",
              "attention_types", "rswa_window"),
    _SHARED: ("num_kv_shared_layers", "use_cla", "kv_share_layers"),
    _UNLIKE: ("block_configs", "cross_attention_layers", "hidden_size_per_layer_input",
              "layer_head_nums", "global_head_dim", "total_ut_steps"),
    _ENCODER: ("is_encoder_decoder", "encoder_layers", "num_decoder_layers", "encoder_config"),
}  # fmt: skip
#: and beginnings of such names
_PREFIXES = {_STATE: ("mamba_", "ssm_", "linear_num_", "linear_key_", "linear_conv_", "rwkv_")}
#: models whose config.json does not say it
_MODEL_TYPES: dict[str, tuple[str, ...]] = {
    _MLA: ("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "kimi_k2", "minicpm3"),
    _STATE: (
        "mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h", "jamba", "bamba", "zamba",
        "zamba2", "recurrent_gemma", "rwkv", "rwkv5", "rwkv6", "rwkv7", "retnet", "lfm2", "plamo2",
        "phi4flash", "granitemoehybrid", "qwen3_next", "qwen3_5", "qwen3_5_text", "kimi_linear",
        "minimax", "minimax_text_01", "olmo_hybrid", "xlstm",
    ),
    _WINDOW: (
        "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text",
        "cohere2", "gpt_oss", "gpt_neo", "llama4", "llama4_text", "olmo3", "modernbert",
    ),
    _SPARSE: ("phi3small", "glm_moe_dsa"),
    _EXPERTS: ("mixtral", "dbrx", "deepseek", "arctic", "grok-1", "qwen2_moe", "qwen3_moe"),
    _UNLIKE: ("openelm", "deci", "nemotron-nas", "mllama", "mllama_text_model"),
    _ENCODER: (
        "t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "whisper", "seamless_m4t",
        "bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "deberta",
        "deberta-v2", "nomic_bert", "xlnet", "t5gemma",
    ),
    _UNGATED: (
        "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "opt", "bloom", "mpt", "falcon", "phi",
        "codegen", "starcoder2", "persimmon", "nemotron", "arcee", "apertus", "xglm", "biogpt",
    ),
    _HALVES: ("qwen",),
    _DIFFUSION: ("llada", "Dream", "dream", "sdar"),
}  # fmt: skip
#: types whose blocks are the ones modelled; others that say nothing else are taken for such, told
_KNOWN_TYPES = (
    "llama", "mistral", "ministral", "mistral3", "qwen2", "qwen2_5_vl", "qwen2_5_vl_text",
    "qwen2_vl", "qwen2_vl_text", "qwen3", "qwen3_vl", "qwen3_vl_text", "phi3", "gemma", "granite",
    "olmo", "olmo2", "internlm2", "internlm3", "internlm", "stablelm", "cohere", "smollm3",
    "seed_oss", "hunyuan_v1_dense", "exaone", "exaone4", "glm", "glm4", "chatglm", "minicpm", "yi",
    "baichuan", "aquila", "helium", "mimo", "ernie4_5", "llava", "llava_next", "internvl_chat",
    "internvl", "idefics3", "pixtral", "orion", "solar", "xverse",
)  # fmt: skip
_FULL = ("full_attention", "attention", "full", "global", "global_attention")
_NOT_GENERATIVE = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM",
                   "ForQuestionAnswering", "RewardModel", "ForRewardModel")  # fmt: skip


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json, under the names that Llama's has.

    Multimodal models nest it; what it leaves out (``tie_word_embeddings``, ``vocab_size``) may
    stand outside. Other names of the same fields are replaced by Llama's.
    """
    found = dict(config)
    for key in _NESTED:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            own = text_config(inner)
            nested = {k: v for k, v in own.items() if v is not None or k not in config}
            found = {**config, **nested}
            break
    for name, others in _ALIASES.items():
        if found.get(name) is None:
            value = next((found[k] for k in others if found.get(k) is not None), None)
            if value is not None:
                found[name] = value
    return found


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model cannot be described as a dense decoder with full attention; None if it can.

    The field of its config.json, its value, and what it means.
    """
    text = text_config(config)
    found = _by_field(text)
    if found is None:
        found = _experts(text) or _layers(text) or _window(text) or _type(config, text)
    if found is None:
        return None
    field, what = found
    value = text.get(field, config.get(field))
    said = "not given" if value is None else shown(value)
    return f"{field} is {said}; {what}"


def remarks(config: Mapping[str, Any]) -> list[str]:
    """What is not taken into account of a config.json that is not refused."""
    text, found = text_config(config), []
    towers = [k for k in ("vision_config", "audio_config", "vit_config") if config.get(k)]
    if towers:
        found.append(
            f"{', '.join(towers)}: the weights and the memory of that part are not counted, and "
            "only text is simulated"
        )
    kind = str(text.get("model_type") or "")
    if kind and kind not in _KNOWN_TYPES:
        found.append(
            f"model_type is {kind!r}, which qsim does not know: it is taken for a dense decoder "
            "like Llama's (grouped-query attention over all tokens, a gated MLP)"
        )
    return found


Found = tuple[str, str] | None


def _by_field(text: Mapping[str, Any]) -> Found:
    for what, names in _FIELDS.items():
        for name in names:
            if text.get(name) and not _all_full(name, text[name]):
                return name, what
    for what, prefixes in _PREFIXES.items():
        for name, value in text.items():
            if name.startswith(prefixes) and value:
                return name, what
    return None


def _all_full(name: str, value: Any) -> bool:
    """Lists of layers that are all full attention after all."""
    if name in ("layers_block_type", "block_types", "_block_types"):
        return isinstance(value, list) and all(v in _FULL for v in value)
    return False


def _experts(text: Mapping[str, Any]) -> Found:
    """More than one expert, under any of its names."""
    ffn = text.get("ffn_config")
    for where in (text, ffn if isinstance(ffn, Mapping) else {}):
        for name, value in where.items():
            if "expert" not in name or "per_tok" in name or isinstance(value, bool):
                continue
            counts = value if isinstance(value, list) else [value]
            if name.startswith(("num_", "n_", "moe_num_")) and any(
                isinstance(c, int) and c > 1 for c in counts
            ):
                return ("ffn_config" if where is ffn else name), _EXPERTS
    single = any("expert" in name and value == 1 for name, value in text.items())
    if text.get("enable_moe_block"):
        return "enable_moe_block", _EXPERTS
    for name in ("moe_intermediate_size", "num_experts_per_tok"):
        if text.get(name) and not single:  # one expert is a dense MLP
            return name, _EXPERTS
    return None


def _layers(text: Mapping[str, Any]) -> Found:
    """``layer_types`` and the patterns that say the same in other ways."""
    types = text.get("layer_types")
    if isinstance(types, list):
        others = [t for t in types if t not in _FULL]
        if any("sliding" in str(t) or "chunked" in str(t) or "local" in str(t) for t in others):
            return "layer_types", _WINDOW
        if any("sparse" in str(t) for t in others):
            return "layer_types", _SPARSE
        if others:
            return "layer_types", _STATE
    kinds = text.get("attn_type_list")  # MiniMax: 1 is full, 0 linear attention
    if isinstance(kinds, list) and any(k != 1 for k in kinds):
        return "attn_type_list", _STATE
    pattern = text.get("hybrid_layer_pattern")  # MiMo-V2: 0 is full attention
    if isinstance(pattern, list) and any(k != 0 for k in pattern):
        return "hybrid_layer_pattern", _WINDOW
    value_dim, head_dim = text.get("v_head_dim"), text.get("head_dim")
    if value_dim and head_dim and value_dim != head_dim:
        return "v_head_dim", _VALUES
    return None


def _window(text: Mapping[str, Any]) -> Found:
    """A window shorter than the longest sequence, unless the model says that it is off."""
    types = text.get("layer_types")
    if isinstance(types, list) and types:
        return None  # it says of each layer what it does: all of them have full attention
    optional = str(text.get("model_type")).startswith(("qwen2", "qwen3", "smollm3"))
    if not text.get("use_sliding_window", not optional):
        return None
    longest = text.get("max_position_embeddings")
    if text.get("model_type") == "mistral":  # its default, where it does not say null
        text = {"sliding_window": 4096, **text}
    for name in ("sliding_window", "sliding_window_size", "interleaved_sliding_window"):
        size = text.get(name)
        if size and not (isinstance(size, int) and isinstance(longest, int) and size >= longest):
            return name, _WINDOW
    if text.get("sliding_window_pattern") and "sliding_window" not in text:
        return "sliding_window_pattern", _WINDOW
    return None


def _type(config: Mapping[str, Any], text: Mapping[str, Any]) -> Found:
    for kind in (text.get("model_type"), config.get("model_type")):
        for what, names in _MODEL_TYPES.items():
            if kind in names:
                return "model_type", what
    if any(n.endswith(_NOT_GENERATIVE) for n in _strings(config.get("architectures"))):
        return "architectures", _SILENT
    return None


def _strings(value: Any) -> Iterable[str]:
    return [str(v) for v in value] if isinstance(value, list) else []
