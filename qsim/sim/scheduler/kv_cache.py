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
* Blocks of an answer that the next turn of a session begins with are a number, too, while the
  request decodes in a group: the turn comes after the answer, so nobody asks for them before.

Only contents that may be shared, and those of preempted requests, are kept in a tree
(prefix_tree.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from qsim.sim.scheduler.block_ids import BlockIds
from qsim.sim.scheduler.prefix_tree import Part, PrefixNode, Run
from qsim.sim.scheduler.request import Request


class KVCache:
    """Blocks of one engine: who holds how many, and what freed ones still contain.

    All requests of one cache must count their prefix ids alike: either one per block, or
    ``BlockIds`` of the same ratio. ``num_gpu_blocks`` includes the null block: one block fewer is
    usable. With prefix caching full blocks can be found again by their content.
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
        #: blocks of the pool, the null block not counted
        self.usable = num_gpu_blocks - 1
        #: blocks without a user, whether or not they still hold a cached prefix
        self.free = self.usable
        #: counts the events after which a request that did not fit may fit: blocks given back, or
        #: shared content entered
        self.changes = 0
        self._unhashed = self.usable  # the queue's leading run of blocks without a hash
        # The rest of the queue, next to be taken first: a number is a run of blocks that nobody
        # can look up any more. A run that is found again stays in here and is marked stale.
        self._queue: deque[Run | int] = deque()
        self._stale = 0
        self._root = PrefixNode()

    # --------------------------------------------------------------------------- admission

    def lookup(self, request: Request, known_tokens: int) -> list[Part]:
        """Longest cached prefix that leaves at least one of the known tokens to compute."""
        parts: list[Part] = []
        if not self.caching or not (request.block_ids or request.own):
            return parts
        most = (known_tokens - 1) // self.block_size
        ids, ratio = _prefix_ids(request)
        shared = min(most, len(request.block_ids))
        node: PrefixNode | None = self._root
        position = 0
        while position < shared:
            assert node is not None
            node = node.children.get(ids[position // ratio]) if node.children else None
            if node is None:
                return parts
            wanted = min(ratio, shared - position)
            found = node.cover(0, wanted, parts)
            position += found
            if found < wanted:
                return parts
        if request.own is not None:
            request.own.cover(position, most, parts)
        return parts

    def shortage(self, hits: list[Part], known_tokens: int) -> int:
        """Blocks that are missing to hold all known tokens, given these hits; <= 0 if none is."""
        need = -(-known_tokens // self.block_size)
        for run, start, stop in hits:
            if run.users:
                need -= stop - start
        return need - self.free

    def admit(self, request: Request, hits: list[Part], cached: int, tokens: int) -> None:
        """Give a request without blocks its hits, and new blocks up to this many tokens.

        ``hits`` must come from ``lookup`` with nothing done in between; ``cached`` is their sum.
        """
        shared = request.shared
        for part in hits:
            run = self._use(*part)
            shared.append((run, part[2]))
        request.named = request.hashed = cached
        request.blocks = -(-tokens // self.block_size)
        self.take(request.blocks - cached)

    def _use(self, run: Run, start: int, stop: int) -> Run:
        """Add a user to these blocks of a run; return the run that then begins with them."""
        if run.users:
            if start > run.start:
                run = run.split_in_use(start)
            if stop < run.stop:
                run.split_in_use(stop)
        else:
            self.free -= stop - start
            before = run.split_free(start) if start > run.start else None
            if stop < run.stop:
                wanted = run.split_free(stop)
                if before is not None:
                    self._queue_after(run, before)
                run = wanted
            elif before is not None:
                # The queue's entry passes to what is left; the wanted blocks have none.
                before.start, before.stop, run.start, run.stop = start, stop, before.start, start
                run = before
            else:
                run.stale += 1
                self._stale += 1
        run.users += 1
        return run

    def _queue_after(self, run: Run, new: Run) -> None:
        """Queue a run right behind another. Slow, but only equal blocks make it necessary."""
        queue = self._queue
        position = len(queue)
        while queue[position - 1] is not run:
            position -= 1
        queue.insert(position, new)

    # -------------------------------------------------------------------- blocks and hashes

    def take(self, count: int) -> None:
        """Take blocks from the head of the free queue; what they contained is forgotten."""
        self.free -= count
        rest = self._unhashed - count
        if rest >= 0:
            self._unhashed = rest
        else:
            self._unhashed = 0
            self._evict(-rest)

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
            elif head.stale:
                head.stale -= 1
                self._stale -= 1
                queue.popleft()
            else:
                size = head.stop - head.start
                if size > count:
                    head.stop -= count
                    return
                count -= size
                queue.popleft()
                head.node.runs.remove(head)
                head.node.prune()

    def enter(self, request: Request, full_blocks: int) -> None:
        """Make the leading blocks of a request findable, up to this number."""
        request.hashed = full_blocks
        position = request.named
        stop = min(full_blocks, len(request.block_ids))
        if position >= stop:
            return
        ids, ratio = _prefix_ids(request)
        shared = request.shared
        node = shared[-1][0].node if shared else self._root
        while position < stop:
            offset = position % ratio
            if not offset:
                node = node.child(ids[position // ratio])
            end = min(ratio, offset + stop - position)
            run = Run(node, offset, end, 1)
            node.runs.append(run)
            shared.append((run, end))
            position += end - offset
        request.named = stop
        self.changes += 1

    def release(self, request: Request, *, preempted: bool) -> None:
        """Take all blocks from a request: hashed ones stay findable until they are reused."""
        named = request.named
        hashed = request.hashed
        if named < hashed and named < len(request.block_ids):
            self.enter(request, hashed)  # blocks of the answer that filled up in a decode group
            named = request.named
        self._unhashed += request.blocks - hashed
        self.free += request.blocks - named
        count = hashed - named
        if count:
            queue = self._queue
            if preempted:
                own = request.own
                if own is None:
                    own = request.own = PrefixNode()
                run = Run(own, named, hashed, 0)
                own.runs.append(run)
                queue.append(run)
            elif queue and isinstance(queue[-1], int):
                queue[-1] += count
            else:
                queue.append(count)
        if named:
            self._release_named(request)
        request.blocks = request.hashed = 0
        self.changes += 1

    def _release_named(self, request: Request) -> None:
        queue = self._queue
        for first, stop in reversed(request.shared):
            pieces = [first] if first.stop == stop else list(first.held(stop))
            for run in reversed(pieces):
                run.users -= 1
                if not run.users:
                    queue.append(run)
                    self.free += run.stop - run.start
        request.shared = []
        request.named = 0
        if self._stale > 1000 and 2 * self._stale > len(queue):
            self._compact()

    def _compact(self) -> None:
        """Drop stale entries, so that a popular prefix does not make the queue grow for ever."""
        kept: deque[Run | int] = deque()
        for entry in self._queue:
            if isinstance(entry, int):
                if kept and isinstance(kept[-1], int):
                    kept[-1] += entry
                else:
                    kept.append(entry)
            elif entry.stale:
                entry.stale -= 1
            else:
                kept.append(entry)
        self._queue = kept
        self._stale = 0


def _prefix_ids(request: Request) -> tuple[Sequence[int], int]:
    """A request's prefix ids, and how many blocks each covers."""
    ids = request.block_ids
    if isinstance(ids, BlockIds):
        return ids.hash_ids, ids.ratio
    return ids, 1
