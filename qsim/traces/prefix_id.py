"""Prefix ids of any kind as 64-bit numbers: equal ids stay equal, different ones different."""

from __future__ import annotations

__all__ = ["prefix_id"]

_BITS = 1 << 64


def prefix_id(value: object) -> int:
    """A prefix id as a signed 64-bit number.

    Whole numbers of 64 bits, signed or not, keep their bits. Longer ones, and texts (hashes in
    hexadecimal, UUIDs), are hashed to 64 bits: two of a billion would be confused with a
    probability of 3 in 100.

    Raises
    ------
    TypeError
        If it is neither a whole number nor a text.
    """
    if type(value) is int:
        if -(1 << 63) <= value < 1 << 63:
            return value
        if 0 <= value < _BITS:
            return value - _BITS
        value = str(value)
    elif type(value) is float and value.is_integer():
        return prefix_id(int(value))
    if not isinstance(value, str) or not value:
        raise TypeError(value)
    from hashlib import blake2b  # few traces have prefixes, fewer have texts for them

    return int.from_bytes(blake2b(value.encode("utf-8", "replace"), digest_size=8).digest(),
                          "big", signed=True)  # fmt: skip
