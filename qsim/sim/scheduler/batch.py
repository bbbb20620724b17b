"""What one schedule call chose to run, and what applying its result did."""

from __future__ import annotations

from qsim.sim.scheduler.request import Request


class Batch:
    """The outcome of one schedule call; it may be empty."""

    __slots__ = (
        "clock",
        "decode_context_tokens",
        "ending",
        "explicit",
        "members",
        "num_decodes",
        "num_prefill_tokens",
        "num_tokens",
        "preempted",
        "prefill",
        "sampled",
        "step",
    )

    def __init__(self, step: int) -> None:
        #: number of the schedule call, counted from 1
        self.step = step
        #: ``(tokens, computed before)`` of the items with more than one token
        self.prefill: list[tuple[int, int]] = []
        #: sum of the tokens in ``prefill``
        self.num_prefill_tokens = 0
        #: number of items with one token
        self.num_decodes = 0
        #: sum of ``computed before`` over the items with one token
        self.decode_context_tokens = 0
        #: tokens of all items
        self.num_tokens = 0
        #: requests that lost their blocks, in the order in which they did
        self.preempted: list[Request] = []
        # The decodes that run in lockstep (decode_group.py): who, at which reading of the clock,
        # and whose last token this is. A list of members is shared between batches: never change
        # it.
        self.members: list[Request] = []
        self.clock = 0
        self.ending: list[Request] = []
        # All others, which come after the members, and those of them that get a token.
        self.explicit: list[tuple[Request, int, int]] = []
        self.sampled: list[Request] = []

    @property
    def items(self) -> list[tuple[Request, int, int]]:
        """``(request, tokens, computed before)`` in schedule order.

        Built when read; read it before the batch is given to ``Scheduler.update``.
        """
        clock = self.clock
        return [(request, 1, request.base + clock) for request in self.members] + self.explicit

    @property
    def requests(self) -> list[Request]:
        """The requests of ``items``, in their order, at less cost. Do not change the list."""
        if not self.explicit:
            return self.members
        return self.members + [item[0] for item in self.explicit]

    def spell_out(self) -> None:
        """Turn the members into items of their own, because their group is dissolved."""
        self.explicit = self.items
        self.sampled = self.members + self.sampled
        self.members = []
        self.ending = []

    def __repr__(self) -> str:
        return (
            f"Batch(step={self.step}, prefill={self.prefill}, num_decodes={self.num_decodes}, "
            f"decode_context_tokens={self.decode_context_tokens})"
        )


class Update:
    """What the result of one batch changed."""

    __slots__ = ("finished", "first", "tokens")

    def __init__(
        self, tokens: list[Request], first: list[Request], finished: list[Request]
    ) -> None:
        #: requests that got one output token each, in schedule order. Do not change the list.
        self.tokens = tokens
        #: those of them for which it was the first output token ever
        self.first = first
        #: those of them that ended with it
        self.finished = finished
