"""A rough model of a server's speed: it sizes loads, and is corrected by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qsim.calibrate.recorder.read import StepRow
from qsim.catalog.gpus import GpuType
from qsim.catalog.methods import Method, weight_bytes
from qsim.catalog.models import Architecture

#: dense bf16 FLOP/s and memory bytes/s that a well-tuned server reaches, by compute capability
_REACHED = {(9, 0): (5.7e14, 4.0e12), (8, 0): (2.2e14, 1.7e12)}


@dataclass(frozen=True)
class Speed:
    """Times in ms: decode step = ``step + per_row * rows + per_context * context tokens``; prefill
    = ``per_token`` for each token and ``per_pair`` for each (query, key) pair."""

    step_ms: float
    per_row_ms: float
    per_context_ms: float
    per_token_ms: float
    per_pair_ms: float
    #: from the client to the engine and back, around one request
    round_trip_ms: float = 8.0

    @classmethod
    def guess(cls, a: Architecture, method: Method, gpu: GpuType, tp: int) -> Speed:
        """Before anything was measured: from bytes and FLOPs."""
        flops, bandwidth = _REACHED[(9, 0) if gpu.capability >= (9, 0) else (8, 0)]
        kernel = method.kernel(gpu).lower()
        eight_bit = "weights" not in kernel and any(x in kernel for x in ("fp8", "int8", "w4a8"))
        rate = flops * (1.5 if eight_bit else 1.0) * (tp * 0.85 if tp > 1 else 1.0)
        per_token_ms = 2e3 * a.linear_parameters / rate
        head_bytes = a.num_attention_heads * a.head_dim * a.num_hidden_layers
        return cls(
            step_ms=1e3 * weight_bytes(method, a, tp) / bandwidth + 0.03 * a.num_hidden_layers,
            per_row_ms=0.25 * per_token_ms,
            per_context_ms=1e3 * a.kv_bytes_per_token(method.kv_bytes_per_value, tp) / bandwidth,
            per_token_ms=per_token_ms,
            per_pair_ms=4e3 * head_bytes / tp / (0.7 * flops),
        )

    def decode_ms(self, rows: float, context_tokens: float = 0.0) -> float:
        """One decode step of ``rows`` requests with ``context_tokens`` in all."""
        return self.step_ms + self.per_row_ms * rows + self.per_context_ms * context_tokens

    def prefill_ms(self, tokens: float, prompt: float | None = None) -> float:
        """Prefill of ``tokens`` in prompts of length ``prompt`` (one prompt by default)."""
        length = tokens if prompt is None else prompt
        return tokens * (self.per_token_ms + self.per_pair_ms * length / 2)

    def capacity_rps(
        self, prompt: float, output: float, kv_tokens: int, max_rows: int = 256
    ) -> float:
        """Requests per second at which the server saturates.

        Every request needs its prefill, and its share of ``output`` decode steps of a large batch.
        """
        context = prompt + output / 2
        rows = max(1.0, min(max_rows, 0.8 * kv_tokens / (prompt + output)))
        share_ms = self.decode_ms(rows, rows * context) / rows
        capped = 1.07  # sustained load runs at the power cap
        return 1e3 / (capped * (self.prefill_ms(prompt) + output * share_ms))

    def observed(self, steps: Sequence[StepRow]) -> Speed:
        """Corrected by recorded steps; whatever they do not show stays."""
        spans = [s for s in steps if s.gpu_ms is not None]
        decodes = [s for s in spans if not s.chunks and s.num_decode <= 512]
        prefills = [s for s in spans if sum(n for n, _ in s.chunks) >= 512]
        result = self
        if len(decodes) >= 50:
            y = np.array([s.gpu_ms for s in decodes])
            columns = [[1.0, s.num_decode, s.decode_context_tokens] for s in decodes]
            base, row, context = np.maximum(_least_squares(np.array(columns), y), 0.0)
            if base > 0:
                result = replace(
                    result,
                    step_ms=float(base),
                    per_row_ms=float(row),
                    per_context_ms=float(context) or self.per_context_ms,
                )
        if len(prefills) >= 5:
            y = np.array([s.gpu_ms for s in prefills])
            tokens = np.array([s.num_decode + sum(n for n, _ in s.chunks) for s in prefills])
            pairs = np.array([sum(n * (c + n / 2) for n, c in s.chunks) for s in prefills])
            known = pairs * self.per_pair_ms
            per_token = float(np.sum(np.maximum(y - known, 0.2 * y)) / np.sum(tokens))
            result = replace(result, per_token_ms=per_token)
        return result


def _least_squares(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    weights = 1.0 / np.maximum(y, 1e-6)  # relative errors
    solution, *_ = np.linalg.lstsq(columns * weights[:, None], y * weights, rcond=None)
    return np.asarray(solution)
