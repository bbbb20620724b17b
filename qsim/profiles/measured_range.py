"""How far the measurements behind a profile reach, and what a run did beyond them.

Within the range a step time is an interpolation between steps that were seen; beyond it, it rests
on the rules of :mod:`qsim.profiles.spans` and :mod:`qsim.sim.engine.timing`: whole tiles at the
rate of the largest measured steps, straight lines in requests and context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsim.profiles.schema import Profile


@dataclass(frozen=True)
class MeasuredRange:
    """The largest that was measured; None: the profile does not say.

    Attributes
    ----------
    step_tokens : int or None
        Tokens of one step, those of prefills and of decodes together.
    step_requests : int or None
        Requests in one step.
    step_context_tokens : int or None
        Tokens of context of all decodes of one step.
    request_context_tokens : int or None
        Prompt and output of one request.
    """

    step_tokens: int | None = None
    step_requests: int | None = None
    step_context_tokens: int | None = None
    request_context_tokens: int | None = None

    @classmethod
    def of(cls, profile: Profile) -> MeasuredRange:
        """That of a profile; older ones tell the largest batch by its decodes alone."""
        measured = profile.measured_range
        return cls(
            step_tokens=_largest(measured, "step_tokens"),
            step_requests=_largest(measured, "step_requests", "decode_rows"),
            step_context_tokens=_largest(measured, "decode_context_tokens"),
            request_context_tokens=_largest(measured, "request_context_tokens"),
        )

    @property
    def known(self) -> bool:
        """Whether the profile says anything."""
        return any(v is not None for v in vars(self).values())

    def limits(self) -> dict[str, int]:
        """The largest value of each setting of an engine that keeps its steps within the range."""
        limits = {
            "max_num_seqs": self.step_requests,
            "max_num_batched_tokens": self.step_tokens,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    def exceeded(self, max_num_seqs: int, max_num_batched_tokens: int) -> list[str]:
        """Which of these settings of an engine lead beyond the range, and how far that reaches."""
        limits = self.limits()
        return [
            f"{name} is {value}; the profile was measured up to {limits[name]} {what} a step"
            for name, value, what in (
                ("max_num_batched_tokens", max_num_batched_tokens, "tokens"),
                ("max_num_seqs", max_num_seqs, "requests"),
            )
            if value > limits.get(name, value)
        ]

    def objection(self, max_num_seqs: int, max_num_batched_tokens: int) -> str | None:
        """Why these settings are not recommended; None if they are within the range."""
        exceeded = self.exceeded(max_num_seqs, max_num_batched_tokens)
        if not exceeded:
            return None
        return f"{exceeded[0]}: lower it, or give --beyond-measured to rely on extrapolated steps"

    def caution(self, max_num_seqs: int, max_num_batched_tokens: int) -> str:
        """What a recommendation of these settings would rest on; "" if all was measured."""
        exceeded = self.exceeded(max_num_seqs, max_num_batched_tokens)
        if not exceeded:
            return ""
        return (
            f"{'; '.join(exceeded)}: what is told of larger steps rests on whole tiles at the rate "
            "of the largest measured one, and on straight lines in requests and context"
        )


def _largest(measured: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = measured.get(name)
        if isinstance(value, list) and value and isinstance(value[-1], int):
            return value[-1]
    return None


@dataclass(frozen=True)
class BeyondMeasured:
    """How much of a run lay beyond the measured range.

    A step counts once: by its requests, else by its tokens, else by its context.

    Attributes
    ----------
    measured : MeasuredRange
    steps, by_requests, by_tokens, by_context : int
        Engine steps in all, and those beyond the range by what.
    requests, long_requests : int
        Requests in all, and those whose prompt and output are longer than any measured request.
    peak_requests : int
        The largest batch of the run.
    max_num_batched_tokens : int
        The run's token budget of a step.
    """

    measured: MeasuredRange
    steps: int
    by_requests: int
    by_tokens: int
    by_context: int
    requests: int
    long_requests: int
    peak_requests: int
    max_num_batched_tokens: int

    @property
    def step_share(self) -> float:
        """Share of the steps beyond the range."""
        beyond = self.by_requests + self.by_tokens + self.by_context
        return beyond / self.steps if self.steps else 0.0

    @property
    def request_share(self) -> float:
        """Share of the requests that are longer than any measured one."""
        return self.long_requests / self.requests if self.requests else 0.0

    def notes(self) -> list[str]:
        """What a reader should know; none if all was measured."""
        m = self.measured
        notes = []
        for count, text in (
            (
                self.by_requests,
                f"up to {self.peak_requests} requests ran in one step; the profile was measured up "
                f"to {m.step_requests}",
            ),
            (
                self.by_tokens,
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; the profile was "
                f"measured up to {m.step_tokens} tokens a step",
            ),
            (
                self.by_context,
                "the decodes of a step had more context than was measured "
                f"({m.step_context_tokens} tokens)",
            ),
        ):
            if count:
                notes.append(
                    f"{text}: {_percent(count / self.steps)} of the steps are beyond the measured "
                    "range, their times extrapolated"
                )
        if self.long_requests:
            notes.append(
                f"{_percent(self.request_share)} of the requests are longer than any that was "
                f"measured ({m.request_context_tokens} tokens of prompt and output): the attention "
                "over their contexts is extrapolated"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "step_share": self.step_share,
            "steps": {
                "all": self.steps,
                "requests": self.by_requests,
                "tokens": self.by_tokens,
                "context": self.by_context,
            },
            "request_share": self.request_share,
            "measured_up_to": {k: v for k, v in vars(self.measured).items() if v is not None},
        }


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"
