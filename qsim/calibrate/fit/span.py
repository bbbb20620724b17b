"""GPU spans by execution mode: decode table, mixed tables and the throttle, by regression.

Every model is linear with non-negative coefficients on a basis of piecewise-linear functions, so
scikit-learn's ``LinearRegression(positive=True)`` solves it. Errors are relative to the
prediction (not to the measurement, which would bias the sum), outliers are weighted down by
Huber's rule, and a little ridge ties neighbouring knots together where there is no data.
Throttling multiplies a mode's span by ``1 + theta * x``; theta and the rest alternate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from qsim.arrays import BoolArray, FloatArray, IntArray
from qsim.calibrate.fit.timeline import DECODE, EAGER, PIECEWISE
from qsim.errors import CalibrationError
from qsim.profiles.schema import DecodeSpan, MixedSpan
from qsim.profiles.spans import mixed_base_ms

#: Steps with prompts of a mode that a fit needs. Where the host launches slowly, the GPU waits in
#: most of the small ones, and few spans are known. Forms are smoothed, so few steps do; what they
#: leave open is in the error that the profile states.
LEAST_MIXED_STEPS = 8

#: the sizes for which vLLM 0.24 captures CUDA graphs by default
GRAPH_SIZES: tuple[int, ...] = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))

#: context tokens at which the slope of a decode step may change
_CONTEXT_KNOTS = (0, 65536)
_PIECEWISE_KNOTS = (8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512)
#: sizes next to tile edges as well, where free values may jump
_FREE_KNOTS = (
    *(8, 16, 24, 32, 40, 64, 96, 128, 136, 160, 192, 224, 256, 272, 320, 352, 384),
    *(400, 432, 448, 480, 512),
)
_EAGER_KNOTS = (
    *(513, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 4096, 5120, 6144, 8192),
)
_SLOPE_ROWS = (1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_NAMES = {DECODE: "decode", PIECEWISE: "piecewise", EAGER: "eager"}
#: relative error beyond which a step is weighted down
_HUBER = 0.05
#: how strongly neighbouring knots are tied together
_RIDGE = 0.003
_MAX_THETA = 0.6


@dataclass(frozen=True, eq=False)
class StepTable:
    """Steps of one or several recordings, pooled; arrays of shape (n,).

    ``group`` numbers the phase (over all recordings), ``usable`` as in ``Timeline``.
    ``x`` is the throttle level, from 0 to 1.
    """

    mode: IntArray
    tokens: IntArray
    decodes: IntArray
    context: FloatArray
    pairs: FloatArray
    chunks: IntArray
    span_ms: FloatArray
    usable: BoolArray
    group: IntArray
    trailing_w: FloatArray
    start_s: FloatArray
    x: FloatArray

    def __len__(self) -> int:
        return len(self.mode)

    def take(self, index: BoolArray) -> StepTable:
        return StepTable(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def with_level(self, start_w: float, full_w: float) -> StepTable:
        """With ``x`` from the trailing power."""
        x = np.clip((self.trailing_w - start_w) / (full_w - start_w), 0.0, 1.0)
        return replace(self, x=x)


@dataclass(frozen=True)
class ModeFit:
    """A fitted mode: its span, throttle coefficient and mean loss per step."""

    span: DecodeSpan | MixedSpan
    theta: float
    loss: float


def pad_to_graph(tokens: IntArray, sizes: Sequence[int]) -> IntArray:
    """The captured size that ``tokens`` is padded to; itself above the largest."""
    s = np.asarray(sizes, dtype=np.int64)
    i = np.minimum(np.searchsorted(s, tokens), len(s) - 1)
    return np.where(tokens <= s[-1], s[i], tokens).astype(np.int64)


def _solve(
    features: FloatArray,
    y: FloatArray,
    x: FloatArray,
    ridge: Sequence[FloatArray] = (),
    *,
    offset: FloatArray | float = 0.0,
) -> tuple[FloatArray, float, float]:
    """Fit ``y ~ (1 + theta x) (offset + features @ c)`` with ``c >= 0`` and ``theta >= 0``.

    ``ridge`` holds rows whose product with ``c`` should be zero. Returns c, theta and the mean
    Huber loss of the relative error.
    """
    from sklearn.linear_model import LinearRegression

    r = np.stack(ridge) if len(ridge) else np.zeros((0, features.shape[1]))
    scale = np.abs(features).max(axis=0)
    if len(r):  # columns without data are held by the ridge alone
        scale = np.where(scale > 0, scale, np.abs(r).max(axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    a = features / scale
    r = r / scale * np.sqrt(len(y))
    model = LinearRegression(positive=True, fit_intercept=False, copy_X=False)
    # a span that is far too short (its start was hidden) must not weigh the most at first
    prediction, theta = np.maximum(y, 0.3 * np.median(y)), 0.0
    base = prediction
    huber = np.ones(len(y))
    error = np.zeros(len(y))
    c = np.zeros(a.shape[1])
    for iteration in range(10):
        # theta multiplies the last base: solved together with c, the product converges fast
        joint = iteration > 0
        columns = np.concatenate([a, (x * base)[:, None]], axis=1) if joint else a
        ties = np.concatenate([r, np.zeros((len(r), 1))], axis=1) if joint else r
        root = np.sqrt(huber) / prediction
        weighted = columns * root[:, None]
        gram = weighted.T @ weighted + ties.T @ ties
        target = weighted.T @ ((y - offset) * root)
        # the triangle of the normal equations has the same solution as all rows, faster
        gram[np.diag_indices_from(gram)] += 1e-9 * max(float(np.trace(gram)), 1e-12) / len(gram)
        upper = np.linalg.cholesky(gram).T
        model.fit(upper, np.linalg.solve(upper.T, target))
        c = model.coef_[: a.shape[1]]
        if joint:
            theta = min(float(model.coef_[-1]), _MAX_THETA)
        base = np.maximum(offset + a @ c, 1e-3)
        prediction = base * (1.0 + theta * x)
        error = y / prediction - 1.0
        huber = np.minimum(1.0, _HUBER / np.maximum(np.abs(error), 1e-9))
        huber[np.abs(error) > 0.4] = 1e-6  # a host that was held is no property of the GPU
    size = np.minimum(np.abs(error), 0.3)
    loss = np.where(size <= _HUBER, size**2 / 2, _HUBER * (size - _HUBER / 2))
    return c / scale, theta, float(loss.mean())


def _hat(values: FloatArray, knots: Sequence[float]) -> FloatArray:
    """Linear-interpolation weights of ``values`` on ``knots``, held outside; (n, knots)."""
    k = np.asarray(knots, dtype=float)
    v = np.clip(values, k[0], k[-1])
    j = np.clip(np.searchsorted(k, v, side="right") - 1, 0, max(len(k) - 2, 0))
    out = np.zeros((len(v), len(k)))
    rows = np.arange(len(v))
    if len(k) == 1:
        out[:, 0] = 1.0
        return out
    t = (v - k[j]) / (k[j + 1] - k[j])
    out[rows, j] = 1 - t
    out[rows, j + 1] += t
    return out


def _segments(context: FloatArray, knots: Sequence[float]) -> list[FloatArray]:
    """The part of ``context`` that falls between each knot and the next."""
    stops = [*knots[1:], np.inf]
    return [np.clip(context - lo, 0.0, hi - lo) for lo, hi in zip(knots, stops, strict=True)]


def _differences(width: int, start: int, knots: Sequence[float], unit: float) -> list[FloatArray]:
    """Ridge rows that tie neighbouring coefficients, less so the further apart the knots are."""
    rows = []
    for j, (lo, hi) in enumerate(pairwise(knots)):
        row = np.zeros(width)
        tie = _RIDGE / (unit * max(abs(float(np.log2(hi / lo))), 0.05))
        row[start + j], row[start + j + 1] = tie, -tie
        rows.append(row)
    return rows


def fit_decode(
    table: StepTable,
    sizes: Sequence[int],
    *,
    least_slope: float = 0.0,
) -> ModeFit:
    """Fit the decode table on the usable decode steps of ``table``.

    Parameters
    ----------
    sizes : sequence of int
        Captured CUDA-graph sizes.
    least_slope : float
        ms a context token that no memory can beat: KV bytes over the peak bandwidth.

    Raises
    ------
    CalibrationError
        If there are fewer than 30 such steps.
    """
    t = table.take(table.usable & (table.mode == DECODE))
    if len(t) < 30:
        raise CalibrationError(
            f"{len(t)} decode steps with a known GPU span; a fit needs at least 30"
        )
    padded = pad_to_graph(t.decodes, sizes)
    present, counts = np.unique(padded, return_counts=True)
    rows = [int(r) for r, c in zip(present, counts, strict=True) if c >= 8] or [int(present[0])]
    hat = _hat(padded.astype(float), rows)
    slope_rows = [r for r in _SLOPE_ROWS if r in rows] or rows[:1]
    slope_hat = _hat(padded.astype(float), slope_rows)
    parts = _segments(t.context, _CONTEXT_KNOTS)
    features = np.concatenate([hat, *(slope_hat * p[:, None] for p in parts)], axis=1)
    n, m, width = len(rows), len(slope_rows), features.shape[1]
    ridge = _differences(width, 0, rows, float(np.median(t.span_ms)))
    slope_unit = max(least_slope, 1e-5)
    for s in range(len(parts)):
        ridge += _differences(width, n + s * m, slope_rows, slope_unit)
    for j in range(m):  # the slope beyond the knot is the same unless the data say otherwise
        row = np.zeros(width)
        row[n + j], row[n + m + j] = _RIDGE / slope_unit, -_RIDGE / slope_unit
        ridge.append(row)
    c, theta, loss = _solve(features, t.span_ms, t.x, ridge, offset=least_slope * t.context)
    base = [float(b) for b in c[:n]]
    slopes = [
        [float(v) for v in np.interp(rows, slope_rows, c[n + s * m : n + (s + 1) * m])]
        for s in range(len(parts))
    ]
    if rows[-1] < sizes[-1]:  # what is extended must not fall
        last = (base[-1] - base[-2]) / (rows[-1] - rows[-2]) if n > 1 else 0.0
        base.append(base[-1] + max(last, 0.0) * (sizes[-1] - rows[-1]))
        rows.append(sizes[-1])
        slopes = [[*s, s[-1]] for s in slopes]
    span = DecodeSpan(
        rows=rows,
        base_ms=[round(max(b, 1e-3), 5) for b in base],
        context_knots_tokens=list(_CONTEXT_KNOTS),
        ms_per_context_token=[[round(v + least_slope, 9) for v in s] for s in slopes],
    )
    return ModeFit(span, theta, loss)


@dataclass(frozen=True)
class _Basis:
    """A function of the tokens in a step: linear in coefficients >= 0, tabulated at ``at``."""

    at: IntArray
    features: Callable[[FloatArray], FloatArray]
    ridge: list[FloatArray]
    width: int


def _smooth_basis(knots: tuple[int, ...], per_token: float, extra: int) -> _Basis:
    """A constant and slopes >= 0: the span never falls with the tokens."""

    def features(tokens: FloatArray) -> FloatArray:
        ramps = [np.clip(tokens - lo, 0.0, hi - lo) for lo, hi in pairwise(knots)]
        return np.stack([np.ones(len(tokens)), *ramps], axis=1)

    middles = [(lo + hi) / 2 for lo, hi in pairwise(knots)]
    width = len(knots)
    return _Basis(
        np.array(knots),
        features,
        _differences(width + extra, 1, middles, per_token),
        width,
    )


def _saw_basis(knots: tuple[int, ...], tile: int, per_token: float, extra: int) -> _Basis:
    """The smooth basis, and in every tile a step up at its start that declines to its end."""
    smooth = _smooth_basis(knots, per_token, 0)
    first = knots[0] // tile * tile
    edges = list(range(first, knots[-1], tile))

    def features(tokens: FloatArray) -> FloatArray:
        saws = [
            np.where((tokens > e) & (tokens <= e + tile), (e + tile - tokens) / (tile - 1), 0.0)
            for e in edges
        ]
        return np.concatenate([smooth.features(tokens), np.stack(saws, axis=1)], axis=1)

    width = smooth.width + len(edges)
    ridge = [np.r_[row, np.zeros(len(edges) + extra)] for row in smooth.ridge]
    # neighbouring tiles are alike
    ridge += _differences(width + extra, smooth.width, [e + tile for e in edges], per_token * tile)
    points = {*knots, *(e for e in edges if e >= knots[0]), *(e + 1 for e in edges)}
    at = np.array(sorted(k for k in points if knots[0] <= k <= knots[-1]))
    return _Basis(at, features, ridge, width)


def _free_basis(knots: tuple[int, ...], typical_ms: float, extra: int) -> _Basis:
    """A value at each knot, interpolated; the span may rise and fall with the tokens."""
    width = len(knots)
    return _Basis(
        np.array(knots),
        lambda tokens: _hat(tokens, knots),
        _differences(width + extra, 0, knots, typical_ms),
        width,
    )


def fit_mixed(
    table: StepTable,
    mode: int,
    sizes: Sequence[int],
    *,
    form: str = "smooth",
    least_slope: float = 0.0,
    least_pair_ms: float = 0.0,
) -> ModeFit:
    """Fit the table of steps of mode PIECEWISE or EAGER.

    These are the steps with prefill chunks, and those of more decodes than any graph holds.

    Parameters
    ----------
    form : str
        "smooth": rises with the tokens. "free" (PIECEWISE): any value at each size.
        "saw-128", "saw-256" (EAGER): jumps at multiples of so many tokens (tiles of the matrix
        kernels) and declines in between.
    least_slope : float
        ms a context token of the decodes that no memory can beat: as of :func:`fit_decode`.
    least_pair_ms : float
        ms a (query, key) pair that no GPU can beat: attention FLOPs over the peak.

    Raises
    ------
    CalibrationError
        If there are fewer than LEAST_MIXED_STEPS such steps, or the form is not known.
    """
    t = table.take(table.usable & (table.mode == mode))
    if len(t) < LEAST_MIXED_STEPS:
        raise CalibrationError(
            f"{len(t)} {_NAMES[mode]} steps with a known GPU span; a fit needs at least "
            f"{LEAST_MIXED_STEPS}"
        )
    tokens = (pad_to_graph(t.tokens, sizes) if mode == PIECEWISE else t.tokens).astype(float)
    if mode == EAGER:
        knots = _between(_EAGER_KNOTS, tokens)
    else:
        knots = _between(_FREE_KNOTS if form == "free" else _PIECEWISE_KNOTS, tokens)
    extra = [t.context, t.pairs, t.chunks.astype(float), t.decodes.astype(float)]
    per_token = float(np.median(t.span_ms / t.tokens))
    if form == "smooth":
        basis = _smooth_basis(knots, per_token, len(extra))
    elif form == "free" and mode == PIECEWISE:
        basis = _free_basis(knots, float(np.median(t.span_ms)), len(extra))
    elif form.startswith("saw-") and form[4:].isdecimal() and mode == EAGER:
        basis = _saw_basis(knots, int(form[4:]), per_token, len(extra))
    else:
        raise CalibrationError(f"form {form!r} is not known for {_NAMES[mode]} steps")
    features = np.concatenate([basis.features(tokens), np.stack(extra, axis=1)], axis=1)
    least = least_pair_ms * t.pairs + least_slope * t.context
    c, theta, loss = _solve(features, t.span_ms, t.x, basis.ridge, offset=least)
    base = basis.features(basis.at.astype(float)) @ c[: basis.width]
    context, pairs, chunks, decodes = (float(v) for v in c[basis.width :])
    span = MixedSpan(
        tokens=[int(k) for k in basis.at],
        base_ms=[round(max(float(b), 1e-3), 5) for b in base],
        ms_per_decode_context_token=round(context + least_slope, 9),
        ms_per_pair=round(pairs + least_pair_ms, 12),
        ms_per_chunk=round(chunks, 6),
        ms_per_decode=round(decodes, 6),
    )
    return ModeFit(span, theta, loss)


def _between(knots: tuple[int, ...], tokens: FloatArray) -> tuple[int, ...]:
    """The knots that the data span: from the last below the smallest step to the largest step."""
    least, largest = float(tokens.min()), float(tokens.max())
    first = max((i for i, k in enumerate(knots) if k <= least), default=0)
    inner = tuple(k for k in knots[first:] if k < 0.97 * largest) or knots[first : first + 1]
    return (*inner, max(int(largest), inner[-1] + 1))


def predict_decode_ms(
    span: DecodeSpan, rows: IntArray, context: FloatArray, sizes: Sequence[int]
) -> FloatArray:
    """Spans of steps of ``rows`` decodes over ``context`` tokens, not throttled; shape (n,)."""
    padded = pad_to_graph(rows, sizes).astype(float)
    result: FloatArray = np.interp(padded, span.rows, span.base_ms)
    parts = _segments(context, span.context_knots_tokens)
    for part, slopes in zip(parts, span.ms_per_context_token, strict=True):
        result = result + np.interp(padded, span.rows, slopes) * part
    return result


def predict_mixed_ms(
    span: MixedSpan, table: StepTable, mode: int, sizes: Sequence[int]
) -> FloatArray:
    """Spans of all steps of ``table`` as mixed steps of ``mode``, not throttled; shape (n,)."""
    tokens = pad_to_graph(table.tokens, sizes) if mode == PIECEWISE else table.tokens
    result: FloatArray = (
        mixed_base_ms(span, tokens)
        + span.ms_per_decode_context_token * table.context
        + span.ms_per_pair * table.pairs
        + span.ms_per_chunk * table.chunks
        + span.ms_per_decode * table.decodes
    )
    return result
