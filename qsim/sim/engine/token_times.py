"""The gaps between the tokens that one replica emits, counted group by group."""

from __future__ import annotations

from array import array
from struct import Struct

from qsim.sim.scheduler.batch import Batch, Update
from qsim.sim.scheduler.request import Request

#: the bytes of one entry of :class:`qsim.sim.results.itl.Gaps`: an array takes them in half the
#: time that it takes for four numbers
pack_entry = Struct("=4q").pack


class TokenTimes:
    """Counts the gap before every token but a request's first.

    The members of the scheduler's group have had a token in every step since they joined it, and
    joined it right after a step that gave them one. So between two steps of the group all gaps are
    equal; only other requests, and all of them where the group was dissolved, need the time of
    their own latest token.

    Parameters
    ----------
    emitted_ps
        By request: the time of its latest token, -1 before the first. It is brought up to date
        when somebody needs it.
    gaps
        Takes entries of :class:`qsim.sim.results.itl.Gaps`.

    Attributes
    ----------
    grouped
        Whether the latest update was that of a step of the group.
    time_ps
        When the latest update was.
    """

    __slots__ = ("_unwritten", "emitted_ps", "gaps", "grouped", "time_ps")

    def __init__(self, emitted_ps: array[int], gaps: array[int]) -> None:
        self.emitted_ps = emitted_ps
        self.gaps = gaps
        self.grouped = False
        self.time_ps = 0
        self._unwritten: list[Request] = []  # whose latest token came then

    def step(self, time_ps: int, batch: Batch, update: Update, as_group: bool) -> None:
        """The update of a step; ``as_group``: it was one of the group, which still exists."""
        gaps = self.gaps
        if as_group and self.grouped:
            members = len(batch.members)
            if len(update.tokens) < members + len(batch.sampled):  # somebody was aborted
                members = sum([r in update.tokens for r in batch.members])
            if members:
                gaps.frombytes(pack_entry(time_ps - self.time_ps, 0, 1, members))
            if len(batch.sampled) > len(update.first):  # somebody who was preempted
                emitted = self.emitted_ps
                for request in batch.sampled:
                    before = emitted[request.index]
                    if before >= 0 and request in update.tokens:
                        gaps.extend((time_ps - before, 0, 1, 1))
            self._unwritten = update.tokens
        else:
            self.settle()
            self._one_by_one(time_ps, update.tokens)
        self.time_ps = time_ps

    def resume(self, requests: list[Request]) -> None:
        """After steps that were counted elsewhere: who had a token at ``time_ps``."""
        self._unwritten = requests

    def settle(self) -> None:
        """Bring ``emitted_ps`` up to date."""
        emitted, time_ps = self.emitted_ps, self.time_ps
        for request in self._unwritten:
            emitted[request.index] = time_ps
        self._unwritten = []

    def _one_by_one(self, time_ps: int, requests: list[Request]) -> None:
        emitted, gaps = self.emitted_ps, self.gaps
        since = -2
        common = 0  # so many in a row had their latest token at that time
        for request in requests:
            i = request.index
            before = emitted[i]
            emitted[i] = time_ps
            if before == since:
                common += 1
            elif before >= 0:
                if common:
                    gaps.extend((time_ps - since, 0, 1, common))
                since = before
                common = 1
        if common:
            gaps.extend((time_ps - since, 0, 1, common))
