"""What was measured on a server, in a row of numbers: recorded steps only, no model of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.arrays import BoolArray
from qsim.calibrate.fit.span import GRAPH_SIZES
from qsim.calibrate.recordings.data import SKIP, Recording

BATCHES = (1, 16, 64, 256)
#: fewer steps of a kind than this are no measurement of it
_LEAST_STEPS = 10
#: large prefill steps at the power limit differ by 1 to 3%, and those of a 70B model take a second
_LEAST_PREFILLS = 5
#: NVML counts energy in steps of some 20 to 100 ms: no energy is taken from less than this, s
_LEAST_ENERGY_S = 1.0


@dataclass(frozen=True)
class DecodeTime:
    """Decode steps of one batch size: median time from result to result, and of the GPU alone."""

    step_ms: float
    gpu_ms: float
    steps: int
    #: mean context of a request, tokens
    context_tokens: float
    phase: str


@dataclass(frozen=True)
class MeasuredRow:
    """One server. What its loads did not show is None, or missing from ``decode``.

    ``prefill_tokens_per_s`` is that of steps of prefill alone with at least half of the token
    budget, back to back, and ``prefill_mj_per_token`` their energy. ``decode_mj_per_token`` is the
    energy of the steps of decodes alone, under CUDA graphs, that follow the last prefill of a
    burst, over their tokens; ``decode_mean_batch`` is their mean size.
    ``joules_per_output_token`` is the energy over the output tokens of the phase ``energy_phase``,
    prefill and idling included. Energy is that of all GPUs.
    """

    name: str
    gpu: str
    model: str
    method: str
    tensor_parallel: int
    decode: Mapping[int, DecodeTime]
    prefill_tokens_per_s: float | None
    prefill_mj_per_token: float | None
    decode_mj_per_token: float | None
    decode_mean_batch: float | None
    joules_per_output_token: float | None
    energy_phase: str | None
    kv_cache_tokens: int
    weights_gib: float | None

    def to_dict(self) -> dict[str, Any]:
        data = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "decode"}
        return {**data, "decode": {str(k): vars(v) for k, v in self.decode.items()}}


def measured_row(
    recording: Recording,
    batches: Sequence[int] = BATCHES,
    energy_phases: Sequence[str] = ("val_moderate",),
) -> MeasuredRow:
    """Summarise a recording.

    ``batches`` are decode batch sizes: of the phases that show one, bursts come first (they walk
    through all sizes under one load), then the one of the shortest contexts. The first of
    ``energy_phases`` that the recording has is the one that energy is taken from.
    """
    server = recording.server
    decode = {b: d for b in batches if (d := _decode(recording, b)) is not None}
    energy_phase, joules = _energy(recording, energy_phases)
    prefill = _prefills(recording)
    decode_mj, mean_batch = _decode_energy(recording)
    return MeasuredRow(
        name=recording.name,
        gpu=server.gpu,
        model=server.model,
        method=server.method,
        tensor_parallel=server.tensor_parallel,
        decode=decode,
        prefill_tokens_per_s=_prefill_rate(recording, prefill),
        prefill_mj_per_token=_prefill_energy(recording, prefill),
        decode_mj_per_token=decode_mj,
        decode_mean_batch=mean_batch,
        joules_per_output_token=joules,
        energy_phase=energy_phase,
        # one block is kept empty by vLLM
        kv_cache_tokens=(server.num_gpu_blocks - 1) * server.block_size,
        weights_gib=server.weights_gib,
    )


def _used(recording: Recording) -> BoolArray:
    """Whether a step and the one before it are in one phase that is not skipped, shape (n,)."""
    phase = recording.steps.phase
    skip = np.array([p.use == SKIP for p in recording.phases])
    same = np.zeros(len(phase), dtype=bool)
    same[1:] = phase[1:] == phase[:-1]
    same &= ~skip[phase]
    return same


def _decode(recording: Recording, batch: int) -> DecodeTime | None:
    s = recording.steps
    pure = (s.num_chunks == 0) & (s.decodes == batch)
    wanted = pure & _used(recording)
    wanted[1:] &= pure[:-1]  # the time since a step of another kind is not that of this kind
    period_ms = np.diff(s.update_s, prepend=np.nan) * 1e3
    found = []
    for phase in np.unique(s.phase[wanted]):
        m = wanted & (s.phase == phase)
        if m.sum() >= _LEAST_STEPS:
            context = float(np.mean(s.decode_context_tokens[m])) / batch
            found.append((recording.phases[phase].load != "burst", context, phase, m))
    if not found:
        return None
    _, context, phase, m = min(found, key=lambda x: x[:2])
    return DecodeTime(
        step_ms=round(float(np.median(period_ms[m])), 4),
        gpu_ms=round(float(np.median(s.gpu_ms[m])), 4),
        steps=int(m.sum()),
        context_tokens=round(context, 1),
        phase=recording.phases[phase].label,
    )


def _prefills(recording: Recording) -> BoolArray:
    """Large steps of prefill alone that follow another such step, shape (n,)."""
    s = recording.steps
    full = (s.decodes == 0) & (s.prefill_tokens >= recording.server.max_num_batched_tokens / 2)
    wanted: BoolArray = full & _used(recording)
    wanted[1:] &= full[:-1]
    return wanted


def _prefill_rate(recording: Recording, wanted: BoolArray) -> float | None:
    s = recording.steps
    if wanted.sum() < _LEAST_PREFILLS:
        return None
    seconds = np.diff(s.update_s, prepend=np.nan)[wanted].sum()
    return float(round(s.prefill_tokens[wanted].sum() / seconds, 1))


def _prefill_energy(recording: Recording, wanted: BoolArray) -> float | None:
    """mJ per prompt token of the rows of such steps that last long enough."""
    s = recording.steps
    edges = np.flatnonzero(np.diff(np.concatenate(([0], wanted.astype(int), [0]))))
    joules, tokens = 0.0, 0
    for first, end in edges.reshape(-1, 2):
        used = _joules(recording, s.update_s[first - 1], s.update_s[end - 1])
        if used is not None:
            joules += used
            tokens += int(s.prefill_tokens[first:end].sum())
    return round(joules / tokens * 1e3, 3) if tokens else None


def _decode_energy(recording: Recording) -> tuple[float | None, float | None]:
    """mJ per decoded token of a burst after its last prefill, and the mean batch."""
    s = recording.steps
    graph_max = max(recording.server.graph_sizes or GRAPH_SIZES)
    best: tuple[int, float, float] | None = None
    for i, phase in enumerate(recording.phases):
        if phase.load != "burst" or phase.use == SKIP:
            continue
        of_phase = np.flatnonzero(s.phase == i)
        prefills = np.flatnonzero(s.num_chunks[of_phase] > 0)
        alone = of_phase[prefills[-1] + 1 :] if len(prefills) else of_phase
        alone = alone[s.decodes[alone] <= graph_max]  # beyond it, the host sets the pace
        if len(alone) < 2:
            continue
        used = _joules(recording, s.update_s[alone[0]], s.update_s[alone[-1]])
        tokens = int(s.decodes[alone[1:]].sum())
        if used is not None and (best is None or len(alone) > best[0]):
            best = len(alone), used / tokens * 1e3, tokens / (len(alone) - 1)
    return (None, None) if best is None else (round(best[1], 3), round(best[2], 1))


def _joules(recording: Recording, begin_s: float, end_s: float) -> float | None:
    """What the energy counters say between two times; None if that is too short."""
    if end_s - begin_s < _LEAST_ENERGY_S:
        return None
    power = recording.power
    at_begin, at_end = np.interp([begin_s, end_s], power.t_s, power.energy_j)
    return float(at_end - at_begin)


def _energy(recording: Recording, phases: Sequence[str]) -> tuple[str | None, float | None]:
    for label in phases:
        for i, phase in enumerate(recording.phases):
            if phase.label == label and np.isfinite(phase.energy_j):
                tokens = int(recording.requests.output_tokens[recording.requests.phase == i].sum())
                return label, round(phase.energy_j / tokens, 5) if tokens else None
    return None, None
