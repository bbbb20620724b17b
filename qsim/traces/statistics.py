"""What a trace looks like in numbers: rate, burstiness, lengths, shared prefixes."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.traces.trace import HashIds, Trace

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
#: A window counts for the median CV within windows if at least so many gaps end in it.
MIN_GAPS = 20


def trace_statistics(trace: Trace) -> dict[str, Any]:
    """Statistics of a trace, as one flat dictionary for JSON.

    Standard deviations are of the population (divided by n). What cannot be computed (the gaps
    of a single request, windows longer than the trace) is ``None``.

    Returns
    -------
    dict
        ``requests``, ``duration_s`` (first to last arrival), ``mean_rps`` (their quotient);
        ``iat_mean_s``, ``iat_cv`` (standard deviation over mean of the gaps between arrivals),
        ``iat_cv_within_60s_median`` and ``..._600s_...`` (gaps by the window in which they end,
        the median over windows with at least 20); ``count_fano_1s``, ``peak_count_1s`` and the
        same for 60 s (variance over mean, and maximum, of the arrivals in windows from the first
        arrival on, the last one included); for ``prompt_tokens_`` and ``output_tokens_``:
        ``mean``, ``std``, ``p1`` ... ``p99.9``, ``min``, ``max``, ``logmean``, ``logstd``
        (natural logarithms) and ``total``; ``log_length_corr`` (correlation of the logarithms of
        the two lengths). With prefix ids also ``hash_block_tokens``, ``prefix_blocks``,
        ``unique_prefix_blocks``, ``prefix_block_hit_rate`` (share of the ids that an endless
        cache would hold: ids at the beginning of a prompt that an earlier request had there too),
        ``prefix_token_hit_rate``, ``requests_with_prefix_hit`` (share of requests) and
        ``prefix_hit_blocks_p50`` and ``_p90`` over the requests with a hit.
    """
    arrival = trace.arrival_s - trace.arrival_s[0]
    out: dict[str, Any] = {
        "requests": len(trace),
        "duration_s": trace.duration_s,
        "mean_rps": len(trace) / trace.duration_s if trace.duration_s > 0 else None,
    }
    out |= _gap_statistics(arrival)
    for window_s in (1, 60):
        # Only the windows with arrivals are listed, for a trace may have long silences.
        window = arrival // window_s
        _, counts = np.unique(window, return_counts=True)
        mean = len(trace) / (window[-1] + 1)
        fano = (counts.astype(np.float64) ** 2).sum() / len(trace) - mean
        out[f"count_fano_{window_s}s"] = float(fano) if window[-1] > 0 else None
        out[f"peak_count_{window_s}s"] = int(counts.max())
    out |= _length_statistics("prompt_tokens", trace.prompt_tokens)
    out |= _length_statistics("output_tokens", trace.output_tokens)
    logs = np.log(trace.prompt_tokens), np.log(trace.output_tokens)
    varied = all(x.min() < x.max() for x in logs)
    out["log_length_corr"] = float(np.corrcoef(*logs)[0, 1]) if varied else None
    if trace.hash_ids is not None:
        out |= _prefix_statistics(trace.hash_ids, trace.prompt_tokens)
    return out


def _gap_statistics(arrival: FloatArray) -> dict[str, Any]:
    gaps = np.diff(arrival)
    out: dict[str, Any] = {
        "iat_mean_s": float(gaps.mean()) if len(gaps) else None,
        "iat_cv": _cv(gaps),
    }
    for window_s in (60, 600):
        window = (arrival[1:] // window_s).astype(np.int64)
        edges = np.flatnonzero(np.diff(window)) + 1
        groups = np.split(gaps, edges)
        values = [_cv(g) for g in groups if len(g) >= MIN_GAPS]
        known = [v for v in values if v is not None]
        out[f"iat_cv_within_{window_s}s_median"] = float(np.median(known)) if known else None
    return out


def _cv(gaps: FloatArray) -> float | None:
    if len(gaps) < 2 or gaps.mean() <= 0:
        return None
    return float(gaps.std() / gaps.mean())


def _length_statistics(column: str, tokens: IntArray) -> dict[str, Any]:
    logs = np.log(tokens)
    out: dict[str, Any] = {
        f"{column}_total": int(tokens.sum()),
        f"{column}_mean": float(tokens.mean()),
        f"{column}_std": float(tokens.std()),
    }
    for percentile, value in zip(PERCENTILES, np.percentile(tokens, PERCENTILES), strict=True):
        out[f"{column}_p{percentile}"] = float(value)
    out |= {
        f"{column}_min": int(tokens.min()),
        f"{column}_max": int(tokens.max()),
        f"{column}_logmean": float(logs.mean()),
        f"{column}_logstd": float(logs.std()),
    }
    return out


def _prefix_statistics(ids: HashIds, prompt_tokens: IntArray) -> dict[str, Any]:
    hits = prefix_hit_blocks(ids)
    total = len(ids.values)
    some = hits[hits > 0]
    hit_tokens = np.minimum(hits * ids.block_tokens, prompt_tokens).sum()
    return {
        "hash_block_tokens": ids.block_tokens,
        "prefix_blocks": total,
        "unique_prefix_blocks": len(np.unique(ids.values)),
        "prefix_block_hit_rate": float(hits.sum() / total) if total else None,
        "prefix_token_hit_rate": float(hit_tokens / prompt_tokens.sum()),
        "requests_with_prefix_hit": float((hits > 0).mean()),
        "prefix_hit_blocks_p50": float(np.median(some)) if len(some) else None,
        "prefix_hit_blocks_p90": float(np.percentile(some, 90)) if len(some) else None,
    }


def prefix_hit_blocks(ids: HashIds) -> IntArray:
    """How many leading ids of each request an earlier request had (endless cache)."""
    if len(ids.values) == 0:
        return np.zeros(len(ids), np.int64)
    starts, ends = ids.offsets[:-1], ids.offsets[1:]
    _, first, inverse = np.unique(ids.values, return_index=True, return_inverse=True)
    own_start = np.repeat(starts, ends - starts)
    new = np.flatnonzero(first[inverse.reshape(-1)] >= own_start)
    if len(new) == 0:
        return np.asarray(ends - starts)
    at = np.searchsorted(new, starts)
    first_new = np.where(at < len(new), new[np.minimum(at, len(new) - 1)], len(ids.values))
    return np.asarray(np.minimum(first_new, ends) - starts)
