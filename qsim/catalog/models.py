"""Model architectures: known ones by name, others from a config.json; dummy model folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsim.bounds import Plain, check_name, shown
from qsim.catalog.dense import refusal, remarks, text_config
from qsim.documents import read_json
from qsim.errors import MissingExtraError, ScenarioError

#: largest numbers of an architecture; those of public models are a tenth of them at most
_MOST_SIZE = 1 << 20
_MOST = {"num_hidden_layers": 10_000, "vocab_size": 1 << 23, "max_position_embeddings": 1 << 30}


@dataclass(frozen=True)
class Architecture:
    """The numbers of a dense decoder-only model that size and speed depend on."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    #: biases on the query, key and value projections (Qwen2)
    qkv_bias: bool

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> Architecture:
        """Read a config.json.

        Raises
        ------
        ScenarioError
            If a number is missing, or the model is not a dense decoder with full attention.
        """
        reason = refusal(config)
        if reason is not None:
            raise ScenarioError(f"{where}: {reason}")
        config = text_config(config)
        kind = str(config.get("model_type"))

        def number(name: str, default: int | None = None) -> int:
            value = config.get(name, default)
            if value is None and default is not None:
                value = default
            most = _MOST.get(name, _MOST_SIZE)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ScenarioError(
                    f"{where}: {name} is {shown(value)}; must be a whole number >= 1 and <= {most}"
                )
            return value

        heads = number("num_attention_heads")
        return cls(
            hidden_size=number("hidden_size"),
            intermediate_size=number("intermediate_size"),
            num_hidden_layers=number("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=number("num_key_value_heads", heads),
            head_dim=number("head_dim", number("hidden_size") // heads),
            vocab_size=number("vocab_size"),
            max_position_embeddings=number("max_position_embeddings"),
            tie_word_embeddings=bool(
                config.get("tie_word_embeddings", kind in ("gemma", "cohere"))
            ),
            qkv_bias=kind.startswith("qwen2") or bool(config.get("attention_bias")),
        )

    def linears(self) -> list[tuple[str, int, int, int]]:
        """The linear layers of one block as (name, inputs K, outputs N, shards fused into it)."""
        h, f = self.hidden_size, self.intermediate_size
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        return [
            ("qkv_proj", h, q + 2 * kv, 3),
            ("o_proj", q, h, 1),
            ("gate_up_proj", h, 2 * f, 2),
            ("down_proj", f, h, 1),
        ]

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers except the LM head: what quantization acts on."""
        return self.num_hidden_layers * sum(k * n for _, k, n, _ in self.linears())

    def other_bytes(self, tensor_parallel_size: int = 1) -> int:
        """Bytes per GPU of what stays in bf16: embedding, LM head, norms and biases.

        vLLM pads the vocabulary to a multiple of 64 per GPU and splits it over the GPUs.
        """
        h, tp = self.hidden_size, tensor_parallel_size
        vocab = -(-self.vocab_size // (64 * tp)) * 64
        tables = 1 if self.tie_word_embeddings else 2
        norms = (2 * self.num_hidden_layers + 1) * h
        q = self.num_attention_heads * self.head_dim // tp
        kv = max(1, self.num_key_value_heads // tp) * self.head_dim
        biases = self.num_hidden_layers * (q + 2 * kv) if self.qkv_bias else 0
        return 2 * (tables * vocab * h + norms + biases)

    def kv_bytes_per_token(self, bytes_per_value: int = 2, tensor_parallel_size: int = 1) -> int:
        """Bytes of KV cache per token and GPU."""
        heads = max(1, self.num_key_value_heads // tensor_parallel_size)
        return self.num_hidden_layers * 2 * heads * self.head_dim * bytes_per_value


@dataclass(frozen=True)
class Model:
    """A model to serve: its id in profiles, its config and, for a checkpoint, where it is."""

    id: str
    config: dict[str, Any]
    architecture: Architecture
    #: a folder or a Hugging Face id that ``vllm serve`` can load; None for an architecture alone
    source: str | None

    @property
    def remarks(self) -> list[str]:
        """What of the config is not taken into account."""
        return remarks(self.config)

    @property
    def quantization_config(self) -> dict[str, Any] | None:
        """The checkpoint's own, if it is quantized."""
        own = self.config.get("quantization_config") or self.config.get("compression_config")
        return own if isinstance(own, dict) else None


_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_bias": False,
    "mlp_bias": False,
}
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_sliding_window": False,
}

#: The numbers of the public config.json files. RoPE scaling is left out: it does not change time.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-3.1-70b": {
        **_LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "qwen2.5-14b": {**_QWEN2, "intermediate_size": 13824, "num_hidden_layers": 48},
    "qwen2.5-32b": {**_QWEN2, "intermediate_size": 27648, "num_hidden_layers": 64},
}


def load_model(name: str, *, dummy_weights: bool = False) -> Model:
    """Find a model by architecture name, folder or Hugging Face id.

    Parameters
    ----------
    name : str
        A name in ``ARCHITECTURES``, a folder with a config.json, such a file itself (under any
        name that ends in .json), or an id such as ``org/name`` whose config is in the local cache
        or can be downloaded.
    dummy_weights : bool
        Only the architecture is needed.

    Raises
    ------
    ScenarioError
        If there is no such model, or an architecture alone was given without ``dummy_weights``.
    """
    known = ARCHITECTURES.get(name.lower())
    if known is not None:
        if not dummy_weights:
            raise ScenarioError(
                f"model is {name!r}, an architecture without weights: add --dummy-weights, or give "
                "a checkpoint's folder or Hugging Face id"
            )
        return Model(name.lower(), dict(known), Architecture.from_config(known, name), None)
    path = Path(name)
    if path.is_dir() or path.suffix == ".json":
        return _from_files(path, dummy_weights)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise ScenarioError(
            f"model is {name!r}; must be one of {', '.join(ARCHITECTURES)}, a folder with a "
            "config.json, or a Hugging Face id (org/name)"
        )
    id_ = check_name("the part of model behind the '/'", name.split("/")[1].lower())
    config = _read(_download(name))
    return Model(
        id_,
        config,
        Architecture.from_config(config, f"{name}/config.json"),
        None if dummy_weights else name,
    )


def _from_files(path: Path, dummy_weights: bool) -> Model:
    """A model's folder, its config.json, or such a file under another name."""
    file = path / "config.json" if path.is_dir() else path
    config = _read(file)
    architecture = Architecture.from_config(config, str(file))
    if file.name != "config.json":
        if not dummy_weights:
            raise ScenarioError(
                f"model is {str(file)!r}, an architecture without weights: add --dummy-weights, or "
                "give the checkpoint's folder"
            )
        id_ = file.stem.lower()
        check_name(f"{str(file)!r}: its name", id_)
        return Model(id_, config, architecture, None)
    folder = file.parent.resolve()
    id_ = _folder_id(folder)
    check_name(f"the model's folder {str(folder)!r}: its name", id_)
    return Model(id_, config, architecture, None if dummy_weights else str(folder))


def _folder_id(folder: Path) -> str:
    """The folder's name; the model's for a snapshot in the Hugging Face cache (models--org--x)."""
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.rpartition("--")[2].lower()
    return folder.name.lower()


def _download(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise MissingExtraError(
            "huggingface_hub", None, f"reading the config of {name!r}"
        ) from None
    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as e:  # many kinds: offline, gated, unknown
        said = " ".join(str(e).split()).rstrip(".") or type(e).__name__
        raise ScenarioError(
            f"cannot get config.json of {name!r}: {said}. Check the name; log in for a gated model "
            "(hf auth login), or give a folder that holds its config.json"
        ) from e


def _read(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise ScenarioError(f"{path}: must hold a JSON object")
    try:
        Plain().check(data)
    except ValueError as e:
        raise ScenarioError(f"{path}: {e}") from None
    return data


def write_dummy(
    model: Model, folder: Path, quantization_config: dict[str, Any] | None
) -> dict[str, Any]:
    """Write a model folder that vLLM loads with ``--load-format dummy``; return its config.

    It holds config.json, generation_config.json and a word-level tokenizer of the model's
    vocabulary size, so that the server turns tokens into text as it does for a real model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drop = ("quantization_config", "compression_config")
    config = {k: v for k, v in model.config.items() if k not in drop}
    if quantization_config is not None:
        config["quantization_config"] = quantization_config
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"t{i}": i for i in range(3, model.architecture.vocab_size)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
        },
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return config
