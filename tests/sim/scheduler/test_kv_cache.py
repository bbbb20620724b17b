"""The KV cache by runs of blocks against one that keeps every block."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.sim.scheduler.block_ids import BlockIds, prompt_block_ids
from qsim.sim.scheduler.kv_cache import KVCache
from qsim.sim.scheduler.request import Request
from tests.sim.reference import Pool

RATIO = 8
# A tree of prefixes, and prompts that end at any block of it.
PROMPTS = ((1, 2, 3), (1, 2, 4), (1, 5), (6, 2), (1, 2, 3, 7))


class Twin:
    """The same calls on both caches, for requests of whole blocks of one token."""

    def __init__(self, blocks: int, coarse: bool) -> None:
        self.cache = KVCache(blocks, 1, True)
        self.pool = Pool(blocks)
        self.coarse = coarse
        self.held: dict[int, list[Any]] = {}
        self.requests: dict[int, Request] = {}
        self.hits = 0

    def request(self, index: int, prompt: int, ids: int) -> Request:
        if index not in self.requests:
            fine = BlockIds(PROMPTS[prompt], RATIO, min(ids, RATIO * len(PROMPTS[prompt])))
            request = Request(index, 100, 100, block_ids=fine if self.coarse else list(fine))
            self.requests[index] = request
        return self.requests[index]

    def content(self, request: Request, position: int) -> tuple[Any, ...]:
        ids = list(request.block_ids)
        own = [(request.index, i) for i in range(len(ids), position + 1)]
        return (*ids[: position + 1], *own)

    def admit(self, request: Request, known: int, step: int) -> None:
        """Admit with ``known`` tokens, of which the first step computes at most ``step``."""
        parts = self.cache.lookup(request, known)
        cached = sum(stop - start for _, start, stop in parts)
        blocks = []
        for position in range(known - 1):
            block = self.pool.find(self.content(request, position))
            if block is None:
                break
            blocks.append(block)
        assert cached == len(blocks)
        shortage = known - sum(block.users > 0 for block in blocks) - len(self.pool.queue)
        assert self.cache.shortage(parts, known) == shortage
        if shortage > 0:
            return
        self.hits += cached
        tokens = min(cached + step, known)
        self.cache.admit(request, parts, cached, tokens)
        for block in blocks:
            self.pool.touch(block)
        self.held[request.index] = blocks
        self.grow(request, tokens - cached, new=True)

    def grow(self, request: Request, count: int, *, new: bool = False) -> None:
        blocks = self.held[request.index]
        if count > len(self.pool.queue):
            return
        if not new:
            self.cache.take(count)
            request.blocks += count
        if request.blocks > request.hashed:
            self.cache.enter(request, request.blocks)
        for _ in range(count):
            block = self.pool.pop()
            block.content = self.content(request, len(blocks))
            self.pool.cached.setdefault(block.content, []).append(block)
            blocks.append(block)

    def release(self, request: Request, unhashed: int, preempted: bool) -> None:
        """Give all back, after taking some blocks that are not full."""
        unhashed = min(unhashed, len(self.pool.queue))
        self.cache.take(unhashed)
        request.blocks += unhashed
        self.cache.release(request, preempted=preempted)
        self.pool.free(self.held.pop(request.index) + [self.pool.pop() for _ in range(unhashed)])
        if not preempted:
            del self.requests[request.index]

    def queue(self) -> list[object]:
        """The cache's free queue block by block; None where no other request can find it."""
        self.cache._compact()
        result: list[object] = [None] * self.cache._unhashed
        for entry in self.cache._queue:
            if isinstance(entry, int):
                result += [None] * entry
                continue
            path: list[int] = []
            node = entry.node
            while node.parent is not None:
                path.insert(0, node.key)
                node = node.parent
            for offset in range(entry.stop - 1, entry.start - 1, -1):
                result.append((tuple(path), offset) if path else None)
        return result

    def expected_queue(self) -> list[object]:
        result: list[object] = []
        ratio = RATIO if self.coarse else 1
        for block in self.pool.queue:
            if block.content is None or isinstance(block.content[-1], tuple):
                result.append(None)
            else:
                path = [key // ratio for key in block.content[::ratio]]
                result.append((tuple(path), (len(block.content) - 1) % ratio))
        return result


def operations(requests: int, prompts: int, most_ids: int, most_tokens: int) -> Any:
    return st.lists(
        st.tuples(
            st.integers(0, requests - 1),
            st.integers(0, prompts - 1),
            st.integers(0, most_ids),  # blocks of its prompt that others may share
            st.integers(1, most_tokens),  # known at admission, to add, or partial blocks
            st.integers(1, most_tokens),
            st.booleans(),
        ),
        min_size=5,
        max_size=60,
    )


# Many prompts; and requests that compute the same few blocks at once, in steps of their own.
OPERATIONS = operations(6, len(PROMPTS), 32, 30) | operations(4, 1, 16, 4)


@settings(max_examples=300)
@given(OPERATIONS, st.integers(5, 90), st.booleans())
def test_runs_equal_blocks(operations: Any, blocks: int, coarse: bool) -> None:
    twin = Twin(blocks, coarse)
    names: dict[int, int] = {}
    fresh = 0
    for slot, prompt, ids, amount, step, flag in operations:
        if names.get(slot) not in twin.requests:
            names[slot] = fresh
            fresh += 1
        request = twin.request(names[slot], prompt, ids)
        if names[slot] not in twin.held:
            known = max(amount + step, len(request.block_ids))
            twin.admit(request, known, step)
        elif flag:
            twin.grow(request, amount)
        else:
            twin.release(request, amount % 3, preempted=step % 2 == 0)
        assert twin.cache.free == len(twin.pool.queue)
        assert twin.queue() == twin.expected_queue()
    for index in list(twin.held):
        twin.release(twin.requests[index], 0, preempted=False)
    assert twin.cache.free == blocks - 1
    twin.cache.take(blocks - 1)
    assert twin.cache._root.children in (None, {})  # all evicted, nothing left behind


@pytest.mark.parametrize("still_used", [False, True])
@pytest.mark.parametrize("known", [5, 7])
def test_a_part_from_the_middle_of_a_run(still_used: bool, known: int) -> None:
    twin = Twin(40, coarse=True)
    first, second, third = (twin.request(index, 0, 8) for index in range(3))
    twin.admit(first, 8, 1)
    twin.admit(second, 8, 1)  # finds block 0, computes block 1
    twin.grow(first, 1)  # an equal block 1
    twin.grow(first, 1)  # block 2
    twin.grow(second, 4)  # blocks 2 to 5, of which the first is not found
    twin.release(first, 0, preempted=False)
    if not still_used:
        twin.release(second, 0, preempted=False)
    twin.admit(third, known, known)
    run, stop = third.shared[3]
    assert (run.start, run.stop, stop) == (3, known - 1, known - 1)
    assert twin.queue() == twin.expected_queue()
    twin.release(third, 0, preempted=False)
    assert twin.queue() == twin.expected_queue()
    if still_used:
        twin.release(second, 0, preempted=False)
    assert twin.queue() == twin.expected_queue()


def test_a_popular_prefix_does_not_make_the_queue_grow() -> None:
    cache = KVCache(1000, 16, True)
    for index in range(10_000):
        request = Request(index, 100, 1, block_ids=[1, 2, 3])
        parts = cache.lookup(request, 100)
        cached = sum(stop - start for _, start, stop in parts)
        assert cached == (3 if index else 0)
        cache.admit(request, parts, cached, 100)
        cache.enter(request, 6)
        cache.release(request, preempted=False)
    assert cache.free == 999
    assert len(cache._queue) < 5000


def test_last_token_is_never_cached() -> None:
    cache = KVCache(100, 16, True)
    first = Request(0, 48, 1, block_ids=[1, 2, 3])
    cache.admit(first, [], 0, 48)
    cache.enter(first, 3)
    second = Request(1, 48, 1, block_ids=[1, 2, 3])
    assert sum(stop - start for _, start, stop in cache.lookup(second, 48)) == 2
    assert sum(stop - start for _, start, stop in cache.lookup(second, 49)) == 3


def test_caching_off_finds_nothing() -> None:
    cache = KVCache(100, 16, False)
    assert cache.lookup(Request(1, 48, 1, block_ids=[1, 2, 3]), 48) == []


@pytest.mark.parametrize(
    ("hash_ids", "tokens", "block_size", "prompt_tokens", "expected"),
    [
        ([5, 9], 32, 16, 64, [10, 11, 18, 19]),
        ([5, 9], 32, 16, 63, [10, 11, 18]),
        ([5, 9], 32, 16, 15, []),
        ([5, 9], 32, 16, 1000, [10, 11, 18, 19]),
        ([5, 9], 16, 16, 32, [5, 9]),
        ([], 512, 16, 1000, []),
    ],
)
def test_prompt_block_ids(
    hash_ids: list[int], tokens: int, block_size: int, prompt_tokens: int, expected: list[int]
) -> None:
    ids = prompt_block_ids(hash_ids, tokens, block_size, prompt_tokens)
    assert list(ids) == expected
    assert ids == expected
    assert len(ids) == len(expected)
    assert ids[1:] == expected[1:]
    if expected:
        assert (ids[0], ids[-1]) == (expected[0], expected[-1])
    with pytest.raises(IndexError):
        ids[len(expected)]


@pytest.mark.parametrize(("tokens", "block_size"), [(512, 24), (8, 16), (0, 16)])
def test_prompt_block_ids_must_cover_whole_blocks(tokens: int, block_size: int) -> None:
    with pytest.raises(ScenarioError, match=f"hash_block_tokens is {tokens}; must be a multiple"):
        prompt_block_ids([1, 2], tokens, block_size, 1000)
