"""Shared prefixes: conversations whose turns repeat what went before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.traces.synth.lengths import QuantileTable
from qsim.traces.trace import HashIds

#: A turn looks for its predecessor among so many requests around the age it drew.
_NEIGHBOURS = 256
#: Requests are remembered as possible predecessors up to this many.
_MEMORY = 1 << 15


@dataclass(frozen=True)
class PrefixModel:
    """Which prompts begin like an earlier one, and for how many blocks.

    A request is a later turn of a conversation with a probability that depends on its prompt's
    length. A later turn looks back a random time, and continues the prompt that is shorter by a
    random number of blocks. It shares all of that prompt but its last block (which the turn
    filled up with other text), or with some probability fewer (an edited or branched history).
    So prompt lengths keep their own distribution, whatever is shared.
    """

    #: prompt tokens that an id stands for
    block_tokens: int
    #: first blocks that all prompts share (a system prompt)
    common_blocks: int
    #: prompt lengths in blocks, rising: the bin edges of ``later_share``
    later_blocks: tuple[int, ...]
    #: probability of being a later turn in each bin; one more than the edges
    later_share: tuple[float, ...]
    #: seconds since the turn before
    age_s: QuantileTable
    #: quantiles of the growth in blocks, which may be negative
    growth_p: tuple[float, ...]
    growth_blocks: tuple[float, ...]
    #: probability that a later turn shares less than it could
    branch_share: float
    #: mean share of the blocks that such a turn still has in common, in (0, 1)
    branch_kept: float

    def start(self, rng: np.random.Generator) -> PrefixDraw:
        """A draw whose requests come in order, chunk by chunk."""
        return PrefixDraw(self, rng)


class PrefixDraw:
    """Gives ids to requests in order of arrival; remembers the recent ones."""

    def __init__(self, model: PrefixModel, rng: np.random.Generator) -> None:
        self._model = model
        self._rng = rng
        self._next_id = model.common_blocks
        self._times: FloatArray = np.empty(0)
        self._blocks: IntArray = np.empty(0, np.int64)
        self._ids: list[list[int]] = []

    def assign(self, arrival_s: FloatArray, prompt_tokens: IntArray) -> HashIds:
        """The ids of the next requests."""
        model, rng = self._model, self._rng
        n = len(arrival_s)
        blocks = -(-prompt_tokens // model.block_tokens)
        share = np.asarray(model.later_share)[
            np.searchsorted(model.later_blocks, blocks, side="right")
        ]
        later = rng.random(n) < share
        back_to = arrival_s - model.age_s.at(rng.random(n))
        growth = np.rint(np.interp(rng.random(n), model.growth_p, model.growth_blocks))
        wanted = np.maximum(blocks - growth.astype(np.int64), 1)
        branches = rng.random(n) < model.branch_share
        # U ** a has mean 1 / (1 + a).
        kept = rng.random(n) ** (1 / model.branch_kept - 1)

        past = len(self._times)
        times = np.concatenate([self._times, arrival_s])
        sizes = np.concatenate([self._blocks, blocks])
        ids = self._ids
        middle = np.searchsorted(times, back_to)
        for i in range(n):
            here = past + i
            count = int(blocks[i])
            shared = min(model.common_blocks, count)
            chain = list(range(shared))
            if later[i] and here:
                high = min(int(middle[i]) + _NEIGHBOURS // 2, here)
                low = max(0, high - _NEIGHBOURS)
                near = low + int(np.argmin(np.abs(sizes[low:high] - wanted[i])))
                most = min(int(sizes[near]), count) - 1
                if branches[i]:
                    most = int(most * kept[i])
                if most > shared:
                    chain = ids[near][:most]
            fresh = count - len(chain)
            ids.append(chain + list(range(self._next_id, self._next_id + fresh)))
            self._next_id += fresh
        result = HashIds.from_lists(ids[past:], model.block_tokens)
        self._times, self._blocks = times[-_MEMORY:], sizes[-_MEMORY:]
        self._ids = ids[-_MEMORY:]
        return result
