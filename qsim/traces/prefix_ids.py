"""Prefix ids: as 64-bit numbers, and how many prompt tokens each stands for."""

from __future__ import annotations

from collections.abc import Sequence

#: vLLM's KV block: what prompts share is shared in whole ones
KV_BLOCK_TOKENS = 16

#: block sizes of engines and of published traces
_COMMON = (512, 16, 32, 64, 128, 256, 1024, 8, 2048, 4096)


def most_ids(prompt_tokens: int, block_tokens: int) -> int:
    """Ids that a prompt can have: one a block, the last block may be partly filled."""
    return -(-prompt_tokens // block_tokens)


def fitting_block_tokens(
    prompt_tokens: Sequence[int], ids: Sequence[int], stated: int
) -> int | None:
    """The block size that the numbers of ids tell.

    Parameters
    ----------
    prompt_tokens, ids : sequences of int
        Of the requests that have ids: the length of the prompt, and how many ids it has, >= 1.
    stated : int
        The size that the format has by default.

    Returns
    -------
    int or None
        ``stated`` if no prompt contradicts it by having another number of ids than one a full
        block, or one a begun block. Else the only size that fits all of them in this sense;
        ``stated`` again if no size does but no prompt has too many ids; None if it is proved
        wrong and there is no other, or several.
    """
    pairs = sorted(set(zip(prompt_tokens, ids, strict=True)))
    if _begun(pairs, stated) or _full(pairs, stated):
        return stated
    for fits in (_begun, _full):
        sizes = [size for size in _COMMON if fits(pairs, size)]
        if len(sizes) == 1:
            return sizes[0]
    least = max(-(-tokens // n) for tokens, n in pairs)
    sizes = [size for size in (least, least + 1) if _begun(pairs, size)]
    if len(sizes) == 1:
        return sizes[0]
    return stated if all(n <= most_ids(tokens, stated) for tokens, n in pairs) else None


def _begun(pairs: Sequence[tuple[int, int]], size: int) -> bool:
    return all(n == -(-tokens // size) for tokens, n in pairs)


def _full(pairs: Sequence[tuple[int, int]], size: int) -> bool:
    return all(n == tokens // size for tokens, n in pairs)


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
        if 0 <= value < (1 << 64):
            return value - (1 << 64)
        value = str(value)
    elif type(value) is float and value.is_integer():
        return prefix_id(int(value))
    if not isinstance(value, str) or not value:
        raise TypeError(value)
    from hashlib import blake2b  # few traces have prefixes, fewer have texts for them

    return int.from_bytes(blake2b(value.encode("utf-8", "replace"), digest_size=8).digest(),
                          "big", signed=True)  # fmt: skip
