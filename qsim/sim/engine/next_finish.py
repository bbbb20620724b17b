"""How long a replica may lag behind: until one of its requests may finish.

Nobody looks at a replica before that, unless a request is handed in. So it names a time before
which nothing finishes, and the closer that is to the truth, the fewer calls a request costs. Where
the same requests decode until one of them ends, the GPU is the bottleneck and runs at full clock,
it is the truth.

The GPU cannot be done with step k sooner than a gap and a span after step k - 1, so the sum of the
spans that are certain is a bound, whatever the host does. Requests that are still to join make no
step of decodes faster than the fastest for so many rows or a few more. A step with prefill in it is
taken to cost nothing, as its span is not comparable. Nobody loses a seat within the steps for which
there are blocks enough for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsim.sim.engine.fast_forward import FastForward
    from qsim.sim.engine.replica import Replica

_NEVER = 1 << 60
#: with more requests on their way than this, nothing is foretold
_FEW = 3


def earliest_finish_ps(replica: Replica, fast_forward: FastForward, next_ps: int) -> int:
    """A time before which no request finishes unless one is handed in; ``next_ps`` at least.

    Parameters
    ----------
    fast_forward
        Must be active.
    next_ps
        When the replica's next turn begins, ps.
    """
    scheduler, timing = replica.scheduler, replica._timing
    joining = [request for _, request in replica._inbox]
    if replica.api is not None:
        joining += replica.api.requests()
    due, launched = fast_forward._due, fast_forward._launched
    if due is not None:
        if due[5]:
            return next_ps
        for request in due[4]:
            if request.group is None and request.target >= request.limit:
                return next_ps
    tail, waiting = scheduler._tail, scheduler._waiting
    coming = len(joining) + waiting.count + (tail is not None)
    if coming > _FEW or waiting.count > 1:
        return next_ps
    update_ps = timing.update_ps
    after = timing.result_ps + timing.turn_ps

    # steps that are to be launched, up to the one with somebody's last token, and the blocks that
    # requests on their way may take
    group = scheduler._group
    ends = group._ends
    clock = group.clock
    rows = len(group.members)
    context = group._base_sum + rows * clock  # of the next step
    steps = ends[0][0] - clock + 1 if ends else _NEVER
    ending = launched is not None and len(launched[5]) > 0
    for request in scheduler._fresh:  # members from the next step on
        left = request.limit - 1 - request.computed
        if left < 1:
            ending = True
        elif left < steps:
            steps = left
        rows += 1
        context += request.computed
    if ending:
        if launched is None:
            return next_ps
        finish_ps = launched[1] + after + update_ps[launched[0]]
        return finish_ps if finish_ps > next_ps else next_ps
    if coming:
        config = scheduler.config
        budget = config.max_num_batched_tokens - rows - coming
        if config.long_prefill_token_threshold or budget < 1:
            return next_ps
        tokens = blocks = 0
        if tail is not None:
            steps = min(steps, tail.limit - tail.target)
            tokens = tail.target - tail.computed
            blocks = -(-tail.limit // config.block_size)
        if waiting.count:
            request = waiting.head()
            steps = min(steps, request.limit - request.target)
            tokens += request.target
            blocks += -(-request.limit // config.block_size)
        for request in joining:
            prompt = request.prompt_tokens
            limit = min(prompt + request.output_tokens, config.max_model_len)
            steps = min(steps, limit - prompt)
            tokens += prompt
            blocks += -(-limit // config.block_size)
        prefills = coming + tokens // budget
        within = scheduler._kv.free - blocks
    else:
        prefills = 0
        within = scheduler._kv.free
    if not rows:
        if not coming:
            return next_ps
        rows, context = 1, 0
    size = scheduler.config.block_size
    if (steps // size + 1) * rows > within:
        steps = min(steps, (within // rows - 1) * size)
    steps -= prefills
    if steps < 1:
        return next_ps

    # the fastest that they can be
    span = timing.full_clock_span_ps(rows, context)
    slope = timing.least_slope_ps(rows, context)
    for more in range(rows + 1, min(rows + coming, len(update_ps) - 1) + 1):
        span = min(span, timing.full_clock_span_ps(more, context))
        slope = min(slope, timing.least_slope_ps(more, context))
    gap = timing.gpu_gap_ps
    start = replica._gpu_free_ps + gap
    if start < next_ps:
        start = next_ps
    finish_ps = (
        start
        + steps * (span + gap)
        - gap
        + slope * rows * (steps * (steps - 1) // 2)
        + after
        + min(update_ps[rows], update_ps[-1])
    )
    return finish_ps if finish_ps > next_ps else next_ps
