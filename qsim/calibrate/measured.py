"""What was measured on a server, in a row of numbers: recorded steps only, no model of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.calibrate.recording import SKIP, Recording

__all__ = ["BATCHES", "MeasuredRow", "measured_row"]

BATCHES = (1, 16, 64, 256)
#: fewer steps of a kind than this are no measurement of it
_LEAST_STEPS = 15
#: large prefill steps at the power limit differ by 1 to 3%, and those of a 70B model take a second
_LEAST_PREFILLS = 5


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
    budget, back to back. ``joules_per_output_token`` is the energy of all GPUs over the output
    tokens of the phase ``energy_phase``, prefill and idling included.
    """

    name: str
    gpu: str
    model: str
    method: str
    tensor_parallel: int
    decode: Mapping[int, DecodeTime]
    prefill_tokens_per_s: float | None
    joules_per_output_token: float | None
    energy_phase: str | None
    kv_cache_tokens: int
    weights_gib: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        data = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "decode"}
        return {**data, "decode": {str(k): vars(v) for k, v in self.decode.items()}}


def measured_row(
    recording: Recording,
    batches: Sequence[int] = BATCHES,
    energy_phases: Sequence[str] = ("val_moderate",),
) -> MeasuredRow:
    """Summarise a recording.

    Parameters
    ----------
    batches : sequence of int
        Decode batch sizes. Of the phases that show one, bursts come first (they walk through all
        sizes under one load), then the one of the shortest contexts.
    energy_phases : sequence of str
        The first of these that the recording has is the one that energy is taken from.
    """
    server = recording.server
    decode = {b: d for b in batches if (d := _decode(recording, b)) is not None}
    energy_phase, joules = _energy(recording, energy_phases)
    weights = server.raw.get("weights_gib")
    return MeasuredRow(
        name=recording.name,
        gpu=server.gpu,
        model=server.model,
        method=server.method,
        tensor_parallel=server.tensor_parallel,
        decode=decode,
        prefill_tokens_per_s=_prefill(recording),
        joules_per_output_token=joules,
        energy_phase=energy_phase,
        # one block is kept empty by vLLM
        kv_cache_tokens=(server.num_gpu_blocks - 1) * server.block_size,
        weights_gib=float(weights) if isinstance(weights, int | float) else None,
    )


def _used(recording: Recording) -> npt.NDArray[np.bool_]:
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


def _prefill(recording: Recording) -> float | None:
    s = recording.steps
    full = (s.decodes == 0) & (s.prefill_tokens >= recording.server.max_num_batched_tokens / 2)
    wanted = full & _used(recording)
    wanted[1:] &= full[:-1]
    if wanted.sum() < _LEAST_PREFILLS:
        return None
    seconds = np.diff(s.update_s, prepend=np.nan)[wanted].sum()
    return float(round(s.prefill_tokens[wanted].sum() / seconds, 1))


def _energy(recording: Recording, phases: Sequence[str]) -> tuple[str | None, float | None]:
    for label in phases:
        for i, phase in enumerate(recording.phases):
            if phase.label == label and np.isfinite(phase.energy_j):
                tokens = int(recording.requests.output_tokens[recording.requests.phase == i].sum())
                return label, round(phase.energy_j / tokens, 5) if tokens else None
    return None, None
