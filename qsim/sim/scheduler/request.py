"""One request as the scheduler sees it: what was asked for, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsim.sim.scheduler.decode_group import DecodeGroup
    from qsim.sim.scheduler.prefix_tree import PrefixNode, Run

WAITING = 0
RUNNING = 1
FINISHED = 2


class Request:
    """A request and its state in one scheduler.

    Parameters
    ----------
    index
        The caller's number for it; the scheduler does not use it.
    prompt_tokens, output_tokens
        Lengths, in tokens, each >= 1. ``max_model_len`` may cut the output.
    priority
        Smaller is more urgent; used by the priority policy only.
    block_ids
        Content ids of the leading full KV blocks of the prompt, and of the answer behind it, which
        other requests may share, one id per KV block. The KV cache chains them, so equal ids
        behind unequal prefixes do not match. The rest is taken to be unlike any other request's.
    """

    # Below ``finished``: the scheduler's own state. ``target`` counts the tokens that are known or
    # in flight and ``computed`` those that were scheduled, so ``target - computed`` is what a
    # schedule call may still give. While ``group`` is set, ``computed``, ``target``,
    # ``in_flight``, ``blocks`` and ``hashed`` follow from the group's clock instead
    # (decode_group.py).
    __slots__ = (
        "arrival",
        "base",
        "block_ids",
        "blocks",
        "cached_tokens",
        "computed",
        "end",
        "finished",
        "group",
        "hashed",
        "in_flight",
        "index",
        "limit",
        "named",
        "order",
        "output_tokens",
        "own",
        "preemptions",
        "priority",
        "prompt_tokens",
        "shared",
        "state",
        "target",
    )

    def __init__(
        self,
        index: int,
        prompt_tokens: int,
        output_tokens: int,
        *,
        priority: int = 0,
        block_ids: Sequence[int] = (),
    ) -> None:
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.block_ids = block_ids
        #: tokens found in the prefix cache when the request was first admitted
        self.cached_tokens = 0
        #: how often its blocks were taken away
        self.preemptions = 0
        #: true after its last token was applied, or after an abort
        self.finished = False
        self.state = WAITING
        self.limit = 0  # tokens known when it finishes
        self.arrival = 0  # position in order of arrival
        self.order = 0  # position in order of admission; 0 before the first
        self.computed = 0
        self.target = prompt_tokens
        self.in_flight = 0  # sampled tokens whose step was not applied yet
        self.blocks = 0  # KV blocks held
        self.hashed = 0  # of these, the leading ones that entered the prefix cache
        self.named = 0  # of these, the leading ones that the cache's tree knows ...
        self.shared: list[tuple[Run, int]] = []  # ... as (run, offset where this request's end)
        self.own: PrefixNode | None = None  # unshared contents that preemptions left behind
        self.group: DecodeGroup | None = None
        self.base = 0
        self.end = 0

    @property
    def num_output_tokens(self) -> int:
        """Output tokens that are known, that is, whose step was applied by ``Scheduler.update``."""
        group = self.group
        if group is None:
            return self.target - self.in_flight - self.prompt_tokens
        return group.known_tokens(self) - self.prompt_tokens

    def __repr__(self) -> str:
        return (
            f"Request({self.index}, {self.prompt_tokens}, {self.output_tokens}, "
            f"priority={self.priority})"
        )
