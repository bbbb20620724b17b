"""Content ids of the KV blocks of a prompt or more, made from a trace's coarser prefix ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from qsim.errors import ScenarioError


class BlockIds(Sequence[int]):
    """One id per KV block, held as one id per ``ratio`` blocks.

    Block ``j`` of the prompt has the id ``hash_ids[j // ratio] * ratio + j % ratio``. It behaves
    as the list of these; the KV cache takes the coarse ids instead, so that its work and memory
    go with them and not with the blocks.
    """

    __slots__ = ("_length", "hash_ids", "ratio")

    def __init__(self, hash_ids: Sequence[int], ratio: int, length: int) -> None:
        self.hash_ids = hash_ids[: -(-length // ratio)]
        self.ratio = ratio
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self._length))]
        position = index + self._length if index < 0 else index
        if not 0 <= position < self._length:
            raise IndexError(f"block {index} of {self._length}")
        return self.hash_ids[position // self.ratio] * self.ratio + position % self.ratio

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"BlockIds({list(self.hash_ids)}, {self.ratio}, {self._length})"


def prompt_block_ids(
    hash_ids: Sequence[int], hash_block_tokens: int, block_size: int, prompt_tokens: int
) -> BlockIds:
    """Content ids per KV block from a trace's prefix ids, full blocks only.

    ``hash_ids`` are one per ``hash_block_tokens`` tokens of the prompt, a multiple of
    ``block_size``; the last may stand for fewer. ``prompt_tokens`` is the length of the prompt, or
    of prompt and answer where the ids go on into the answer; a KV block that it does not fill gets
    no id.

    Raises
    ------
    ScenarioError
        If ``hash_block_tokens`` is not a multiple of ``block_size``.
    """
    if block_size < 1 or hash_block_tokens < 1 or hash_block_tokens % block_size:
        raise ScenarioError(
            f"hash_block_tokens is {hash_block_tokens}; must be a multiple of block_size "
            f"{block_size}, so that every prefix id covers whole KV blocks: change block_size, "
            f"or turn prefix caching off"
        )
    ratio = hash_block_tokens // block_size
    full = min(max(prompt_tokens, 0) // block_size, ratio * len(hash_ids))
    return BlockIds(hash_ids, ratio, full)
