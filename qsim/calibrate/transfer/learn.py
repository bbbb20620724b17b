"""What kernels do not explain, learnt where both tables and measured profiles exist.

    span = g * linear + attention + LM head + r * all-reduce + u * layers + v * moved + s * logits

with ``g`` (1 but for steps without a graph: what runs between big products grows with them), ``u``
(gaps between kernels, and small kernels, of which methods have different numbers), ``v`` (passes
over memory between the products) and ``s`` (passes over the logits) for each execution mode, by
non-negative least squares of relative errors; and with ``r`` from what servers on several GPUs take
beside that, once the rest is known (1 if none was measured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from qsim.calibrate.transfer.compose import TABLE_OF, Composer
from qsim.calibrate.transfer.spans import (
    MODES,
    Spans,
    StepPoint,
    decode_points,
    prefill_points,
)
from qsim.catalog.methods import find_method
from qsim.errors import CalibrationError
from qsim.profiles.schema import Profile

#: the GPU whose measured profiles teach what kernel tables do not hold
LEARNT_ON = "h200_sxm"


@dataclass(frozen=True)
class ModeOverhead:
    """Coefficients of one execution mode."""

    linear: float
    per_layer_ms: float
    moved: float
    logits: float
    all_reduce: float = 1.0
    #: what other methods with a table take beside the ``per_layer_ms`` of bf16
    more_per_layer_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Overheads:
    """What was learnt: coefficients by mode, and ratios of mixed steps to the tables."""

    modes: Mapping[str, ModeOverhead]
    #: slope by decode context in mixed steps, over that of pure decode steps
    mixed_context: float
    #: ms a decode in mixed steps, over the slope of decode attention by requests
    mixed_decode: float
    #: slope by pairs in steps without a graph, over the table's
    pair: float
    #: ms a prefill chunk and layer
    chunk_per_layer_ms: float
    #: the profiles that taught it
    profiles: tuple[str, ...]

    def span_ms(self, composer: Composer, point: StepPoint, method: str, linear_ms: float) -> float:
        """The composed span of a step, ms, given the time of its products."""
        mode = self.modes[point.mode]
        tokens = point.rows or point.prefill_tokens
        fixed = fixed_ms(composer, point) + mode.all_reduce * all_reduce_ms(composer, point)
        moved = composer.moved_ms(tokens, method)
        return (
            mode.linear * linear_ms
            + fixed
            + (mode.per_layer_ms + mode.more_per_layer_ms.get(method, 0.0)) * composer.layers
            + mode.moved * moved
            + mode.logits * composer.logits_ms(max(1, point.rows))
        )


@dataclass(frozen=True)
class Sample:
    """A measured profile and the kernels of its architecture."""

    profile: Profile
    composer: Composer

    @property
    def method(self) -> str:
        """Its method without the KV cache's type."""
        return base_method(self.profile.identity.method)

    @cached_property
    def spans(self) -> Spans:
        return Spans(self.profile)


def base_method(method: str) -> str:
    """The method without ``+kv-fp8``."""
    return method.partition("+")[0]


def fixed_ms(composer: Composer, point: StepPoint) -> float:
    """Attention and LM head of a step, ms."""
    if point.rows:
        attention = composer.decode_attention_ms(point.rows, point.context_tokens)
        return attention + composer.head_ms(point.rows)
    return composer.prefill_attention_ms(point.prefill_tokens) + composer.head_ms(1)


def all_reduce_ms(composer: Composer, point: StepPoint) -> float:
    """All-reduces of a step by the kernel table, ms."""
    return composer.all_reduce_ms(point.rows or point.prefill_tokens, point.mode != "eager")


def points_of(profile: Profile) -> list[StepPoint]:
    """The steps on which a measured profile is compared."""
    memory = profile.memory
    return [*decode_points((memory.num_gpu_blocks - 1) * memory.block_size), *prefill_points()]


def learn_overheads(samples: Sequence[Sample]) -> Overheads:
    """Fit the coefficients to measured profiles of methods whose products have a table.

    Raises
    ------
    CalibrationError
        If there is none.
    """
    from scipy.optimize import nnls

    samples = [s for s in samples if s.method in TABLE_OF]
    if not samples:
        raise CalibrationError("nothing to learn from: no measured profile of bf16 or fp8-w8a8")
    methods = [m for m in TABLE_OF if any(s.method == m for s in samples)]
    rows: dict[str, list[list[float]]] = {m: [] for m in MODES}
    targets: dict[str, list[float]] = {m: [] for m in MODES}
    several = [s for s in samples if s.composer.tensor_parallel_size > 1]
    for s in [s for s in samples if s.composer.tensor_parallel_size == 1] or several:
        spans, table = s.spans, TABLE_OF[s.method]
        for p in points_of(s.profile):
            measured = spans.ms(p)
            tokens = p.rows or p.prefill_tokens
            linear = s.composer.linear_ms(tokens, table)
            rest = measured - fixed_ms(s.composer, p) - all_reduce_ms(s.composer, p)
            free = p.mode == "eager"
            rows[p.mode].append(
                [
                    linear / measured if free else 0.0,
                    s.composer.moved_ms(tokens, s.method) / measured,
                    s.composer.logits_ms(p.rows) / measured,
                    *(s.composer.layers / measured * (s.method == m) for m in methods),
                ]
            )
            targets[p.mode].append((rest - linear) / measured)
    modes = {}
    for mode in MODES:
        x, _ = nnls(np.array(rows[mode]), np.array(targets[mode]))
        linear, moved, logits, *per_layer = (float(v) for v in x)
        more = {m: u - per_layer[0] for m, u in zip(methods[1:], per_layer[1:], strict=True)}
        modes[mode] = ModeOverhead(
            1.0 + linear, per_layer[0], moved, logits, more_per_layer_ms=more
        )
    context: list[float] = []
    decode: list[float] = []
    pair: list[float] = []
    chunk: list[float] = []
    for s in samples:
        latency = s.profile.latency
        slope = float(np.median(latency.decode.ms_per_context_token[0]))
        context += [
            latency.piecewise.ms_per_decode_context_token / slope,
            latency.eager.ms_per_decode_context_token / slope,
        ]
        decode.append(latency.piecewise.ms_per_decode / s.composer.ms_per_decode())
        pair.append(latency.eager.ms_per_pair / s.composer.ms_per_pair())
        chunk += [
            latency.piecewise.ms_per_chunk / s.composer.layers,
            latency.eager.ms_per_chunk / s.composer.layers,
        ]
    learnt = Overheads(
        modes,
        float(np.median(context)),
        float(np.median(decode)),
        float(np.median(pair)),
        float(np.median(chunk)),
        tuple(s.profile.id for s in samples),
    )
    ratios = _all_reduce_ratios(several, learnt)
    return replace(
        learnt,
        modes={m: replace(x, all_reduce=ratios.get(m, x.all_reduce)) for m, x in modes.items()},
    )


def _all_reduce_ratios(samples: Sequence[Sample], learnt: Overheads) -> dict[str, float]:
    """Measured time of all-reduces over the table's, by mode; the median over steps."""
    ratios: dict[str, list[float]] = {}
    for s in samples:
        spans, table = s.spans, TABLE_OF[s.method]
        for p in points_of(s.profile):
            linear = s.composer.linear_ms(p.rows or p.prefill_tokens, table)
            given = all_reduce_ms(s.composer, p)
            more = spans.ms(p) - learnt.span_ms(s.composer, p, s.method, linear)
            ratios.setdefault(p.mode, []).append(1.0 + more / given)
    return {mode: max(0.0, float(np.median(r))) for mode, r in ratios.items()}


def kv_dtype(method: str) -> str:
    """The attention tables' name of a method's KV cache type."""
    return "fp8" if find_method(method).kv_fp8 else "bfloat16"
