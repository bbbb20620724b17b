"""GPU spans of mixed steps by their tokens: interpolated where measured, never cheaper beyond.

Within the measured step sizes the span is what was measured: the matrix kernels work in tiles, so a
step of 264 tokens takes longer than one of 256, and from there to the end of the tile a span may
even fall a little. Beyond the largest measured step nothing is known but that a GPU which is full
does not get faster: a step is charged for whole tiles at the rate of the largest measured step, and
never less than any measured step.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from qsim.profiles.schema import MixedSpan


def tile_tokens(span: MixedSpan) -> int:
    """The tile of the matrix kernels at the largest measured steps, tokens; 1 if none shows.

    Tiles show as jumps: neighbouring sizes ``e`` and ``e + 1`` among ``span.tokens``. They count
    only where they go on up to the largest step.
    """
    edges = [a for a, b in pairwise(span.tokens) if b == a + 1]
    if not edges:
        return 1
    last = span.tokens[-1]
    tile = edges[-1] - edges[-2] if len(edges) > 1 else last - edges[-1]
    return tile if last - edges[-1] <= tile else 1


def mixed_base_ms(span: MixedSpan, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``base(T)`` of :mod:`qsim.profiles.schema` for steps of ``tokens``, at full clock; ms.

    Parameters
    ----------
    span : MixedSpan
    tokens : array_like of shape (n,)
        Tokens of the steps; those of a step under piecewise graphs padded to the graph's size.

    Returns
    -------
    array of shape (n,)
        Interpolated between ``span.tokens``, held below the first. Beyond the last, X,
        ``(base(X) + ms_per_chunk) / X`` for each token of the whole tiles that the step fills,
        since steps of X tokens have a chunk each at least, and no less than the largest base of
        any measured size: the throughput is at most that of steps of X. A span of a single size
        is a constant.
    """
    t = np.asarray(tokens, dtype=np.float64)
    base = np.interp(t, span.tokens, span.base_ms)
    last = span.tokens[-1]
    beyond = t > last
    if beyond.any() and len(span.tokens) > 1:
        tile = tile_tokens(span)
        filled = np.ceil(t[beyond] / tile) * tile
        rate = (span.base_ms[-1] + span.ms_per_chunk) / last
        base[beyond] = np.maximum(rate * filled, max(span.base_ms))
    return np.asarray(base, dtype=np.float64)
