"""The KV block pool with prefix caching, after vLLM 0.24's block pool and KV-cache manager.

What can be observed of a pool is how many blocks are free, which prefixes are found, and which
cached blocks an allocation destroys; never a block's number. So blocks that nobody can look up
are only counted:

* Blocks without a hash go back to the head of the free queue and blocks with one to its tail, and
  a block taken from the queue loses its hash. Hence the queue always is a run of blocks without a
  hash, which a counter describes, followed by the hashed ones.
* A hashed block whose content no other request can have is findable only by its own request, and
  only after a preemption. While the request runs such blocks are a number; when it has finished
  they lie in the queue as a run, again a number.

Only blocks of contents that may be shared, and those of preempted requests, are objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from qsim.errors import ScenarioError
from qsim.sim.request import Request

__all__ = ["KVBlock", "KVCache", "PrefixNode", "prompt_block_ids"]


class PrefixNode:
    """One block's content together with everything before it (what a chained hash identifies)."""

    __slots__ = ("blocks", "children", "key", "parent", "table")

    def __init__(self, parent: PrefixNode | None, table: dict[int, PrefixNode], key: int) -> None:
        self.parent = parent
        self.table = table  # where this node is listed, under ``key``
        self.key = key
        self.children: dict[int, PrefixNode] = {}
        self.blocks: list[KVBlock] = []  # physical blocks with this content, first entered first
        table[key] = self


class KVBlock:
    """A physical block that the prefix cache can find."""

    __slots__ = ("node", "stale", "users")

    def __init__(self, node: PrefixNode, users: int) -> None:
        self.node = node
        self.users = users
        self.stale = 0  # how many of its entries in the free queue no longer count
        node.blocks.append(self)


class KVCache:
    """Blocks of one engine: who holds how many, and what freed ones still contain.

    Parameters
    ----------
    num_gpu_blocks
        Size of the pool including the null block: one block fewer is usable.
    block_size
        Tokens per block.
    enable_prefix_caching
        Whether full blocks can be found again by their content.

    Attributes
    ----------
    free
        Blocks without a user, whether or not they still hold a cached prefix.
    changes
        Counts the events after which a request that did not fit may fit: blocks given back, or
        shared content entered.
    """

    __slots__ = (
        "_queue",
        "_root",
        "_stale",
        "_unhashed",
        "block_size",
        "caching",
        "changes",
        "free",
        "usable",
    )

    def __init__(self, num_gpu_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.block_size = block_size
        self.caching = enable_prefix_caching
        self.usable = num_gpu_blocks - 1
        self.free = self.usable
        self.changes = 0
        self._unhashed = self.usable  # the queue's leading run of blocks without a hash
        # The rest of the queue, next to be taken first: a number is a run of blocks that nobody
        # can look up any more. A block that is found again stays in here and is marked stale.
        self._queue: deque[KVBlock | int] = deque()
        self._stale = 0
        self._root = PrefixNode(None, {}, 0)

    def lookup(self, request: Request, known_tokens: int) -> list[KVBlock]:
        """Longest cached prefix that leaves at least one of the known tokens to compute."""
        hits: list[KVBlock] = []
        ids = request.block_ids
        own = request.own
        if not self.caching or not (ids or own):
            return hits
        most = (known_tokens - 1) // self.block_size
        node: PrefixNode | None = self._root
        for key in ids if len(ids) <= most else ids[:most]:
            assert node is not None
            node = node.children.get(key)
            if node is None or not node.blocks:
                return hits
            hits.append(node.blocks[0])
        if own:
            for position in range(len(ids), most):
                node = own.get(position)
                if node is None:
                    break
                hits.append(node.blocks[0])
        return hits

    def shortage(self, hits: list[KVBlock], known_tokens: int) -> int:
        """Blocks that are missing to hold all known tokens, given these hits; <= 0 if none is."""
        need = -(-known_tokens // self.block_size)
        for block in hits:
            if block.users:
                need -= 1
        return need - self.free

    def take(self, count: int) -> None:
        """Take blocks from the head of the free queue; what they contained is forgotten."""
        self.free -= count
        rest = self._unhashed - count
        if rest >= 0:
            self._unhashed = rest
        else:
            self._unhashed = 0
            self._evict(-rest)

    def admit(self, request: Request, hits: list[KVBlock], tokens: int) -> None:
        """Give a request without blocks its hits, and new blocks up to this many tokens."""
        for block in hits:
            if not block.users:
                block.stale += 1
                self._stale += 1
                self.free -= 1
            block.users += 1
        request.shared = hits
        request.hashed = len(hits)
        request.blocks = -(-tokens // self.block_size)
        self.take(request.blocks - len(hits))

    def enter(self, request: Request, full_blocks: int) -> None:
        """Make the leading blocks of a request findable, up to this number."""
        request.hashed = full_blocks
        ids = request.block_ids
        shared = request.shared
        start = len(shared)
        stop = min(full_blocks, len(ids))
        if start >= stop:
            return
        node = shared[-1].node if shared else self._root
        for key in ids[start:stop]:
            node = node.children.get(key) or PrefixNode(node, node.children, key)
            shared.append(KVBlock(node, 1))
        self.changes += 1

    def release(self, request: Request, *, preempted: bool) -> None:
        """Take all blocks from a request: hashed ones stay findable until they are reused."""
        shared = request.shared
        hashed = request.hashed
        queue = self._queue
        self._unhashed += request.blocks - hashed
        self.free += request.blocks - len(shared)
        count = hashed - len(shared)
        if count:
            if preempted:
                self._keep(request)
            elif queue and isinstance(queue[-1], int):
                queue[-1] += count
            else:
                queue.append(count)
        if shared:
            for block in reversed(shared):
                block.users -= 1
                if not block.users:
                    queue.append(block)
                    self.free += 1
            request.shared = []
            if self._stale > 1000 and 2 * self._stale > len(queue):
                self._compact()
        request.blocks = request.hashed = 0
        self.changes += 1

    def _keep(self, request: Request) -> None:
        """Queue the unshared hashed blocks of a preempted request so that it can find them."""
        own = request.own
        if own is None:
            own = request.own = {}
        for position in range(request.hashed - 1, len(request.shared) - 1, -1):
            node = own.get(position) or PrefixNode(None, own, position)
            self._queue.append(KVBlock(node, 0))

    def _evict(self, count: int) -> None:
        queue = self._queue
        while count:
            head = queue[0]
            if isinstance(head, int):
                if head > count:
                    queue[0] = head - count
                    return
                count -= head
                queue.popleft()
                continue
            queue.popleft()
            if head.stale:
                head.stale -= 1
                self._stale -= 1
                continue
            count -= 1
            node: PrefixNode | None = head.node
            assert node is not None
            node.blocks.remove(head)
            while node is not None and not node.blocks and not node.children:
                if node is self._root:
                    break
                del node.table[node.key]
                node = node.parent

    def _compact(self) -> None:
        """Drop stale entries, so that a popular prefix does not make the queue grow for ever."""
        kept: deque[KVBlock | int] = deque()
        for entry in self._queue:
            if not isinstance(entry, int) and entry.stale:
                entry.stale -= 1
            elif isinstance(entry, int) and kept and isinstance(kept[-1], int):
                kept[-1] += entry
            else:
                kept.append(entry)
        self._queue = kept
        self._stale = 0

    def contents(self) -> list[object]:
        """The free queue in order, for tests and debugging: counts, and the keys of found blocks.

        Equal lists mean equal pools for every later lookup, allocation and eviction.
        """
        self._compact()
        result: list[object] = [self._unhashed]
        for entry in self._queue:
            if isinstance(entry, int):
                result.append(entry)
            else:
                path: list[int] = []
                node: PrefixNode | None = entry.node
                rank = entry.node.blocks.index(entry)
                while node is not None and node is not self._root:
                    path.append(node.key)
                    node = node.parent
                result.append((tuple(reversed(path)), rank))
        return result


def prompt_block_ids(
    hash_ids: Sequence[int], hash_block_tokens: int, block_size: int, prompt_tokens: int
) -> list[int]:
    """Content ids per KV block from a trace's prefix ids, full blocks only.

    Parameters
    ----------
    hash_ids
        One id per ``hash_block_tokens`` tokens of the prompt; the last may stand for fewer.
    hash_block_tokens
        Tokens per id, a multiple of ``block_size``.
    block_size
        Tokens per KV block.
    prompt_tokens
        Length of the prompt; a KV block that it does not fill gets no id.

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
    full = min(prompt_tokens // block_size, ratio * len(hash_ids))
    ids: list[int] = []
    for hash_id in hash_ids[: -(-full // ratio)]:
        ids.extend(range(hash_id * ratio, hash_id * ratio + ratio))
    del ids[full:]
    return ids
