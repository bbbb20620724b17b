"""What a session's next prompt begins with: the prompt and the answer of the turn before it.

vLLM's prefix cache holds blocks of answers as well as of prompts, so the next turn of a session
finds both. A trace says at most what prompts share. Here the ids of a request go on into its answer
where a later turn begins with that, and where a trace has no ids its lengths tell: a prompt that is
at least as long as prompt and answer of the turn before begins with both, one that is at least as
long as that prompt begins with the prompt alone (its client left something of the answer out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qsim.arrays import IntArray
from qsim.traces.trace import HashIds, Trace

#: tokens of an id where the trace has none and no two requests continue the same one
_ID_TOKENS = 128
#: of all requests together, in that case: longer ones stand for more tokens, and memory is bounded
_MOST_IDS = 1 << 24


def with_history(trace: Trace, block_sizes: Sequence[int]) -> tuple[Trace, list[str]]:
    """The trace with ids of what its sessions' turns share, and what a reader should know of it.

    As it is where its turns do not wait for answers, or no pool caches prefixes: ``block_sizes``
    are the tokens of a KV block in those that do.
    """
    if trace.turns is None or not block_sizes:
        return trace, []
    begun = _Beginnings(trace)
    if not begun.later:
        return trace, []
    ids = _Naming(trace, begun, math.lcm(*block_sizes)).named()
    return replace(trace, hash_ids=ids), [begun.note()]


class _Beginnings:
    """How much of the turn before it each prompt begins with, and who continues whom.

    ``next`` is by request the one whose ids are those of its own answer; -1: none.
    """

    def __init__(self, trace: Trace) -> None:
        assert trace.turns is not None
        prompt, output = trace.prompt_tokens.tolist(), trace.output_tokens.tolist()
        n = len(prompt)
        #: by request, the one whose answer it waits for; -1: none
        self.previous: list[int] = trace.turns.previous.tolist()
        #: by request, the tokens of that one's prompt, or prompt and answer, that it begins with
        self.shared, self.next = [0] * n, [-1] * n
        #: turns that follow another one
        self.later = self.both = self.alone = 0
        self.forks = False
        for j, i in enumerate(self.previous):
            if i < 0:
                continue
            self.later += 1
            if prompt[j] < prompt[i] or not _agree(trace.hash_ids, i, j, prompt[i]):
                continue
            both = prompt[i] + output[i]
            longer = prompt[j] >= both
            self.shared[j] = both if longer else prompt[i]
            self.both += longer
            self.alone += not longer
            before = self.next[i]
            if before < 0 or (longer and self.shared[before] < both):
                self.next[i] = j
            self.forks = self.forks or before >= 0

    def note(self) -> str:
        """What the lengths say."""
        text = (
            f"of {self.later:,} later turns of sessions {self.both:,} begin with prompt and answer "
            "of the turn before, by their lengths"
        )
        neither = self.later - self.both - self.alone
        rest = [
            f"{count:,} with {what}"
            for count, what in ((self.alone, "its prompt alone"), (neither, "neither"))
            if count
        ]
        return ", ".join([text, *rest])


def _agree(ids: HashIds | None, i: int, j: int, prompt: int) -> bool:
    """Whether two requests' ids are the same as far as the first one's prompt fills its own."""
    if ids is None:
        return True
    first, second = ids[i], ids[j]
    most = min(len(first), len(second), prompt // ids.block_tokens)
    return bool((first[:most] == second[:most]).all())


class _Naming:
    """Gives ids to what sessions' prompts and answers hold.

    A *branch* is a chain of turns that continue each other: its text only grows, so what stands at
    one place of it is the same in all of its turns. A turn that continues what another one
    continued, too, begins a branch of its own there.
    """

    def __init__(self, trace: Trace, begun: _Beginnings, block_tokens: int) -> None:
        self._own = trace.hash_ids
        self._prompt = trace.prompt_tokens.tolist()
        self._begun = begun
        self._used = 0
        self._tokens = self._described(trace.output_tokens.tolist())
        if self._own is None:
            self._size = block_tokens
            while not begun.forks and (
                2 * self._size <= _ID_TOKENS or sum(self._tokens) > _MOST_IDS * self._size
            ):
                self._size *= 2
            self._values = np.empty(0, np.int64)
        else:
            self._size = self._own.block_tokens
            distinct, number = np.unique(self._own.values, return_inverse=True)
            self._values = number.reshape(-1).astype(np.int64)
            self._used = len(distinct)
        #: ids that one branch may need
        self._stride = max(self._tokens, default=0) // self._size + 2

    def _described(self, output: list[int]) -> list[int]:
        """By request, up to which token ids say what it holds."""
        begun, prompt = self._begun, self._prompt
        found = []
        for i, j in enumerate(begun.next):
            both = prompt[i] + output[i]
            found.append(both if j >= 0 and begun.shared[j] == both else prompt[i])
        return found

    def named(self) -> HashIds:
        """The ids of all requests."""
        begun, size = self._begun, self._size
        n = len(self._prompt)
        branches: list[list[tuple[int, int]]] = []  # by request: places from which on, first ids
        for i, before in enumerate(begun.previous):
            if begun.shared[i] and begun.next[before] == i:
                branches.append(branches[before])
                continue
            cut = begun.shared[i] // size
            inherited = [s for s in branches[before] if s[0] < cut] if cut else []
            branches.append([*inherited, (cut, self._used + i * self._stride)])
        found: list[IntArray] = [np.empty(0, np.int64)] * n
        for i in range(n - 1, -1, -1):
            own, after = self._of_trace(i), begun.next[i]
            if after < 0 and not begun.shared[i]:
                found[i] = own  # nobody shares anything that the trace does not say
                continue
            most = -(-self._tokens[i] // size)
            if after >= 0:  # which knows what the last, partial one of its own became
                full = own[: self._prompt[i] // size]
                found[i] = np.concatenate([full, found[after][len(full) : most]])
            elif len(own) < most:
                rest = _ids_of_branch(branches[i], len(own), most)
                found[i] = np.concatenate([own, rest])
            else:
                found[i] = own
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum([len(ids) for ids in found], out=offsets[1:])
        return HashIds(np.concatenate(found), offsets, size, np.array(self._tokens, np.int64))

    def _of_trace(self, i: int) -> IntArray:
        if self._own is None:
            return self._values
        return self._values[self._own.offsets[i] : self._own.offsets[i + 1]]


def _ids_of_branch(segments: list[tuple[int, int]], start: int, stop: int) -> IntArray:
    """Ids of a branch's places from start to stop."""
    places = np.arange(start, stop)
    starts = np.array([s[0] for s in segments])
    firsts = np.array([s[1] for s in segments])
    return firsts[np.searchsorted(starts, places, side="right") - 1] + places
