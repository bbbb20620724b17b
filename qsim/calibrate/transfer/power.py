"""Power from bytes read and operations done.

    P = idle + active + e_w * bytes/s + e_kv * cache bytes/s + e_flop(method) * FLOP/s

``active`` (clocks and SMs at work) and the energies of a byte (of weights, and of the passes over
memory between products and over the logits), of a byte of KV cache (with the attention that it
takes) and of an operation are learnt on H200 from the measured profiles. On another GPU ``active``
scales with the TDP, the energy of a byte stays (HBM on all three), and ``e_flop`` scales with the
TDP over the tensor throughput, as both describe one chip at work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qsim.calibrate.transfer.compose import Composer
from qsim.calibrate.transfer.learn import Sample
from qsim.calibrate.transfer.ratios import kernels_of
from qsim.calibrate.transfer.spans import Spans, StepPoint, decode_points, prefill_points
from qsim.calibrate.transfer.specs import GpuSpec
from qsim.profile import Power

__all__ = ["PowerModel", "learn_power", "power_of"]

#: time constant of the power regulator, s; as in the measured profiles
_TAU_S = 0.05


@dataclass(frozen=True)
class PowerModel:
    """What was learnt on one GPU."""

    spec: GpuSpec
    active_w: float
    j_per_byte: float
    j_per_kv_byte: float
    j_per_flop: dict[str, float]
    #: passes over the logits in a step of decodes, as learnt from its time
    logit_passes: float = 0.0

    def flop_j(self, method: str) -> float:
        """J a floating-point operation of a method's products."""
        for name in (*kernels_of(method), "bf16"):
            if name in self.j_per_flop:
                return self.j_per_flop[name]
        return float(np.median(list(self.j_per_flop.values())))

    def watts(self, spec: GpuSpec, method: str, work: tuple[float, float, float]) -> float:
        """Power of one GPU above idle, W, uncapped; ``work`` is that of :func:`work` a second."""
        bytes_s, kv_bytes_s, flop_s = work
        tdp = spec.tdp_w / self.spec.tdp_w
        flop_j = self.flop_j(method) * tdp / (spec.bf16_flops / self.spec.bf16_flops)
        return (
            self.active_w * tdp
            + self.j_per_byte * bytes_s
            + self.j_per_kv_byte * kv_bytes_s
            + flop_j * flop_s
        )


def work(
    composer: Composer,
    point: StepPoint,
    weights: float,
    kv_bytes: float,
    logit_passes: float = 0.0,
) -> tuple[float, float, float]:
    """Bytes that one GPU reads and writes in a step, bytes of KV cache, and operations."""
    tokens = point.rows or point.prefill_tokens
    a, tp = composer.architecture, composer.tensor_parallel_size
    pairs = point.context_tokens or tokens * (tokens + 1) / 2
    width = a.num_attention_heads * a.head_dim / tp
    flops: float = 2 * composer.weights() * composer.layers * tokens
    flops += 4 * width * composer.layers * pairs
    passed = composer.moved_ms(tokens, "bf16") + logit_passes * composer.logits_ms(point.rows)
    moved = passed / 1e3 * composer.spec.bandwidth_bytes_s
    return weights + moved, kv_bytes * (point.context_tokens or tokens), flops


def learn_power(samples: Sequence[Sample], spec: GpuSpec, logit_passes: float = 0.0) -> PowerModel:
    """Fit the model to measured profiles, by non-negative least squares of relative errors."""
    from scipy.optimize import nnls

    methods = sorted({s.method for s in samples})
    rows, targets = [], []
    for s in samples:
        p, m, spans = s.profile.power, s.profile.memory, Spans(s.profile)
        tp = s.composer.tensor_parallel_size
        for point in _points((m.num_gpu_blocks - 1) * m.block_size):
            t = spans.ms(point) / 1e3
            watts = p.busy_w / tp + _work_j(p, point) / t / tp
            most = (p.cap_w - p.idle_w) / tp
            if watts > most:  # the cap holds it there, at a lower clock
                watts, t = most, t * (1 + getattr(s.profile.latency.throttle, point.mode))
            read, cache, flops = work(
                s.composer, point, m.weight_bytes, m.kv_bytes_per_token, logit_passes
            )
            row = [1.0, read / t, cache / t]
            row += [flops / t if s.method == x else 0.0 for x in methods]
            rows.append([v / watts for v in row])
            targets.append(1.0)
    scale = np.abs(rows).max(axis=0)
    x, _ = nnls(np.array(rows) / scale, np.array(targets))
    x = x / scale
    active, byte, kv, *flops_j = x.tolist()
    by_method = dict(zip(methods, flops_j, strict=True))
    return PowerModel(spec, active, byte, kv, by_method, logit_passes)


def power_of(
    model: PowerModel,
    composer: Composer,
    method: str,
    span_ms: Callable[[StepPoint], float],
    weights: float,
    kv_bytes: float,
    kv_tokens: int,
) -> Power:
    """A profile's power: its form fitted to the model's watts over decode and prefill steps."""
    from scipy.optimize import nnls

    spec, tp = composer.spec, composer.tensor_parallel_size
    rows = []
    for point in _points(kv_tokens):
        t = span_ms(point) / 1e3
        done = work(composer, point, weights, kv_bytes, model.logit_passes)
        joules = tp * t * model.watts(spec, method, (done[0] / t, done[1] / t, done[2] / t))
        n = point.prefill_tokens
        row = [t, float(n), float(point.rows), float(point.context_tokens), n * (n + 1) / 2]
        rows.append([v / joules for v in row])
    scale = np.abs(rows).max(axis=0)
    x, _ = nnls(np.array(rows) / scale, np.ones(len(rows)))
    busy, prefill, decode, context, pair = (x / scale).tolist()

    def six(value: float) -> float:
        return float(f"{value:.6g}")

    return Power(
        idle_w=six(spec.idle_w * tp),
        busy_w=six(busy),
        j_per_prefill_token=six(prefill),
        j_per_decode_token=six(decode),
        j_per_context_token=six(context),
        j_per_pair=six(pair),
        cap_w=spec.tdp_w * tp,
        tau_s=_TAU_S,
    )


def _work_j(p: Power, point: StepPoint) -> float:
    n = point.prefill_tokens
    return (
        p.j_per_prefill_token * n
        + p.j_per_decode_token * point.rows
        + p.j_per_context_token * point.context_tokens
        + p.j_per_pair * n * (n + 1) / 2
    )


def _points(kv_tokens: int) -> list[StepPoint]:
    return [
        *(p for p in decode_points(kv_tokens) if p.rows <= 256),
        *(p for p in prefill_points() if p.prefill_tokens >= 256),
    ]
