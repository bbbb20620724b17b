"""The kernels of an architecture in one engine step.

A step of T tokens runs, in each layer, four matrix products (qkv, o, gate_up, down), attention and,
with tensor parallelism, two all-reduces; after the last layer the LM head for one row per request.
Everything between them (norms, RoPE, activation, quantization of activations, cache writes) moves
``moved_bytes`` per token and layer through memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from qsim.calibrate.transfer.kernels import KernelTables
from qsim.catalog.gpus import GpuType
from qsim.catalog.models import Architecture

#: methods whose matrix products have a table on Hopper, and its name there. The table of fp8_block
#: is not used: below 1,024 rows it holds the time of launching the kernel from the host.
TABLE_OF = {"bf16": "bfloat16", "fp8-w8a8": "fp8", "fp8-w8a8-static": "fp8"}

#: methods that quantize activations before each product: 2 bytes are read and 1 is written
_QUANTIZES_INPUTS = ("fp8-w8a8", "fp8-w8a8-static", "fp8-block", "int8-w8a8", "w4a8-fp8")


@dataclass(frozen=True)
class Composer:
    """Kernel times of one architecture on one GPU (each of ``tensor_parallel_size``), in ms."""

    tables: KernelTables
    spec: GpuType
    architecture: Architecture
    tensor_parallel_size: int = 1
    kv_dtype: str = "bfloat16"

    @property
    def layers(self) -> int:
        return self.architecture.num_hidden_layers

    @property
    def _heads(self) -> tuple[int, int, int]:
        a, tp = self.architecture, self.tensor_parallel_size
        return a.num_attention_heads // tp, max(1, a.num_key_value_heads // tp), a.head_dim

    def shapes(self) -> list[tuple[str, int, int]]:
        """Name, inputs and outputs of a layer's four products on one GPU."""
        tp = self.tensor_parallel_size
        return [
            (name, k // tp, n) if name in ("o_proj", "down_proj") else (name, k, n // tp)
            for name, k, n, _ in self.architecture.linears()
        ]

    def weights(self) -> int:
        """Weights of one layer's products on one GPU."""
        return sum(k * n for _, k, n in self.shapes())

    def linear_ms(self, rows: int, table: str = "bfloat16") -> float:
        """All products of all layers but the LM head."""
        gemm = self.tables.gemm[table]
        return self.layers * sum(gemm.ms(rows, k, n) for _, k, n in self.shapes())

    def head_ms(self, requests: int) -> float:
        """The LM head, in 16 bits under every method."""
        a = self.architecture
        n = -(-a.vocab_size // self.tensor_parallel_size)
        return self.tables.gemm["bfloat16"].ms(requests, a.hidden_size, n)

    def decode_attention_ms(self, requests: int, context_tokens: float) -> float:
        """Attention of ``requests`` decodes over ``context_tokens`` in all."""
        table = self.tables.decode_attention[self.kv_dtype]
        each = max(1.0, context_tokens / requests)
        return self.layers * table.ms(*self._heads, requests, each)

    def ms_per_decode(self) -> float:
        """Attention's slope in decodes at next to no context."""
        return (self.decode_attention_ms(128, 128) - self.decode_attention_ms(1, 1)) / 127

    def prefill_attention_ms(self, tokens: int) -> float:
        """Attention of one whole prompt."""
        return self.layers * self.tables.prefill_attention[self.kv_dtype].ms(*self._heads, tokens)

    def ms_per_pair(self) -> float:
        """Attention's slope in (query, key) pairs of prefill chunks."""
        return self.layers * self.tables.prefill_attention[self.kv_dtype].ms_per_pair(*self._heads)

    def all_reduce_ms(self, tokens: int, graph: bool) -> float:
        """Two all-reduces a layer."""
        size = tokens * self.architecture.hidden_size * 2
        return 2 * self.layers * self.tables.all_reduce.ms(self.tensor_parallel_size, size, graph)

    def moved_ms(self, tokens: int, method: str) -> float:
        """Time to move what norms, RoPE, activation and quantization read and write.

        Two norms with residual (read 2, write 2 values of the hidden size each), RoPE on q and k,
        gate * up (read 2, write 1 of the intermediate size), at the GPU's bandwidth.
        """
        a, tp = self.architecture, self.tensor_parallel_size
        h, f = a.hidden_size, a.intermediate_size / tp
        q = a.num_attention_heads * a.head_dim / tp
        kv = a.num_key_value_heads * a.head_dim / tp
        moved = 2 * (8 * h + 2 * (q + kv) + 3 * f)
        if method in _QUANTIZES_INPUTS:
            moved += 3 * (2 * h + q + f)
        return self.layers * tokens * moved / self.spec.bandwidth_bytes_s * 1e3

    def logits_ms(self, requests: int) -> float:
        """Time to pass once over the logits in 32 bits (each GPU holds all of them)."""
        return self.bandwidth_ms(4.0 * requests * self.architecture.vocab_size)

    def bandwidth_ms(self, size_bytes: float) -> float:
        """Time to read this much once."""
        return size_bytes / self.spec.bandwidth_bytes_s * 1e3
