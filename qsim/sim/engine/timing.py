"""A profile's step times, tabulated once in integer picoseconds.

Integers make sums exact: a decode run that is added up in one go ends at the very picosecond at
which single steps would have ended, so "equal" means ``==``. The model is that of
:mod:`qsim.profiles.schema`; this module only evaluates it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qsim.catalog.versions import graph_sizes
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import HostTimes, MixedSpan, Profile
from qsim.profiles.spans import mixed_base_ms
from qsim.sim.scheduler.config import EngineConfig

PS_PER_S = 1_000_000_000_000
PS_PER_MS = 1_000_000_000

#: execution modes of a step: full CUDA graph, piecewise graphs, no graph
DECODE, PIECEWISE, EAGER = 0, 1, 2


def _ps(ms: float) -> int:
    return round(ms * PS_PER_MS)


def _all_ps(ms: npt.NDArray[np.float64]) -> list[int]:
    """:func:`_ps` of each, to the bit."""
    ps = ms * PS_PER_MS
    if not ps.max(initial=0.0) < 2.0**62:  # beyond NumPy's integers
        return [_ps(x) for x in ms.tolist()]
    whole: list[int] = np.rint(ps).astype(np.int64).tolist()
    return whole


def _packed_ps(ms: npt.NDArray[np.float64]) -> Sequence[int]:
    """:func:`_all_ps` for a long table of which few are looked up: made in a tenth of the time."""
    ps = ms * PS_PER_MS
    if not ps.max(initial=0.0) < 2.0**62:
        return _all_ps(ms)
    return array("q", np.rint(ps).astype(np.int64).tobytes())


class Timing:
    """Tables of one server: GPU spans and host times, in ps, by rows or tokens of a step.

    Attributes
    ----------
    decode_mode : list of int, length max_num_seqs + 1
        The execution mode of a step of R decodes.
    decode_base_ps : list of int, length max_num_seqs + 1
        Its GPU span at no context.
    slopes_ps : list of lists of int, [rows][segment]
        ps a context token; segment j lies between ``knots[j]`` and ``knots[j + 1]``. Do not change
        the lists.
    schedule_ps, update_ps : list of int, length max_num_seqs + 1
        Host times by the number of running requests.
    launch_ps : list (by mode) of lists of int, length max_num_seqs + 1
        Host time of a launch by the number of requests in the step.
    measured_requests, measured_tokens, measured_context_tokens : int
        The largest step that was measured; huge where the profile does not say.
    held_ppm : list of int, length max_num_batched_tokens + 1; empty if none is held
        Millionths of its GPU span for which the launch of a step without a graph is held, by the
        step's tokens.
    """

    def __init__(self, profile: Profile, config: EngineConfig) -> None:
        latency, host = profile.latency, profile.host
        seats = config.max_num_seqs
        budget = config.max_num_batched_tokens
        sizes = graph_sizes(latency.graph_sizes, seats, budget, config.vllm_version)
        self.graph_max = sizes[-1] if sizes else 0

        measured = MeasuredRange.of(profile)
        self.measured_requests = _or_huge(measured.step_requests)
        self.measured_tokens = _or_huge(measured.step_tokens)
        self.measured_context_tokens = _or_huge(measured.step_context_tokens)
        self.throttle = (
            latency.throttle.decode,
            latency.throttle.piecewise,
            latency.throttle.eager,
        )
        #: steps of more tokens are charged as at the power limit: they keep the GPU busy for longer
        #: than any burst that was measured at full clock
        self.largest_step_tokens = latency.eager.tokens[-1]
        self._at_limit = 1.0 + latency.throttle.eager
        self.throttle_start_w = latency.throttle.start_w
        self.throttle_full_w = latency.throttle.full_w

        # mixed steps, by tokens in the step
        padded: list[int] = []  # the graph's size, by tokens from 1 on
        for size in sizes:
            padded += [size] * (size - len(padded))
        self._piecewise_ps = [0, *_all_ps(mixed_base_ms(latency.piecewise, padded))]
        most = max(budget, seats)
        self._eager_ps = _packed_ps(mixed_base_ms(latency.eager, np.arange(most + 1)))
        self._coefficients = {
            PIECEWISE: _coefficients(latency.piecewise),
            EAGER: _coefficients(latency.eager),
        }

        # decode steps, by rows: first those of a graph, which differ by its size alone
        self.knots = list(latency.decode.context_knots_tokens)
        rows = latency.decode.rows
        base = latency.decode.base_ms
        slopes = latency.decode.ms_per_context_token
        self.decode_base_ps: list[int] = []
        self.slopes_ps: list[list[int]] = []
        largest_graph_ps = 0
        seated = [size for size in sizes if size <= seats]
        bases = _lines_ps(rows, base, seated)
        of_segments = [_lines_ps(rows, slope, seated) for slope in slopes]
        for i, size in enumerate(seated):
            base_ps = bases[i]
            if size > rows[-1] and len(rows) > 1:
                # as many tokens with a prefill among them were measured
                base_ps = max(base_ps, self._piecewise_ps[size])
            largest_graph_ps = max(largest_graph_ps, base_ps)
            of_size = [max(0, of_segment[i]) for of_segment in of_segments]
            new = size + 1 - len(self.decode_base_ps)
            self.decode_base_ps += [base_ps] * new
            self.slopes_ps += [of_size] * new
        self.decode_mode = [DECODE] * len(self.decode_base_ps)

        # no graph of that size: the mixed steps' terms, with no prefill in the step
        span = latency.piecewise
        per_row, own = _ps(span.ms_per_decode), [_ps(span.ms_per_decode_context_token)]
        while len(self.decode_base_ps) <= min(self.graph_max, seats):
            r = len(self.decode_base_ps)
            self.decode_mode.append(PIECEWISE)
            self.decode_base_ps.append(self._piecewise_ps[r] + r * per_row)
            self.slopes_ps.append(own * len(self.knots))
        # the same kernels as those in the largest graph, with more rows: not for less
        span = latency.eager
        per_row, per_token = _ps(span.ms_per_decode), _ps(span.ms_per_decode_context_token)
        own = [max(per_token, _ps(slope[-1])) for slope in slopes]
        first, left = len(self.decode_base_ps), seats + 1 - len(self.decode_base_ps)
        self.decode_mode += [EAGER] * left
        self.decode_base_ps += [
            max(base_ps + r * per_row, largest_graph_ps)
            for r, base_ps in enumerate(self._eager_ps[first : seats + 1], first)
        ]
        self.slopes_ps += [own] * left

        # the host thread
        def by_rows(pair: list[float]) -> list[int]:
            running = np.arange(seats + 1, dtype=np.float64)
            return _all_ps(np.asarray(pair[0] + pair[1] * running, dtype=np.float64))

        self.schedule_ps = by_rows(host.schedule_ms)
        self.update_ps = by_rows(host.update_ms)
        self.launch_ps = [
            by_rows(host.launch_decode_ms),
            by_rows(host.launch_piecewise_ms),
            by_rows(host.launch_eager_ms),
        ]
        self.held_ppm: list[int] = []
        # it goes one way with the tokens
        if any(_held_ppm(host, np.array([0, most]))):
            self.held_ppm = _held_ppm(host, np.arange(most + 1))
        self.result_ps = _ps(host.result_ms)
        self.turn_ps = _ps(host.turn_ms)
        self.gpu_gap_ps = _ps(host.gpu_gap_ms)
        self.idle_sleep_ps = _ps(host.idle_sleep_ms)
        self.wake_ps = _ps(host.wake_ms)

    def decode_span_ps(self, rows: int, context_tokens: int, factor: float) -> int:
        """GPU span of a step of ``rows`` decodes over ``context_tokens`` tokens of context."""
        span, slopes = round(self.decode_base_ps[rows] * factor), self.slopes_ps[rows]
        for j, knot in enumerate(self.knots):
            if context_tokens <= knot:
                break
            stop = self.knots[j + 1] if j + 1 < len(self.knots) else context_tokens
            tokens = min(context_tokens, stop) - knot
            span += round(slopes[j] * factor) * tokens
        return span

    def full_clock_span_ps(self, rows: int, context_tokens: int) -> int:
        """The same at full clock, at less cost."""
        span = self.decode_base_ps[rows]
        knots = self.knots
        last = len(knots) - 1
        for j, slope in enumerate(self.slopes_ps[rows]):
            if j == last or context_tokens <= knots[j + 1]:
                return span + slope * (context_tokens - knots[j])
            span += slope * (knots[j + 1] - knots[j])
        return span

    def least_slope_ps(self, rows: int, context_tokens: int) -> int:
        """What a token of context costs at least, ps, at that context or beyond it."""
        slopes = self.slopes_ps[rows]
        least = slopes[-1]
        for j in range(len(slopes) - 1, -1, -1):
            if slopes[j] < least:
                least = slopes[j]
            if self.knots[j] < context_tokens:
                break
        return least

    def mixed_span_ps(
        self,
        tokens: int,
        decodes: int,
        context_tokens: int,
        chunks: list[tuple[int, int]],
        factor: tuple[float, float, float],
    ) -> tuple[int, int]:
        """Execution mode and GPU span of a step with prefill ``chunks`` of (n, computed)."""
        if tokens <= self.graph_max:
            mode, base = PIECEWISE, self._piecewise_ps[tokens]
        else:
            mode, base = EAGER, self._eager_ps[tokens]
        per_context, per_pair, per_chunk, per_decode = self._coefficients[mode]
        pairs = 0
        for n, computed in chunks:
            pairs += n * (2 * computed + n + 1)
        span = (
            base
            + per_context * context_tokens
            + per_pair * 0.5 * pairs
            + per_chunk * len(chunks)
            + per_decode * decodes
        )
        slower = factor[mode]
        if tokens > self.largest_step_tokens and slower < self._at_limit:
            slower = self._at_limit
        return mode, round(span * slower)


def _or_huge(limit: int | None) -> int:
    return 1 << 62 if limit is None else limit


def _held_ppm(host: HostTimes, tokens: npt.NDArray[np.int64]) -> list[int]:
    ppm: list[int] = np.rint(host.held(tokens) * 1e6).astype(int).tolist()
    return ppm


def _lines_ps(x: list[int], y: list[float], at: list[int]) -> list[int]:
    """Linear interpolation; held below the first point, extended beyond the last if it rises."""
    if len(x) == 1 or not at:
        return [_ps(y[0])] * len(at)
    xs, ys, points = (np.array(v, dtype=np.float64) for v in (x, y, at))
    right = np.clip(np.searchsorted(xs, points), 1, len(x) - 1)
    left = right - 1
    line = ys[left] + (ys[right] - ys[left]) * (points - xs[left]) / (xs[right] - xs[left])
    line[points <= xs[0]] = ys[0]
    if y[-1] < y[-2]:
        line[points > xs[-1]] = ys[-1]
    return _all_ps(line)


def _coefficients(span: MixedSpan) -> tuple[float, float, float, float]:
    return (
        span.ms_per_decode_context_token * PS_PER_MS,
        span.ms_per_pair * PS_PER_MS,
        span.ms_per_chunk * PS_PER_MS,
        span.ms_per_decode * PS_PER_MS,
    )
