"""GPU spans that a profile gives for chosen steps; the steps on which profiles are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qsim.profiles.schema import Profile
from qsim.sim.engine.timing import PS_PER_MS, Timing
from qsim.sim.scheduler.config import EngineOptions

MODES = ("decode", "piecewise", "eager")

_ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
_CONTEXTS = (256, 1024, 4096)
#: a little off the sizes of tiles, whose edges the two profiles may place differently
_PREFILLS = (32, 64, 128, 200, 256, 320, 512, 640, 1024, 1500, 2048, 3072, 4096, 6144, 8192)


@dataclass(frozen=True)
class StepPoint:
    """``rows`` decodes over ``context_tokens`` in all, or one prompt of ``prefill_tokens``."""

    rows: int = 0
    context_tokens: int = 0
    prefill_tokens: int = 0

    @property
    def mode(self) -> str:
        """How vLLM runs it by default: a full graph, piecewise graphs, no graph."""
        if self.rows:
            return "decode"
        return "piecewise" if self.prefill_tokens <= 512 else "eager"


def decode_points(kv_tokens: int) -> Iterator[StepPoint]:
    """Decode steps by batch and context that fit into ``kv_tokens``."""
    for rows in _ROWS:
        for context in _CONTEXTS:
            if rows * context <= min(kv_tokens, 200_000):
                yield StepPoint(rows=rows, context_tokens=rows * context)


def prefill_points() -> Iterator[StepPoint]:
    """Steps of one prompt alone."""
    for tokens in _PREFILLS:
        yield StepPoint(prefill_tokens=tokens)


class Spans:
    """A profile's GPU spans at full clock."""

    def __init__(self, profile: Profile) -> None:
        config = EngineOptions(max_num_seqs=1024, max_num_batched_tokens=8192).resolve(profile)
        self._timing = Timing(profile, config)

    def ms(self, point: StepPoint) -> float:
        """The span of one step, ms."""
        if point.rows:
            ps = self._timing.decode_span_ps(point.rows, point.context_tokens, 1.0)
        else:
            n = point.prefill_tokens
            ps = self._timing.mixed_span_ps(n, 0, 0, [(n, 0)], (1.0, 1.0, 1.0))[1]
        return ps / PS_PER_MS
