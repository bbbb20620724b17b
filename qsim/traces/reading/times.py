"""Times as files write them: dates with zones, and numbers in some unit.

A date is ``YYYY-MM-DD`` (or with slashes), alone or with ``HH:MM`` or ``HH:MM:SS`` after a blank
or ``T``, a fraction of up to nine digits after a point or a comma, and ``Z``, ``UTC``, ``GMT`` or
an offset such as ``+02:00``; without one it is UTC. The same rule is given for Python and for SQL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_DATE = (
    r"^\s*(\d{4}[-/]\d\d[-/]\d\d)"
    r"(?:[Tt ]+((?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?)(?:[.,](\d{1,9}))?"
    r"\s*([Zz]|UTC|GMT|[+-]\d\d(?::?\d\d)?)?)?\s*$"
)
_PATTERN = re.compile(_DATE, re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: TIMESTAMP_NS reaches from 1677 to 2262
_YEARS = range(1678, 2262)

_DATE_SQL = """(epoch_ns(TRY_CAST(replace(#.d, '/', '-') || ' '
    || CASE length(#.t) WHEN 0 THEN '00:00:00' WHEN 5 THEN #.t || ':00' ELSE #.t END
    || CASE WHEN #.f = '' THEN '' ELSE '.' || #.f END AS TIMESTAMP_NS))
  - CASE WHEN #.z[1] NOT IN ('+', '-') THEN 0 ELSE
      CASE WHEN #.z[1] = '-' THEN -1 ELSE 1 END * 1000000000
      * (3600 * CAST(#.z[2:3] AS BIGINT)
         + CASE WHEN length(#.z) > 3 THEN 60 * CAST(right(#.z, 2) AS BIGINT) ELSE 0 END) END)"""


def date_parts_sql(column: str, name: str) -> str:
    """SQL that takes a column of dates apart; the parts are called ``name_date``."""
    return f"regexp_extract({column}, '{_DATE}', ['d', 't', 'f', 'z']) AS {name}_date"


def date_sql(name: str) -> str:
    """SQL of nanoseconds since 1970, of a column that was taken apart; NULL if it was no date.

    DuckDB's own cast to TIMESTAMP_NS ignores an offset, and that to TIMESTAMPTZ cuts the fraction
    at microseconds.
    """
    return _DATE_SQL.replace("#", f"{name}_date")


@dataclass(frozen=True)
class Unit:
    """What a number or text in a column of times means."""

    #: of numbers
    ticks_per_s: int = 1
    #: whether they count from 1970, and so are counted from the first one
    clock: bool = False
    #: whether it is a text with a date
    date: bool = False
    #: for people
    words: str = "s"


TICKS_PER_S = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
UNITS: dict[str, Unit] = {
    **{name: Unit(ticks, words=name) for name, ticks in TICKS_PER_S.items()},
    **{f"unix_{n}": Unit(t, True, words=f"Unix time in {n}") for n, t in TICKS_PER_S.items()},
    "unix": Unit(1, True, words="Unix time in s"),
    "iso": Unit(10**9, True, True, "dates"),
}


def looks_like_date(text: str) -> bool:
    """Whether a text has the form of a date."""
    return _PATTERN.match(text) is not None


def parse_time_ns(text: str) -> int | None:
    """Nanoseconds since 1970 (UTC) of a date; None if it is none."""
    match = _PATTERN.match(text)
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    clock = clock or "00:00"
    try:
        moment = datetime.fromisoformat(f"{day.replace('/', '-')}T{clock}").replace(tzinfo=UTC)
    except ValueError:
        return None
    if moment.year not in _YEARS:
        return None
    since = moment - _EPOCH
    ns = (since.days * 86400 + since.seconds) * 10**9 + int((fraction or "").ljust(9, "0"))
    if zone and zone[0] in "+-":
        minutes = 60 * int(zone[1:3]) + (int(zone[-2:]) if len(zone) > 3 else 0)
        ns -= (-1 if zone[0] == "-" else 1) * minutes * 60 * 10**9
    return ns
