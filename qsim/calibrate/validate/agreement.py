"""Does the scheduler run the batches that a real server ran?

The recorded send times and the recorded times of every schedule call and update are fed to
:class:`qsim.sim.scheduler.scheduler.Scheduler`, so that all that is left to differ is the
scheduling itself and the moment at which an arrival is taken in, which depends on the few
milliseconds that a request spends in the server's front end. A step agrees if it has the same
prefill tokens and the same number of decodes as the recorded one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qsim.arrays import IntArray
from qsim.as_json import JsonReady
from qsim.calibrate.fit.frontend import backlogs_ms, match_requests, modelled_arrivals_s
from qsim.calibrate.recordings.data import Recording
from qsim.profiles.schema import FrontEnd, Profile
from qsim.sim.scheduler.batch import Batch
from qsim.sim.scheduler.config import EngineConfig, EngineOptions
from qsim.sim.scheduler.request import Request
from qsim.sim.scheduler.scheduler import Scheduler

#: the front end's model is at most about this far off on a quiet machine, s
NEAR_S = 0.006

#: head of the Markdown table whose rows are those of :meth:`StepCounts.row`
AGREEMENT_HEAD = (
    "| recording | phase | steps | agree | agree, arrivals as recorded |",
    "|---|---|---:|---:|---:|",
)


@dataclass(frozen=True)
class Agreement:
    """How many steps of one recorded phase the scheduler reproduced."""

    phase: str
    #: Recorded steps.
    steps: int
    #: Steps with the recorded prefill tokens and number of decodes.
    agreeing: int
    #: Steps with other prefill tokens: a request was taken in a step earlier or later.
    other_prefill: int
    #: Steps with the same prefill tokens and another number of decodes: the echo of such a shift
    #: when the request begins to decode and when it ends.
    other_decodes: int
    #: Largest difference in the number of decodes over all steps.
    largest_difference: int
    #: Difference of all tokens computed, which a lost request would show.
    tokens_differ: int

    @property
    def share(self) -> float:
        """Agreeing steps over all steps."""
        return self.agreeing / self.steps if self.steps else float("nan")


@dataclass(frozen=True)
class StepCounts(JsonReady):
    """Steps that agree, with arrivals as the front end's model says and as recorded."""

    #: What was counted; "all" for a sum over phases or recordings.
    recording: str
    phase: str
    #: Recorded steps.
    steps: int
    #: Those that agree if requests arrive when the model of the front end says.
    agreeing: int
    #: Those that agree if requests arrive when the recording shows them.
    agreeing_recorded: int

    @classmethod
    def sum(cls, counts: Sequence[StepCounts], recording: str, phase: str) -> StepCounts:
        """Add counts up under another name."""
        return cls(
            recording,
            phase,
            sum(c.steps for c in counts),
            sum(c.agreeing for c in counts),
            sum(c.agreeing_recorded for c in counts),
        )

    def row(self) -> str:
        """A row of the table in Markdown."""
        own, given = self.agreeing / self.steps, self.agreeing_recorded / self.steps
        return f"| {self.recording} | {self.phase} | {self.steps} | {own:.1%} | {given:.1%} |"


def count_steps(
    recording: Recording,
    profile: Profile,
    labels: Sequence[str] | None = None,
    *,
    near_s: float = NEAR_S,
) -> list[StepCounts]:
    """Count the agreeing steps of each phase; parameters as of :func:`compare_steps`."""
    pairs = zip(
        compare_steps(recording, profile, labels),
        compare_steps(recording, profile, labels, recorded_arrivals=True, near_s=near_s),
        strict=True,
    )
    return [
        StepCounts(recording.name, own.phase, own.steps, own.agreeing, given.agreeing)
        for own, given in pairs
    ]


def compare_steps(
    recording: Recording,
    profile: Profile,
    labels: Sequence[str] | None = None,
    *,
    recorded_arrivals: bool = False,
    near_s: float = NEAR_S,
) -> Iterator[Agreement]:
    """Compare the scheduler's batches with the recorded ones, phase by phase (all but the warm-up
    by default); ``profile`` supplies the front end's times.

    With ``recorded_arrivals`` each request is taken in at the schedule call that first ran it in
    the recording, instead of when the front end's model says: what differs then is the scheduler's
    own doing. But only if that call is less than ``near_s`` later than the model says: who came
    much later had to wait for something else.
    """
    server = recording.server
    options = EngineOptions(
        max_model_len=server.max_model_len,
        max_num_batched_tokens=server.max_num_batched_tokens,
        enable_prefix_caching=server.prefix_caching,
        num_gpu_blocks_override=server.num_gpu_blocks,
        vllm_version=server.vllm_version or None,
    )
    memory = replace(
        profile.memory, block_size=server.block_size, num_gpu_blocks=server.num_gpu_blocks
    )
    profile = replace(profile, memory=memory)
    config = options.resolve(profile)
    for p, phase in enumerate(recording.phases):
        if phase.label not in labels if labels is not None else phase.label.startswith("warm"):
            continue
        rows = np.flatnonzero(recording.steps.phase == p)
        if len(rows) and (recording.requests.phase == p).any():
            arrivals = _arrivals(
                recording, p, profile.frontend, near_s if recorded_arrivals else None
            )
            yield _compare_phase(recording, p, rows, config, arrivals)


def _compare_phase(
    recording: Recording,
    p: int,
    rows: IntArray,
    config: EngineConfig,
    arrivals: deque[tuple[float, Request]],
) -> Agreement:
    s = recording.steps
    scheduler = Scheduler(config)
    inflight: deque[Batch] = deque()
    applied = 0
    agreeing = other_prefill = other_decodes = largest = tokens = 0
    for i, k in enumerate(rows):
        now_s = float(s.schedule_s[k])
        # results that the engine had applied by then; at most one step is in flight
        while applied < i and (i - applied > 1 or s.update_s[rows[applied]] < now_s):
            scheduler.update(inflight.popleft())
            applied += 1
        while arrivals and arrivals[0][0] <= now_s:
            scheduler.add(arrivals.popleft()[1])
        if arrivals and not scheduler.has_unfinished():
            # an idle engine was woken by a request: the next one was there
            scheduler.add(arrivals.popleft()[1])
        batch = scheduler.schedule()
        inflight.append(batch)
        # a chunk of one token counts as a decode, here as in the engine
        ones = sum(n == 1 for n, _ in s.chunks[k])
        prefill = int(s.prefill_tokens[k]) - ones
        decodes = int(s.decodes[k]) + ones
        difference = abs(batch.num_decodes - decodes)
        largest = max(largest, difference)
        tokens += batch.num_tokens - prefill - decodes
        if batch.num_prefill_tokens != prefill:
            other_prefill += 1
        elif difference:
            other_decodes += 1
        else:
            agreeing += 1
    return Agreement(
        recording.phases[p].label,
        len(rows),
        agreeing,
        other_prefill,
        other_decodes,
        largest,
        tokens,
    )


def _arrivals(
    recording: Recording, p: int, f: FrontEnd, near_s: float | None
) -> deque[tuple[float, Request]]:
    """When the engine has each request, s; in order."""
    q = recording.requests
    index = np.flatnonzero(q.phase == p)
    index = index[np.argsort(q.sent_s[index], kind="stable")]
    ready_s = modelled_arrivals_s(q, index, f, backlogs_ms(recording, f.api)[0])
    if near_s is not None:
        first = match_requests(recording).first_chunk[index]
        first_s = recording.steps.schedule_s[first]
        # one that ran much later had to wait for seats or budget, not for the front end
        close = (first >= 0) & (first_s - ready_s < near_s)
        ready_s = np.where(close, first_s, ready_s)
    order = np.argsort(ready_s, kind="stable")
    return deque(
        (
            float(ready_s[j]),
            Request(int(i), int(q.prompt_tokens[i]), int(q.output_tokens[i])),
        )
        for j, i in zip(order, index[order], strict=True)
    )
