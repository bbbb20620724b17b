"""What a sample is worth: intervals of percentiles and shares, and the requests that these need.

All are at 90%, so that each end by itself holds with 95% confidence. Requests are taken to be
independent. In a queue they are not quite (who comes after a burst waits as the one before did),
so that intervals are a little wider in truth; replications (``qsim plan --replications``) tell
more.
"""

from __future__ import annotations

import math

#: of the intervals
LEVEL = 0.9
_TAIL = (1 - LEVEL) / 2
#: normal quantile of ``1 - _TAIL``
_Z = 1.6448536269514722
#: from so many expected values beyond a percentile on, their number is as good as normal
_MANY = 100.0


def requests_needed(quantile: float) -> int:
    """The smallest sample whose largest value bounds a quantile at 95% (Wilks, 1941).

    299 for p99, 59 for p95, 29 for p90, 5 for the median; 1 for the largest value itself.
    """
    if not 0 < quantile < 1:
        return 1
    return math.ceil(round(math.log(_TAIL) / math.log(quantile), 9))


def ranks(n: int, quantile: float) -> tuple[int | None, int | None]:
    """Ranks, from 1 on, between whose values a quantile lies at 90%; None beyond the sample.

    The distribution-free interval (David and Nagaraja, Order Statistics, 7.1): the number of
    values below the quantile is binomial, whatever the distribution.
    """
    if n < 1 or not 0 < quantile < 1:
        return None, None
    mean = n * (1 - quantile)
    if min(mean, n * quantile) > _MANY:
        half = _Z * math.sqrt(mean * quantile)
        low, high = math.floor(n * quantile - half), math.ceil(n * quantile + half) + 1
    elif quantile >= 0.5:  # counted from the end that is nearer
        below, above = _binomial_ends(n, 1 - quantile)
        low, high = n - above, n - below + 1
    else:
        low, high = _binomial_ends(n, quantile)
        high += 1
    return (low if low >= 1 else None), (high if high <= n else None)


def _binomial_ends(n: int, p: float) -> tuple[int, int]:
    """The 5% and 95% quantiles of a binomial number with a small mean.

    Added up: scipy gives the same, but to import it takes longer than to simulate a small trace.
    """
    term = math.exp(n * math.log1p(-p))
    total, k, low = term, 0, -1
    while True:
        if low < 0 and total >= _TAIL:
            low = k
        if total >= 1 - _TAIL or k >= n:
            return max(low, 0), k
        term *= (n - k) / (k + 1) * p / (1 - p)
        k += 1
        total += term


def percentile_of_rank(rank: int | None, n: int) -> float:
    """The percentile, interpolated linearly as numpy does, that is the value of a rank."""
    return math.nan if rank is None else (rank - 1) / (n - 1) * 100 if n > 1 else 0.0


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of ``n`` requests at 90% (Wilson, 1927)."""
    if n < 1:
        return 0.0, 1.0
    z2 = _Z * _Z / n
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    low = 0.0 if share == 0 else max(0.0, middle - half)
    return low, 1.0 if share == 1 else min(1.0, middle + half)
