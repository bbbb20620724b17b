"""The catalogue of quantization methods: vLLM configuration, bytes, kernels, hardware.

A method is named by an id such as ``fp8-w8a8``; ``+kv-fp8`` after it adds an FP8 KV cache.
Formats are those of vLLM 0.24 to 0.33 for dense models, and so are kernels but where ``since`` says
otherwise.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from qsim.catalog.gpus import GIB, GpuType
from qsim.catalog.models import Architecture, Model
from qsim.errors import ScenarioError

KV_FP8 = "+kv-fp8"


@dataclass(frozen=True)
class Method:
    """One quantization method.

    Bytes of a quantized linear layer with K inputs and N outputs, split over the GPUs:
    ``K * N * bits / 8``, plus ``scale_bytes`` per ``group`` inputs and output (group 0: once per
    output; -1: once per fused shard; -2: once per 128 x 128 block), plus ``zero_bits`` per group.
    """

    id: str
    what: str
    bits: float
    group: int = 0
    scale_bytes: float = 0.0
    zero_bits: float = 0.0
    #: config.json's "quantization_config" of a checkpoint in this format; None for bf16
    config: dict[str, Any] | None = None
    #: kernels by GPU architecture; "" where vLLM refuses it
    hopper: str = ""
    ampere: str = ""
    #: a release of vLLM, (major, minor), and the kernel that it brought, on either architecture
    since: tuple[tuple[tuple[int, int], str], ...] = ()
    #: why it does not run where a kernel is ""
    refusal: str = ""
    #: ``vllm serve --quantization`` value that makes it from a bf16 checkpoint, or ""
    online: str = ""
    #: inputs and outputs of every linear layer, per GPU, must be multiples of these
    k_multiple: int = 1
    n_multiple: int = 1
    kv_fp8: bool = False

    @property
    def serve_args(self) -> list[str]:
        """Arguments of ``vllm serve`` that select it, beside the checkpoint's own config."""
        return ["--kv-cache-dtype", "fp8"] if self.kv_fp8 else []

    @property
    def kv_bytes_per_value(self) -> int:
        """Bytes of one number in the KV cache."""
        return 1 if self.kv_fp8 else 2

    @property
    def integer_bits(self) -> int:
        """Bits of an integer weight; 0 for floating-point formats."""
        return int(self.bits) if any(x in self.id for x in ("gptq", "awq", "int8", "w4a8")) else 0

    def kernel(self, gpu: GpuType, release: tuple[int, int] | None = None) -> str:
        """The GEMM kernel on a GPU, "" if vLLM has none; of the newest ``release`` (major, minor)
        that is known by default.
        """
        kernel = self.hopper if gpu.capability >= (9, 0) else self.ampere
        for first, later in self.since:
            if kernel and (release is None or release >= first):
                kernel = later
        return kernel


def _ct(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],  # otherwise vLLM quantizes it, too
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        },
    }


def _args(bits: int, kind: str, strategy: str, dynamic: bool, **more: Any) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "strategy": strategy,
        "symmetric": True,
        "dynamic": dynamic,
        **more,
    }


def _gptq(bits: int) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        # without this list and without weight files vLLM quantizes nothing and says nothing
        "modules_in_block_to_quantize": [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.up_proj", "mlp.gate_proj"],
            ["mlp.down_proj"],
        ],
    }


_MARLIN_FP8 = "Marlin FP8 (weights only)"
_ALL = (
    Method("bf16", "16-bit weights, the baseline", 16, hopper="cuBLAS", ampere="cuBLAS"),
    Method(
        "fp8-w8a8",
        "FP8 weights per channel, FP8 activations per token",
        8,
        0,
        4,
        config=_ct(
            "float-quantized",
            _args(8, "float", "channel", False),
            _args(8, "float", "token", True),
        ),
        hopper="CUTLASS FP8",
        ampere=_MARLIN_FP8,
        online="fp8_per_channel",
        k_multiple=16,
        n_multiple=16,
    ),
    Method(
        "fp8-w8a8-static",
        "FP8 weights and activations, one scale per tensor",
        8,
        -1,
        8,
        config=_ct(
            "float-quantized",
            _args(8, "float", "tensor", False),
            _args(8, "float", "tensor", False),
        ),
        hopper="CUTLASS FP8",
        ampere=_MARLIN_FP8,
        k_multiple=16,
        n_multiple=16,
    ),
    Method(
        "fp8-block",
        "FP8 weights per 128 x 128 block, activations per token and 128",
        8,
        -2,
        4,
        config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
        },
        hopper="DeepGEMM, else CUTLASS block FP8",
        ampere=_MARLIN_FP8,
        online="fp8_per_block",
        k_multiple=128,
        n_multiple=128,
    ),
    Method(
        "int8-w8a8",
        "INT8 weights per channel, INT8 activations per token",
        8,
        0,
        4,
        config=_ct(
            "int-quantized", _args(8, "int", "channel", False), _args(8, "int", "token", True)
        ),
        hopper="CUTLASS INT8",
        ampere="CUTLASS INT8",
        k_multiple=16,
        n_multiple=16,
    ),
    Method(
        "gptq-w4a16",
        "GPTQ, 4-bit weights in groups of 128",
        4,
        128,
        2,
        4,
        config=_gptq(4),
        hopper="Machete",
        ampere="Marlin",
        k_multiple=128,
        n_multiple=64,
    ),
    Method(
        "awq-w4a16",
        "AWQ, 4-bit weights with zero points in groups of 128",
        4,
        128,
        2,
        4,
        config={
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "version": "gemm",
        },
        hopper="Machete",
        ampere="Marlin",
        k_multiple=128,
        n_multiple=64,
    ),
    Method(
        "gptq-w8a16",
        "GPTQ, 8-bit weights in groups of 128",
        8,
        128,
        2,
        8,
        config=_gptq(8),
        hopper="Machete",
        ampere="Marlin",
        k_multiple=128,
        n_multiple=64,
    ),
    Method(
        "w4a8-fp8",
        "4-bit weights in groups of 128, FP8 activations per token",
        4,
        128,
        8,  # each scale becomes eight FP8 values for the kernel
        config=_ct(
            "pack-quantized",
            _args(4, "int", "group", False, group_size=128),
            _args(8, "float", "token", True),
        ),
        hopper="CUTLASS W4A8",
        refusal="the CUTLASS W4A8 kernel needs compute capability 9.0 (Hopper)",
        k_multiple=128,
        n_multiple=128,
    ),
    Method(
        "nvfp4-w4a16",
        "NVFP4 weights in groups of 16, weights only",
        4,
        16,
        1,
        config=_ct(
            "nvfp4-pack-quantized",
            _args(4, "float", "tensor_group", False, group_size=16),
            None,
        ),
        hopper="Marlin FP4",
        ampere="Marlin FP4",
        since=(((0, 32), "Humming"),),
        k_multiple=128,
        n_multiple=64,
    ),
    Method(
        "mxfp4-w4a16",
        "MXFP4 weights in groups of 32, weights only",
        4,
        32,
        1,
        config=_ct("mxfp4-pack-quantized", _args(4, "float", "group", False, group_size=32), None),
        hopper="Marlin FP4",
        ampere="Marlin FP4",
        since=(((0, 32), "Humming"),),
        k_multiple=128,
        n_multiple=64,
    ),
)

METHODS: dict[str, Method] = {m.id: m for m in _ALL}


def find_method(name: str) -> Method:
    """The method of an id, with ``+kv-fp8`` after it or not.

    Raises
    ------
    ScenarioError
        If the id is unknown; near ones are named.
    """
    base, plus, rest = name.partition("+")
    if base not in METHODS or (plus and plus + rest != KV_FP8):
        near = difflib.get_close_matches(name, [*METHODS, *(m + KV_FP8 for m in METHODS)], 3)
        hint = f"; did you mean {', '.join(near)}" if near else ""
        raise ScenarioError(
            f"method is {name!r}; must be one of {', '.join(METHODS)}, "
            f"with {KV_FP8} after it or not{hint}"
        )
    method = METHODS[base]
    if not plus:
        return method
    return replace(method, id=name, what=f"{method.what}; FP8 KV cache", kv_fp8=True)


def weight_bytes(method: Method, a: Architecture, tensor_parallel_size: int = 1) -> int:
    """Bytes of weights per GPU after loading.

    Embedding, LM head and norms stay in bf16 under every method. Row-parallel layers (o_proj,
    down_proj) are split along their inputs, the others along their outputs.
    """
    tp = tensor_parallel_size
    total = 0.0
    for name, k, n, shards in a.linears():
        weights = k * n / tp
        row_parallel = name in ("o_proj", "down_proj")
        outputs = n if row_parallel else n / tp
        total += weights * method.bits / 8
        if method.group > 0:
            total += weights / method.group * (method.scale_bytes + method.zero_bits / 8)
        elif method.group == 0:
            total += outputs * method.scale_bytes
        elif method.group == -1:
            total += shards * method.scale_bytes
        else:
            total += weights / (128 * 128) * method.scale_bytes
    return int(total * a.num_hidden_layers) + a.other_bytes(tp)


def check(
    method: Method,
    model: Model,
    gpu: GpuType,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.92,
) -> str | None:
    """Why this method cannot be measured on this model and GPU; None if it can."""
    a, tp = model.architecture, tensor_parallel_size
    if not method.kernel(gpu):
        return f"not supported on {gpu.name}: {method.refusal}"
    if method.kv_fp8 and gpu.capability < (8, 9):
        return (
            f"not supported on {gpu.name}: vLLM has no attention kernel for an FP8 KV cache below "
            "compute capability 8.9"
        )
    for name, count in (
        ("num_attention_heads", a.num_attention_heads),
        ("intermediate_size", a.intermediate_size),
    ):
        if count % tp:
            return f"{name} {count} cannot be divided over {tp} GPUs"
    if a.num_key_value_heads % tp and tp % a.num_key_value_heads:
        return f"num_key_value_heads {a.num_key_value_heads} cannot be divided over {tp} GPUs"
    for name, k, n, _ in a.linears():
        row_parallel = name in ("o_proj", "down_proj")
        k, n = (k // tp, n) if row_parallel else (k, n // tp)
        if k % method.k_multiple or n % method.n_multiple:
            return (
                f"{name} is {k} x {n} on each GPU; its kernel needs multiples of "
                f"{method.k_multiple} x {method.n_multiple}"
            )
    reason = contradiction(method, model)
    if reason is not None:
        return reason
    weights = weight_bytes(method, a, tp)
    # activations, CUDA context and graphs; vLLM needs some KV cache, too
    needed, usable = weights + 4 * GIB, int(gpu.memory_bytes * gpu_memory_utilization)
    if needed > usable:
        return (
            f"does not fit: weights of {weights / GIB:.1f} GiB on each GPU, of which "
            f"{usable / GIB:.1f} GiB can be used; use more GPUs (--tensor-parallel-size)"
        )
    return None


_QUANT_METHODS = {
    "fp8-w8a8": ("compressed-tensors", "fp8", "modelopt"),
    "fp8-w8a8-static": ("compressed-tensors", "fp8", "modelopt"),
    "fp8-block": ("fp8", "compressed-tensors"),
    "int8-w8a8": ("compressed-tensors", "quark"),
    "gptq-w4a16": ("gptq", "gptq_marlin", "compressed-tensors", "auto-round"),
    "awq-w4a16": ("awq", "awq_marlin", "compressed-tensors", "auto-round"),
    "gptq-w8a16": ("gptq", "gptq_marlin", "compressed-tensors"),
    "w4a8-fp8": ("compressed-tensors",),
    "nvfp4-w4a16": ("compressed-tensors", "modelopt", "modelopt_fp4"),
    "mxfp4-w4a16": ("compressed-tensors",),
}


def contradiction(method: Method, model: Model) -> str | None:
    """Why a checkpoint cannot be served under this method; None for an architecture alone."""
    if model.source is None:
        return None
    own, base = model.quantization_config, method.id.removesuffix(KV_FP8)
    if own is None:
        if base == "bf16" or method.online:
            return None
        return (
            f"{model.source} is not quantized and vLLM cannot make {base} while it loads: give a "
            f"checkpoint in this format, or --dummy-weights"
        )
    kind = str(own.get("quant_method"))
    if kind not in _QUANT_METHODS.get(base, ()):
        return f"{model.source} is quantized with {kind!r}, which is not {base}"
    bits = _weight_bits(own)
    if bits is not None and bits != method.bits:
        return f"{model.source} has {bits}-bit weights; {base} has {method.bits:g}"
    for have, want in zip(_compressed(own), _NUMBERS.get(base, ()), strict=False):
        if have != want and want:
            return f"{model.source} has {have}; {base} has {want}"
    return None


_INT, _FLOAT = "integer weights", "floating-point weights"
_KINDS = {"int": _INT, "float": _FLOAT}
_IN16, _IN8, _IN8_STATIC = "16-bit inputs", "quantized inputs", "inputs of static scales"
#: what compressed-tensors makes of weights and inputs; "" where vLLM takes either: on GPUs without
#: arithmetic in 4 bits it leaves inputs as they are
_NUMBERS = {
    "fp8-w8a8": (_FLOAT, _IN8),
    "fp8-w8a8-static": (_FLOAT, _IN8_STATIC),
    "fp8-block": (_FLOAT, _IN8),
    "int8-w8a8": (_INT, _IN8),
    "gptq-w4a16": (_INT, _IN16),
    "awq-w4a16": (_INT, _IN16),
    "gptq-w8a16": (_INT, _IN16),
    "w4a8-fp8": (_INT, _IN8),
    "nvfp4-w4a16": (_FLOAT, ""),
    "mxfp4-w4a16": (_FLOAT, ""),
}


def _groups(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """What compressed-tensors says of weights, and of inputs, by group of layers."""
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and isinstance(weights := group.get("weights"), dict):
            yield weights, group.get("input_activations")


def _compressed(config: dict[str, Any]) -> tuple[str, ...]:
    """Weights and inputs of a checkpoint of compressed-tensors; nothing where it does not say."""
    for weights, inputs in _groups(config):
        known = weights.get("type") in ("int", "float")
        if known and config.get("quant_method") == "compressed-tensors":
            kind = _IN16
            if isinstance(inputs, dict):
                kind = _IN8_STATIC if inputs.get("dynamic") is False else _IN8
            return _KINDS[weights["type"]], kind
    return ()


def _weight_bits(config: dict[str, Any]) -> int | None:
    if isinstance(config.get("bits"), int):
        return int(config["bits"])
    for weights, _ in _groups(config):
        if isinstance(bits := weights.get("num_bits"), int):
            return bits
    return 8 if str(config.get("quant_method")) == "fp8" else None
