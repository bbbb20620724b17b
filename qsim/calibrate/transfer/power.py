"""Power from bytes read and operations done.

    P = idle + active + e_b * bytes/s + e_kv * cache bytes/s + e_flop(method) * FLOP/s
        + e_weight(method) * weights/s

``active`` (clocks and SMs at work) and the energies of a byte (of weights, and of the passes over
memory between products and over the logits), of a byte of KV cache (with the attention that it
takes), of an operation and, under methods without a kernel table, of a weight (unpacking it, and
filling its tile however few rows a step has) are learnt on H200 from the measured profiles. On
another GPU ``active`` scales with the TDP, the energy of a byte stays (HBM on all three), and those
of an operation and of a weight scale with the TDP over the tensor throughput, as all describe one
chip at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qsim.calibrate.fit.power import rounded
from qsim.calibrate.transfer.compose import TABLE_OF, Composer
from qsim.calibrate.transfer.learn import Sample
from qsim.calibrate.transfer.ratios import kernels_of
from qsim.calibrate.transfer.spans import StepPoint, decode_points, prefill_points
from qsim.catalog.gpus import GpuType
from qsim.profiles.schema import Power

#: time constant of the power regulator, s; as in the measured profiles
_TAU_S = 0.05


@dataclass(frozen=True)
class PowerModel:
    """What was learnt on one GPU."""

    spec: GpuType
    active_w: float
    j_per_byte: float
    j_per_kv_byte: float
    j_per_flop: dict[str, float]
    j_per_weight: dict[str, float]
    #: passes over the logits in a step of decodes, as learnt from its time
    logit_passes: float = 0.0

    def watts(self, spec: GpuType, method: str, work: Work, step_s: float) -> float:
        """Power of one GPU above idle, W, uncapped, while steps of ``step_s`` do this work."""
        tdp = spec.tdp_w / self.spec.tdp_w
        chip_j = _of(method, self.j_per_flop) * work.flops
        chip_j += _of(method, self.j_per_weight) * work.weights
        chip_j *= tdp / (spec.bf16_flops / self.spec.bf16_flops)
        memory_j = self.j_per_byte * work.bytes + self.j_per_kv_byte * work.kv_bytes
        return self.active_w * tdp + (memory_j + chip_j) / step_s


def _of(method: str, energies: dict[str, float]) -> float:
    """A method's energy, J; of one that was not measured that of the same kernels, or bf16's."""
    for name in (*kernels_of(method), "bf16"):
        if name in energies:
            return energies[name]
    return float(np.median(list(energies.values())))


@dataclass(frozen=True)
class Work:
    """What one GPU does in a step; ``bytes`` leaves out those of the KV cache."""

    weights: float
    bytes: float
    kv_bytes: float
    flops: float


def work(
    composer: Composer,
    point: StepPoint,
    weight_bytes: float,
    kv_bytes_per_token: float,
    logit_passes: float = 0.0,
) -> Work:
    """Weights of the products, bytes read and written without and in the KV cache, operations."""
    tokens = point.rows or point.prefill_tokens
    a, tp = composer.architecture, composer.tensor_parallel_size
    pairs = point.context_tokens or tokens * (tokens + 1) / 2
    width = a.num_attention_heads * a.head_dim / tp
    weights = composer.weights() * composer.layers
    flops: float = 2 * weights * tokens
    flops += 4 * width * composer.layers * pairs
    passed = composer.moved_ms(tokens, "bf16") + logit_passes * composer.logits_ms(point.rows)
    moved = passed / 1e3 * composer.spec.bandwidth_bytes_s
    kv_bytes = kv_bytes_per_token * (point.context_tokens or tokens)
    return Work(weights, weight_bytes + moved, kv_bytes, flops)


def learn_power(samples: Sequence[Sample], spec: GpuType, logit_passes: float = 0.0) -> PowerModel:
    """Fit the model to measured profiles, by non-negative least squares of relative errors.

    First what all share, with an energy of an operation for each method; then, for each method
    without a kernel table alone, its own energies of an operation and of a weight.
    """
    seen = [step for s in samples for step in _seen(s, logit_passes)]
    methods = sorted({method for method, *_ in seen})
    rows = [
        [t, d.bytes, d.kv_bytes, *(d.flops if method == x else 0.0 for x in methods)]
        for method, d, t, _ in seen
    ]
    joules = [j for *_, j in seen]
    active, byte, kv, *own = _solve(rows, joules, joules)
    flop_j = dict(zip(methods, own, strict=True))
    weight_j = dict.fromkeys(methods, 0.0)
    for name in methods:
        if name in TABLE_OF:
            continue
        mine = [(d, t, j) for method, d, t, j in seen if method == name]
        rest = [j - active * t - byte * d.bytes - kv * d.kv_bytes for d, t, j in mine]
        flop_j[name], weight_j[name] = _solve(
            [[d.flops, d.weights] for d, _, _ in mine], rest, [j for _, _, j in mine]
        )
    return PowerModel(spec, active, byte, kv, flop_j, weight_j, logit_passes)


def _seen(s: Sample, logit_passes: float) -> Iterator[tuple[str, Work, float, float]]:
    """Steps of a measured profile: the method, their work, s, and J above idle of one GPU."""
    p, m, spans = s.profile.power, s.profile.memory, s.spans
    tp = s.composer.tensor_parallel_size
    most = (p.cap_w - p.idle_w) / tp
    for point in _points((m.num_gpu_blocks - 1) * m.block_size):
        t = spans.ms(point) / 1e3
        watts = p.busy_w / tp + step_j(p, point) / t / tp
        if watts > most:  # the cap holds it there, at a lower clock
            watts, t = most, t * (1 + getattr(s.profile.latency.throttle, point.mode))
        done = work(s.composer, point, m.weight_bytes, m.kv_bytes_per_token, logit_passes)
        yield s.method, done, t, watts * t


def _solve(rows: Sequence[Sequence[float]], y: Sequence[float], of: Sequence[float]) -> list[float]:
    """Non-negative coefficients of the columns that give y, by errors relative to ``of``."""
    from scipy.optimize import nnls

    weight = 1.0 / np.array(of)
    a = np.array(rows) * weight[:, None]
    scale = np.abs(a).max(axis=0)
    x, _ = nnls(a / scale, np.array(y) * weight)
    result: list[float] = (x / scale).tolist()
    return result


def power_of(
    model: PowerModel,
    composer: Composer,
    method: str,
    span_ms: Callable[[StepPoint], float],
    weight_bytes: float,
    kv_bytes_per_token: float,
    kv_tokens: int,
) -> Power:
    """A profile's power: its form fitted to the model's watts over decode and prefill steps."""
    spec, tp = composer.spec, composer.tensor_parallel_size
    rows, targets = [], []
    for point in _points(kv_tokens):
        t = span_ms(point) / 1e3
        done = work(composer, point, weight_bytes, kv_bytes_per_token, model.logit_passes)
        joules = tp * t * model.watts(spec, method, done, t)
        n = point.prefill_tokens
        row = [t, float(n), float(point.rows), float(point.context_tokens), n * (n + 1) / 2]
        rows.append(row)
        targets.append(joules)
    busy, prefill, decode, context, pair = _solve(rows, targets, targets)

    power = Power(
        idle_w=spec.idle_w * tp,
        busy_w=busy,
        j_per_prefill_token=prefill,
        j_per_decode_token=decode,
        j_per_context_token=context,
        j_per_pair=pair,
        cap_w=spec.tdp_w * tp,
        tau_s=_TAU_S,
    )
    return rounded(power)


def step_j(p: Power, point: StepPoint) -> float:
    """Energy of a step's work by a profile, J."""
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
