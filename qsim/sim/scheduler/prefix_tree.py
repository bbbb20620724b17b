"""What the prefix cache knows: contents as a tree, and the physical blocks that hold them.

vLLM chains hashes: a block's hash stands for its content and all that comes before it. Here a node
of a tree stands for that, not for one block but for the run of blocks that share one prefix id.
Physical blocks with neighbouring contents which were entered together, and have since been used
and freed together, are one object with two offsets into their node; it is split where a later
request uses a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator


class PrefixNode:
    """The contents of the blocks under one prefix id, together with everything before them."""

    __slots__ = ("children", "key", "parent", "runs")

    def __init__(self, parent: PrefixNode | None = None, key: int = 0) -> None:
        #: where the node hangs in the tree. No parent: the root, or what one request alone can
        #: find.
        self.parent = parent
        self.key = key
        #: by prefix id
        self.children: dict[int, PrefixNode] | None = None
        #: physical blocks with contents of this node, those entered first in front. Several may
        #: hold the same: vLLM does not merge equal blocks, and finds the one entered first.
        self.runs: list[Run] = []

    def child(self, key: int) -> PrefixNode:
        """The child under this id, made if it is missing."""
        children = self.children
        if children is None:
            children = self.children = {}
        node = children.get(key)
        if node is None:
            node = children[key] = PrefixNode(self, key)
        return node

    def prune(self) -> None:
        """Take the node out of the tree if it holds nothing, and then its parent likewise."""
        node = self
        while not node.runs and not node.children and node.parent is not None:
            parent = node.parent
            assert parent.children is not None
            del parent.children[node.key]
            node = parent

    def cover(self, start: int, stop: int, parts: list[Part]) -> int:
        """Find physical blocks for the offsets from start; return where the first is missing.

        Appends ``(run, start, stop)`` to ``parts``: the blocks that vLLM would find.
        """
        # At each offset the run entered first counts. No need to look for one that begins further
        # on and was entered before the run at hand: it would have been entered together with, or
        # after, blocks for the offsets before it. These are then still there, because whoever
        # holds or frees a block holds, or frees later, the blocks before it; and they come first.
        runs = self.runs
        while start < stop:
            for run in runs:
                if run.start <= start < run.stop:
                    break
            else:
                return start
            end = run.stop if run.stop < stop else stop
            parts.append((run, start, end))
            start = end
        return start


class Run:
    """Physical blocks of one node that share their fate."""

    __slots__ = ("node", "rest", "stale", "start", "stop", "users")

    def __init__(self, node: PrefixNode, start: int, stop: int, users: int) -> None:
        self.node = node
        #: offsets of the contents within the node. Eviction takes the last one first.
        self.start = start
        self.stop = stop
        #: requests that hold the blocks
        self.users = users
        #: how many of the run's entries in the free queue no longer count: the first ones
        self.stale = 0
        #: the run split off behind this one while it was in use; its users then hold that too, as
        #: far as they held this
        self.rest: Run | None = None

    def split_in_use(self, at: int) -> Run:
        """Cut a run with users in two; return the second."""
        second = Run(self.node, at, self.stop, self.users)
        second.rest = self.rest
        self.rest = second
        self.stop = at
        self.node.runs.insert(self.node.runs.index(self) + 1, second)
        return second

    def split_free(self, at: int) -> Run:
        """Cut a run without users in two; return the first.

        The run itself, with its entry in the free queue, becomes the second, which is reused
        first.
        """
        first = Run(self.node, self.start, at, 0)
        self.start = at
        self.node.runs.insert(self.node.runs.index(self), first)
        return first

    def held(self, stop: int) -> Iterator[Run]:
        """The pieces of what a request holds from this run's start up to the offset ``stop``."""
        run: Run | None = self
        while run is not None:
            yield run
            if run.stop >= stop:
                return
            run = run.rest


Part = tuple[Run, int, int]
"""Blocks of a run, by offsets within its node: ``(run, start, stop)``."""
