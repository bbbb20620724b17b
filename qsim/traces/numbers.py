"""Digits, decimals and dates in a byte buffer, converted for all rows at once.

Every function takes the buffer and where each field starts and how wide it is, and returns the
values and a mask: which fields had the plain form. The others are the caller's to convert.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

__all__ = ["decimals", "digits", "parse_time_ns", "times_ns"]

Bytes = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


def digits(buf: Bytes, start: IntArray, width: IntArray, most: int) -> tuple[IntArray, BoolArray]:
    value = np.zeros(len(start), dtype=np.int64)
    plain = (width > 0) & (width <= most)
    for k in range(min(int(width.max(initial=0)), most)):
        inside = k < width
        digit = buf[start + k] - np.uint8(48)
        plain &= ~inside | (digit <= 9)
        value = np.where(inside, value * 10 + digit, value)
    return value, plain


def decimals(buf: Bytes, start: IntArray, width: IntArray) -> tuple[FloatArray, BoolArray]:
    # A whole number of at most 15 digits and a power of ten up to 22 are exact in binary, so
    # their quotient is the correctly rounded decimal (Clinger's fast path).
    most = 16
    mantissa = np.zeros(len(start), dtype=np.int64)
    digits = np.zeros(len(start), dtype=np.int64)
    point = np.full(len(start), -1, dtype=np.int64)
    plain = (width > 0) & (width <= most)
    for k in range(min(int(width.max(initial=0)), most)):
        inside = k < width
        char = buf[start + k]
        is_point = inside & (char == ord("."))
        digit = char - np.uint8(48)
        is_digit = inside & (digit <= 9)
        plain &= ~inside | is_digit | (is_point & (point < 0))
        point = np.where(is_point & (point < 0), digits, point)
        mantissa = np.where(is_digit, mantissa * 10 + digit, mantissa)
        digits += is_digit
    plain &= (digits > 0) & (digits <= 15)
    fraction = np.where(point < 0, 0, digits - point)
    return mantissa / 10.0**fraction, plain


def times_ns(buf: Bytes, start: IntArray, width: IntArray) -> tuple[IntArray, BoolArray]:
    plain = width >= 19
    start = np.where(plain, start, 0)

    def char(at: int) -> Bytes:
        return buf[np.minimum(start + at, len(buf) - 1)]

    def number(at: int, count: int) -> IntArray:
        nonlocal plain
        value = np.zeros(len(start), dtype=np.int64)
        for k in range(at, at + count):
            digit = char(k) - np.uint8(48)
            plain &= digit <= 9
            value = value * 10 + digit
        return value

    for at, mark in ((4, "-"), (7, "-"), (13, ":"), (16, ":")):
        plain &= char(at) == ord(mark)
    plain &= (char(10) == ord(" ")) | (char(10) == ord("T"))
    year, month, day = number(0, 4), number(5, 2), number(8, 2)
    hour, minute, second = number(11, 2), number(14, 2), number(17, 2)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    in_month = _MONTH_DAYS[np.where((month >= 1) & (month <= 12), month, 0)] + (leap & (month == 2))
    plain &= (day >= 1) & (day <= in_month) & (hour < 24) & (minute < 60) & (second < 60)

    # The fraction: up to nine digits after the point.
    in_fraction = plain & (width > 19) & (char(19) == ord("."))
    has_point = in_fraction.copy()
    fraction = np.zeros(len(start), dtype=np.int64)
    count = np.zeros(len(start), dtype=np.int64)
    for k in range(20, 29):
        digit = char(k) - np.uint8(48)
        in_fraction = in_fraction & (k < width) & (digit <= 9)
        if not in_fraction.any():
            break
        fraction = np.where(in_fraction, fraction * 10 + digit, fraction)
        count += in_fraction
    plain &= ~has_point | (count > 0)
    nanoseconds = fraction * 10 ** (9 - count)

    # Days from the civil date, counting years from March so that a leap day comes last.
    shifted = year - (month <= 2)
    months = (month + 9) % 12
    days = 365 * shifted + shifted // 4 - shifted // 100 + shifted // 400
    days += (153 * months + 2) // 5 + day - 1 - 719468
    seconds = days * 86400 + hour * 3600 + minute * 60 + second

    # What is left is the zone: nothing, Z, or +00:00. Other zones are rare: the slow path's.
    zone = start + 19 + np.where(has_point, count + 1, 0)
    left = start + width - zone
    utc = (left == 0) | ((left == 1) & (buf[zone] == ord("Z")))
    if (left == 6).any():
        zero = np.ones(len(start), dtype=np.bool_)
        for k, byte in enumerate(b"+00:00"):
            zero &= buf[np.minimum(zone + k, len(buf) - 1)] == byte
        utc |= (left == 6) & zero
    return seconds * 1_000_000_000 + nanoseconds, plain & utc


def parse_time_ns(text: str) -> int | None:
    whole, _, fraction = text.strip().partition(".")
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
    zone = fraction[len(digits) :]
    if len(digits) > 9 or ("." in text and not digits):
        return None
    try:
        moment = datetime.fromisoformat(whole + zone)
    except ValueError:
        return None
    if len(whole) < 19:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * 1_000_000_000 + (int(digits.ljust(9, "0")) if digits else 0)
